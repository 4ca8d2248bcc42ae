"""Builds these pages as a site: `make docs`, or `python docs/build.py`; the result is in build/site.

The pages are read as they lie in the repository too, so their links go to files beside docs/ (README.md, benchmarks/,
examples/). All of those are laid out once more in build/pages with the same paths between them, and MkDocs reads that.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from pygments.formatters import HtmlFormatter

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "build" / "pages"
#: What a page may link to, by folder.
SHOWN = {
    ".": ("*.md", "LICENSE"),
    "docs": ("*.md", "images/*"),
    "benchmarks": ("**/*.md", "**/*.png", "**/*.svg", "**/*.csv"),
    "examples": ("**/*.md", "**/*.py", "**/*.png", "**/*.jpg", "**/*.csv"),
}
#: Tables wrap and take the room there is.
STYLE = """
.wy-nav-content { max-width: 1040px }
.wy-table-responsive table td, .wy-table-responsive table th { white-space: normal }
.rst-content code { white-space: normal }
.rst-content pre { border: 0; margin: 0; padding: 12px !important; white-space: pre; background: #f6f6f6 }
.rst-content pre code { border: 0; padding: 0; white-space: pre; background: none }
"""


def lay_out() -> None:
    """Copies all that the site shows to build/pages."""
    shutil.rmtree(PAGES, ignore_errors=True)
    for folder, patterns in SHOWN.items():
        for path in {path for pattern in patterns for path in (ROOT / folder).glob(pattern) if path.is_file()}:
            target = PAGES / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    (PAGES / "extra.css").write_text(STYLE + HtmlFormatter(style="default").get_style_defs(".highlight"))


def main() -> int:
    """The exit code of MkDocs; every warning is an error."""
    lay_out()
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--config-file",
        str(ROOT / "mkdocs.yml"),
    ]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
