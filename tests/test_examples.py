"""What a newcomer runs first: the examples as programs, and every Python block of README and docs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.forked import needs_fork, process

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: A block after the comment `<!-- not run: why -->` needs what a test machine has not.
_BLOCK = re.compile(r"(?P<skip><!-- not run:[^>]*-->\s*)?```python\n(?P<code>.*?)```", re.DOTALL)


def run(*arguments: str) -> str:
    """A program run as a newcomer would, whether the package is installed or only checked out."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return done.stdout


def test_wrap_sequential() -> None:
    printed = run("examples/wrap_sequential.py")
    assert "receptive field" in printed
    assert "gradient of the first convolution: (16, 3, 7, 7)" in printed


def test_wrap_unet3d_trains_as_plain_does_in_less_memory() -> None:
    arguments = ["examples/wrap_unet3d.py", "--size", "32", "--tile", "16", "--steps", "2", "--filters", "4"]
    streamed, plain = run(*arguments), run(*arguments, "--plain")

    def losses(printed: str) -> list[float]:
        return [float(value) for value in re.findall(r"loss ([\d.]+)", printed)]

    assert len(losses(streamed)) == 2
    assert losses(streamed) == pytest.approx(losses(plain), abs=2e-4)


@needs_fork
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_of_the_pages_runs(page: Path, tmp_path: Path) -> None:
    """The blocks of a page run in order, one after the other, in one process that has imported everything already."""
    blocks = [match["code"] for match in _BLOCK.finditer(page.read_text()) if not match["skip"]]
    page_run = process(run_blocks, "\n".join(blocks), tmp_path / "said", daemon=False)
    page_run.join()
    said = (tmp_path / "said").read_text()
    assert page_run.exitcode == 0, said
    assert "Warning" not in said, said


def run_blocks(code: str, said: Path) -> None:
    """Run what a page says as a program, with all errors and warnings in a file."""
    with said.open("w") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    os.chdir(ROOT)
    exec(compile(code, "page", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_inside_the_project_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)[^)]*\)", page.read_text())
    links += re.findall(r'(?:src|href)="(?!https?://|#)([^"]+)"', page.read_text())
    for link in links:
        assert (page.parent / link).exists(), link
