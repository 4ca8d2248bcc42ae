"""The errors a user can meet, each also an instance of the builtin that fits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Problem(NamedTuple):
    """One thing in a module that cannot be streamed."""

    layer: str
    what: str
    reason: str
    instead: str

    def __str__(self) -> str:
        where = f"'{self.layer}'" if self.layer else "the module itself"
        return f"{where} ({self.what}): {self.reason}; {self.instead}"


class UnsupportedModuleError(ValueError):
    """A module holds operations that cannot be streamed exactly; ``problems`` lists every one."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(dict.fromkeys(problems))
        lines = "\n".join(f"  - {problem}" for problem in self.problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__(f"this module cannot be streamed exactly ({count}):\n{lines}")

    def __reduce__(self) -> tuple[type[UnsupportedModuleError], tuple[tuple[Problem, ...]]]:
        return type(self), (self.problems,)


class DoubleBackwardError(RuntimeError):
    """The gradient of a streamed gradient was asked for, which a streamed module does not have."""
