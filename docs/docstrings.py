"""Docstrings are written as Python's own tools read them; the site reads Markdown. This turns one into the other."""

from __future__ import annotations

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"(?:^>>> .*\n?(?:^(?!\s*$).*\n?)*)+", re.MULTILINE)


class AsMarkdown(griffe.Extension):
    """An extension of griffe, which reads the docstrings for the site."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every module, class and function."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """Roles become code, `::` goes, and examples with `>>>` are fenced; `Example::` becomes a heading of its own.

    >>> as_markdown("See :class:`~a.B`::")
    'See `a.B`:'
    """
    text = re.sub(r":(?:class|func|meth|mod|attr):`~?([^`]+)`", r"`\1`", text)
    text = re.sub(r"^(\s*)::$", r"\1", text, flags=re.MULTILINE)
    text = re.sub(r"^(\s*)Example::$", r"\1For example", text, flags=re.MULTILINE)
    text = re.sub(r"::$", ":", text, flags=re.MULTILINE)
    return _EXAMPLE.sub(lambda match: f"\n```python\n{match[0].rstrip()}\n```\n", text)
