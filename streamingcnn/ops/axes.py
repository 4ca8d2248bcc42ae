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

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ..boxes import Interval, clip

Intervals = tuple[Interval, ...]


class AxisMap(Protocol):
    """One axis of one input of a rule."""

    def need(self, low: int, high: int) -> Intervals:
        """Disjoint, sorted, non-empty intervals of the input that ``[low, high)`` of the result needs."""
        ...


def _some(interval: Interval) -> Intervals:
    return (interval,) if interval[0] < interval[1] else ()


@dataclass(frozen=True)
class Same:
    """Pixel i of the result needs pixel i."""

    def need(self, low: int, high: int) -> Intervals:
        return ((low, high),)


@dataclass(frozen=True)
class Constant:
    """Every pixel of the result needs the one pixel there is: a map of extent 1, broadcast."""

    def need(self, low: int, high: int) -> Intervals:
        return ((0, 1),)


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


@dataclass(frozen=True)
class Strided:
    """A slice: pixel o needs ``start + o*step``."""

    start: int
    step: int = 1

    def need(self, low: int, high: int) -> Intervals:
        return ((self.start + low * self.step, self.start + (high - 1) * self.step + 1),)


@dataclass(frozen=True)
class Piece:
    """One input of a concatenation along this axis: it fills ``[start, start + extent)`` of the result."""

    start: int
    extent: int

    def need(self, low: int, high: int) -> Intervals:
        return _some(clip((low - self.start, high - self.start), self.extent))


@dataclass(frozen=True)
class Finer:
    """The result has ``factor`` pixels for each input pixel (pixel shuffle)."""

    factor: int

    def need(self, low: int, high: int) -> Intervals:
        return ((low // self.factor, -(-high // self.factor)),)


@dataclass(frozen=True)
class Coarser:
    """The result has one pixel for ``factor`` input pixels (pixel unshuffle)."""

    factor: int

    def need(self, low: int, high: int) -> Intervals:
        return ((low * self.factor, high * self.factor),)


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


@dataclass(frozen=True)
class Looked:
    """Pixel o needs what a function of o says: the hull over an interval of ``sources(low, high)``."""

    sources: Callable[[int, int], Interval]

    def need(self, low: int, high: int) -> Intervals:
        return _some(self.sources(low, high))
