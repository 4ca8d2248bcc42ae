"""What is installed: what importing costs, the names that are promised, and what an archive holds."""

from __future__ import annotations

import inspect
import os
import shutil
import subprocess
import sys
import tarfile
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
#: Changed on purpose, with a line in CHANGELOG.md (CONTRIBUTING.md says how names leave):
#: python -c "from tests.test_package import API, public; API.write_text(public())"
API = Path(__file__).parent / "public_api.txt"
PUBLIC = ("streamingcnn", "streamingcnn.sources")
HEAVY = (
    *("PIL", "jinja2", "matplotlib", "monai", "nibabel", "openslide", "safetensors", "scipy", "skimage", "sklearn"),
    *("sympy", "tensorboard", "tifffile", "torch._dynamo", "torch._inductor", "wsidicom", "zarr"),
)


def test_importing_takes_little_and_imports_nothing_heavy() -> None:
    """Beside `import torch`, in seconds of this process: another program's do not count."""
    program = (
        "import sys, time, torch\nstart = time.process_time()\nimport streamingcnn\n"
        f"print(time.process_time() - start, *(name for name in {HEAVY!r} if name in sys.modules))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": ""}
    for _ in range(2):  # the first may have to compile our files
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        took, *heavy = done.stdout.split()
        assert heavy == []
        if float(took) <= 0.3:
            return
    raise AssertionError(f"import streamingcnn took {took} s beside import torch")


def test_what_reads_files_is_there_when_it_is_asked_for() -> None:
    for module in PUBLIC:
        assert callable(import_module(module).open_image)
        with pytest.raises(AttributeError, match="has no attribute 'open_pictures'"):
            _ = import_module(module).open_pictures
    assert "open_image" in dir(import_module("streamingcnn.sources"))


def public() -> str:
    """Every promised name with its signature, and those of its public methods."""
    lines = []
    for module in map(import_module, PUBLIC):
        for name in sorted(module.__all__):
            thing = getattr(module, name)
            lines.append(f"{module.__name__}.{name}{_signature(thing)}")
            if inspect.isclass(thing):
                own = (n for n in vars(thing) if not n.startswith("_") and callable(getattr(thing, n)))
                lines += [f"{module.__name__}.{name}.{n}{_signature(getattr(thing, n))}" for n in sorted(own)]
    return "\n".join(lines) + "\n"


def _signature(thing: object) -> str:
    """Names, kinds and defaults of the arguments, without their types."""
    if not callable(thing) or (isinstance(thing, type) and issubclass(thing, Exception)):
        return ""
    signature = inspect.signature(thing)
    parameters = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=signature.empty))


def test_promised_names_and_their_arguments_are_as_they_were() -> None:
    assert public() == API.read_text(), "if this is meant: see the comment above API in this file"


def test_the_archive_of_the_source_builds_the_package(tmp_path: Path) -> None:
    """`make package` installs both archives in an empty environment; here is what they hold."""
    setuptools = pytest.importorskip("setuptools")
    if int(setuptools.__version__.split(".")[0]) < 77:
        pytest.skip("pyproject.toml asks for setuptools 77")
    source = tmp_path / "source"
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "streamingcnn", source / "streamingcnn", ignore=ignore)
    (source / "tests").mkdir()
    (source / "tests" / "test_left_out.py").touch()
    for name in ("LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.cfg", "setup.py"):
        shutil.copy(ROOT / name, source)
    program = "from setuptools.build_meta import build_sdist; print(build_sdist('dist'))"
    done = subprocess.run([sys.executable, "-c", program], cwd=source, capture_output=True, text=True, check=True)
    with tarfile.open(source / "dist" / done.stdout.split()[-1]) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    files = {str(path.relative_to(source)) for path in (source / "streamingcnn").rglob("*") if path.is_file()}
    assert files <= names
    assert {"LICENSE", "README.md", "pyproject.toml", "setup.cfg"} <= names
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "docs", "examples"))]
