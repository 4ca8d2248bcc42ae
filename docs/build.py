"""Builds these pages as a site: `make docs`, or `python docs/build.py`; the result is in build/site.

The pages are read as they lie in the repository too, so their links go to files beside docs/ (README.md, benchmarks/,
examples/). All of those are laid out once more in build/pages with the same paths between them, and MkDocs reads that.
"""

from __future__ import annotations

import re
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
.rst-content .highlight pre { border: 0; margin: 0; white-space: pre }
.rst-content .highlight pre code { border: 0; padding: 0; white-space: pre }
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


def on_page_content(html: str, **_: object) -> str:
    """A hook of MkDocs: docstrings are written for Sphinx in two places, roles and `::`; as Markdown they read so."""
    html = re.sub(r":(?:class|func|meth|mod):<code>~?([\w.]+)</code>", r"<code>\1</code>", html)
    html = html.replace("<p>::</p>\n", "")
    return re.sub(r"::</p>", ":</p>", html)


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
