"""Figures on the project's pages are put there by the command that measured them.

A page holds a place for each, between two comments that readers do not see:

    <!-- figure: step-table -->
    what the command printed, replaced as a whole the next time
    <!-- /figure -->

`python -m benchmarks.pages` does so for what the first example of README.md prints.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

__all__ = ["ROOT", "fill"]

ROOT = Path(__file__).parent.parent


def fill(page: Path, figure: str, text: str) -> None:
    """Puts `text` into the place of a figure; a page without that place is an error that names both."""
    place = re.compile(rf"(<!-- figure: {re.escape(figure)}(?![\w-])[^>]*-->\n).*?(<!-- /figure -->)", re.DOTALL)
    before = page.read_text()
    if place.search(before) is None:
        raise ValueError(f"{page} has no place for the figure {figure!r}; it needs the lines of {__file__}")
    page.write_text(place.sub(lambda match: f"{match[1]}\n{text.strip()}\n\n{match[2]}", before))


def _main() -> None:
    page = ROOT / "README.md"
    example = re.search(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert example is not None, page
    done = subprocess.run([sys.executable, "-c", example[1]], cwd=ROOT, capture_output=True, text=True, check=True)
    fill(page, "plan", f"```text\n{done.stdout.rstrip()}\n```")


if __name__ == "__main__":
    _main()
