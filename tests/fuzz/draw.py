"""Where the choices of a random network come from."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol, TypeVar

from hypothesis import strategies as st

T = TypeVar("T")


class Draw(Protocol):
    """Something that chooses."""

    def integer(self, low: int, high: int) -> int:
        """From low to high, both included."""

    def one_of(self, options: Sequence[T]) -> T:
        """One of several."""


class FromHypothesis:
    """Choices that Hypothesis makes, and makes simpler where something fails."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data

    def integer(self, low: int, high: int) -> int:
        return self.data.draw(st.integers(low, high))

    def one_of(self, options: Sequence[T]) -> T:
        return self.data.draw(st.sampled_from(options))


class FromSeed:
    """Choices that are the same on every rank."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def integer(self, low: int, high: int) -> int:
        return self.random.randint(low, high)

    def one_of(self, options: Sequence[T]) -> T:
        return self.random.choice(options)


def chance(draw: Draw, one_in: int) -> bool:
    """True once in so many times; the simplest answer is False."""
    return draw.integer(1, one_in) == one_in
