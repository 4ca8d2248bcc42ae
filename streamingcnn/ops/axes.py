"""What one spatial axis of an operation does: which pixels of the input an interval of the result needs.

Each record is a few integers and one method, ``need``. One formula serves 1-D, 2-D and 3-D, since a rule holds
one record per spatial axis.

A window of kernel 3, stride 2, padding 1 over seven pixels (``.`` is padding):

    input        . 0 1 2 3 4 5 6 .
    result 0     [ - - ]                 needs [-1, 2), clipped to [0, 2)
    result 1         [ - - ]             needs [ 1, 4)
    result 2             [ - - ]         needs [ 3, 6)
    result 3                 [ - - ]     needs [ 5, 8), clipped to [5, 7)
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Protocol

from ..boxes import Interval, clip

Intervals = tuple[Interval, ...]


class AxisMap(Protocol):
    """One axis of one input of a rule."""

    def need(self, low: int, high: int) -> Intervals:
        """Disjoint, sorted, non-empty intervals of the input that ``[low, high)`` of the result needs."""
        ...


def relation(axis: AxisMap, low: int, high: int) -> Hashable:
    """What an interval of the result is to the pixels that it needs, wherever on the map it lies.

    Two intervals of equal length and equal relation are the same computation on what they read. A window in the
    middle of a map has the relation (0, 0); one that sees a pixel of padding at the low border has (1, 0). A record
    says it by a method ``relation(low, high)``; of one that does not, every place is taken to be different.

    >>> window = Window(extent=8, kernel=3, pad=1)
    >>> relation(window, 2, 4) == relation(window, 4, 6), relation(window, 0, 2) == relation(window, 2, 4)
    (True, False)
    """
    own: Callable[[int, int], Hashable] | None = getattr(axis, "relation", None)
    return (low, high) if own is None else own(low, high)


def _some(interval: Interval) -> Intervals:
    return (interval,) if interval[0] < interval[1] else ()


@dataclass(frozen=True)
class Same:
    """Pixel i of the result needs pixel i."""

    def need(self, low: int, high: int) -> Intervals:
        return ((low, high),)

    def relation(self, low: int, high: int) -> Hashable:
        return None


@dataclass(frozen=True)
class Constant:
    """Every pixel of the result needs the one pixel there is: a map of extent 1, broadcast."""

    def need(self, low: int, high: int) -> Intervals:
        return ((0, 1),)

    def relation(self, low: int, high: int) -> Hashable:
        return None


@dataclass(frozen=True)
class Window:
    """Convolution and pooling: pixel o needs ``o*stride - pad + k*dilation`` for k in [0, kernel)."""

    extent: int
    kernel: int
    stride: int = 1
    pad: int = 0
    dilation: int = 1

    def span(self, low: int, high: int) -> Interval:
        """The window's hull before it is clipped to the map."""
        start = low * self.stride - self.pad
        return start, start + (high - 1 - low) * self.stride + self.dilation * (self.kernel - 1) + 1

    def need(self, low: int, high: int) -> Intervals:
        start, stop = self.span(low, high)
        if self.dilation == 1 or (start >= 0 and stop <= self.extent):
            return _some(clip((start, stop), self.extent))
        # A dilated window that leaves the map skips pixels at the border: look at each pixel's outermost taps.
        taps = [
            range(o * self.stride - self.pad, o * self.stride - self.pad + self.dilation * self.kernel, self.dilation)
            for o in range(low, high)
        ]
        inside = [tap for window in taps for tap in window if 0 <= tap < self.extent]
        return ((min(inside), max(inside) + 1),) if inside else ()

    def relation(self, low: int, high: int) -> Hashable:
        """How many pixels of padding are seen, low and high; None where nothing else is."""
        needed, (start, stop) = self.need(low, high), self.span(low, high)
        return (needed[0][0] - start, stop - needed[0][1]) if needed else None


@dataclass(frozen=True)
class Spread:
    """Transposed convolution: input pixel i adds to ``i*stride - pad + k*dilation`` for k in [0, kernel)."""

    extent: int
    kernel: int
    stride: int = 1
    pad: int = 0
    dilation: int = 1

    def need(self, low: int, high: int) -> Intervals:
        if self.dilation > 1:
            # Stride and dilation may miss each other: look at the pixels that truly meet.
            reached = [o + self.pad - k * self.dilation for o in range(low, high) for k in range(self.kernel)]
            meet = [r // self.stride for r in reached if r % self.stride == 0 and 0 <= r < self.extent * self.stride]
            return ((min(meet), max(meet) + 1),) if meet else ()
        reach = self.kernel - 1
        first = -(-(low + self.pad - reach) // self.stride)
        last = (high - 1 + self.pad) // self.stride
        return _some(clip((first, last + 1), self.extent))

    def relation(self, low: int, high: int) -> Hashable:
        """Where the first and the last pixel read lie below the result."""
        needed = self.need(low, high)
        if not needed:
            return None
        (first, stop), *_ = needed
        return first * self.stride - self.pad - low, (stop - 1) * self.stride - self.pad - high


@dataclass(frozen=True)
class Strided:
    """A slice: pixel o needs ``start + o*step``."""

    start: int
    step: int = 1

    def need(self, low: int, high: int) -> Intervals:
        return ((self.start + low * self.step, self.start + (high - 1) * self.step + 1),)

    def relation(self, low: int, high: int) -> Hashable:
        return None


@dataclass(frozen=True)
class Piece:
    """One input of a concatenation along this axis: it fills ``[start, start + extent)`` of the result."""

    start: int
    extent: int

    def need(self, low: int, high: int) -> Intervals:
        return _some(clip((low - self.start, high - self.start), self.extent))

    def relation(self, low: int, high: int) -> Hashable:
        """How much of the result comes before this piece and after it."""
        needed = self.need(low, high)
        return (needed[0][0] + self.start - low, high - self.start - needed[0][1]) if needed else None


@dataclass(frozen=True)
class Finer:
    """The result has ``factor`` pixels for each input pixel (pixel shuffle)."""

    factor: int

    def need(self, low: int, high: int) -> Intervals:
        return ((low // self.factor, -(-high // self.factor)),)

    def relation(self, low: int, high: int) -> Hashable:
        return low % self.factor


@dataclass(frozen=True)
class Coarser:
    """The result has one pixel for ``factor`` input pixels (pixel unshuffle)."""

    factor: int

    def need(self, low: int, high: int) -> Intervals:
        return ((low * self.factor, high * self.factor),)

    def relation(self, low: int, high: int) -> Hashable:
        return None


@dataclass(frozen=True)
class Wrapped:
    """Circular padding: pixel o needs ``(o - pad) mod extent``; a border tile needs both ends of the map."""

    extent: int
    pad: int

    def need(self, low: int, high: int) -> Intervals:
        start, stop = low - self.pad, high - self.pad
        if stop - start >= self.extent:
            return ((0, self.extent),)
        first, last = start % self.extent, (stop - 1) % self.extent + 1
        return ((first, last),) if first < last else ((0, last), (first, self.extent))

    def relation(self, low: int, high: int) -> Hashable:
        return None if self.pad <= low and high - self.pad <= self.extent else (low, high)


@dataclass(frozen=True)
class Looked:
    """Pixel o needs what a function of o says: the hull over an interval of ``sources(low, high)``."""

    sources: Callable[[int, int], Interval]
    #: The relation of an interval to its sources, where that is known; see :func:`relation`.
    related: Callable[[int, int], Hashable] | None = None

    def need(self, low: int, high: int) -> Intervals:
        return _some(self.sources(low, high))

    def relation(self, low: int, high: int) -> Hashable:
        return (low, high) if self.related is None else self.related(low, high)
