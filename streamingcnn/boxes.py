"""Integer arithmetic on boxes.

Every schedule in this library is made of boxes: half-open integer intervals, one per spatial axis, in the
coordinates of one node's full feature map. This file knows nothing else; it does not import torch.

        0    2              7      extent 8
        |----[==============)-|    interval (2, 7): five pixels, 2, 3, 4, 5, 6

A *region* is what a rule asks of one input: per axis a tuple of disjoint intervals, nearly always one, several
at a circular border, none where only padding is seen. Its boxes are the product of its intervals.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from math import prod

Interval = tuple[int, int]
Box = tuple[Interval, ...]
Region = tuple[tuple[Interval, ...], ...]


def length(interval: Interval) -> int:
    """The number of pixels in an interval, 0 where it is empty."""
    return max(0, interval[1] - interval[0])


def sizes(box: Box) -> tuple[int, ...]:
    """The number of pixels of a box along each axis.

    >>> sizes(((2, 7), (0, 3)))
    (5, 3)
    """
    return tuple(length(interval) for interval in box)


def volume(box: Box) -> int:
    """The number of pixels in a box."""
    return prod(sizes(box))


def full(extents: Sequence[int]) -> Box:
    """The box of a whole map."""
    return tuple((0, extent) for extent in extents)


def clip(interval: Interval, extent: int) -> Interval:
    """The part of an interval that lies in ``[0, extent)``; ``(0, 0)`` where there is none.

    >>> clip((-3, 5), 4), clip((6, 9), 4)
    ((0, 4), (0, 0))
    """
    low, high = max(interval[0], 0), min(interval[1], extent)
    return (low, high) if low < high else (0, 0)


def intersect(a: Box, b: Box) -> Box | None:
    """The common part of two boxes, or None."""
    common = tuple((max(x[0], y[0]), min(x[1], y[1])) for x, y in zip(a, b, strict=True))
    return common if all(low < high for low, high in common) else None


def contains(outer: Box, inner: Box) -> bool:
    """Whether every pixel of ``inner`` lies in ``outer``."""
    return all(o[0] <= i[0] and i[1] <= o[1] for o, i in zip(outer, inner, strict=True))


def hull(boxes: Iterable[Box]) -> Box:
    """The smallest box that holds all the given ones.

    >>> hull([((0, 2), (5, 6)), ((4, 5), (1, 3))])
    ((0, 5), (1, 6))
    """
    columns = zip(*boxes, strict=True)
    return tuple((min(i[0] for i in column), max(i[1] for i in column)) for column in columns)


def shift(box: Box, by: Sequence[int]) -> Box:
    """A box moved by an offset per axis."""
    return tuple((low + d, high + d) for (low, high), d in zip(box, by, strict=True))


def relative(box: Box, origin: Box) -> Box:
    """A box in coordinates that start at the low corner of ``origin``."""
    return shift(box, [-low for low, _ in origin])


def split(extent: int, step: int) -> tuple[Interval, ...]:
    """Equal steps and one remainder.

    >>> split(10, 4)
    ((0, 4), (4, 8), (8, 10))
    """
    return tuple((low, min(low + step, extent)) for low in range(0, extent, step))


def grid(extents: Sequence[int], steps: Sequence[int]) -> Iterator[Box]:
    """The boxes of a tile grid, last axis fastest."""
    return itertools.product(*(split(e, s) for e, s in zip(extents, steps, strict=True)))


def tiles_in(extents: Sequence[int], steps: Sequence[int]) -> int:
    """How many boxes :func:`grid` gives."""
    return prod(-(-e // s) for e, s in zip(extents, steps, strict=True))


def boxes_of(region: Region) -> list[Box]:
    """The boxes of a region: the product of its intervals; empty where an axis needs nothing."""
    return list(itertools.product(*region))


def merge(boxes: Iterable[Box]) -> tuple[Box, ...]:
    """Join boxes that overlap or whose hull costs no more than the boxes themselves.

    >>> merge([((0, 4),), ((3, 6),), ((9, 10),)])
    (((0, 6),), ((9, 10),))
    """
    todo = list(dict.fromkeys(boxes))
    if len(todo) < 2:
        return tuple(todo)
    done: list[Box] = []
    while todo:
        box = todo.pop()
        for other in done:
            both = hull((box, other))
            if intersect(box, other) or volume(both) <= volume(box) + volume(other):
                done.remove(other)
                todo.append(both)
                break
        else:
            done.append(box)
    return tuple(sorted(done))
