"""The errors a user can meet, each also an instance of the builtin that fits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch


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


class StepMemoryError(torch.OutOfMemoryError):
    """A step of a streamed module ran out of memory; its parameters' gradients are what they were before.

    Attributes:
        peak: the predicted bytes of the plan that did not fit.
        budget: the bytes that the plan was made for, or None where nothing limited them.
    """

    def __init__(self, message: str, peak: int, budget: int | None) -> None:
        self.peak, self.budget = peak, budget
        super().__init__(message)

    def __reduce__(self) -> tuple[type[StepMemoryError], tuple[str, int, int | None]]:
        return type(self), (str(self), self.peak, self.budget)


class DiskFullError(OSError):
    """The directory for stored maps has no room for those of a step; nothing was computed yet."""
