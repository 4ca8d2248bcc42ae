"""Which tiles of a stage are the same computation at another place.

    axis of 13 pixels, tile 3, window 3       [0 3)  [3 6)  [6 9)  [9 12)  [12 13)
    what the window needs, clipped            [0 4)  [2 7)  [5 10) [8 13)  [11 13)
    kind                                      a      b      b      c       d

Two tiles are alike whose intervals are of the same kind along each axis.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

from ..boxes import Box, Interval, merge, split, volume
from ..ops.rule import Value
from ..pages import Table
from .stages import Stage

#: A tile whose values take less than this share of the largest tile's cannot be the highest: the copies that padding
#: makes at a border are at most as large as what is padded.
LIGHT = 0.5


class Kind(NamedTuple):
    """What a tile is like along one axis; tiles of equal kinds along every axis are alike."""

    #: How many pixels it needs of each value: of the stage's frontier first, then of its nodes.
    lengths: tuple[int, ...]
    #: The same in detail: of each value the intervals' lengths, and how many borders of the map each touches. What
    #: is padded follows: the window's length less the interval's.
    pieces: tuple[tuple[tuple[int, int], ...], ...]


#: One kind per axis.
Kinds = tuple[Kind, ...]


@dataclass
class Representative:
    """A tile that stands for others: those of its kind that come later, and the ones skipped right after it."""

    box: Box
    kind: Kinds
    skipped: Counter[Kinds] = field(default_factory=Counter)


class Alike:
    """Which tiles of a stage are alike that reads from paged maps: also their reads go over equally many blocks."""

    def __init__(self, stage: Stage, tables: Mapping[str, Table]) -> None:
        self.stage, self.tables = stage, tables
        self._lines = [
            {interval: self._along(axis, interval) for interval in split(extent, step)}
            for axis, (extent, step) in enumerate(zip(stage.target.extents, stage.tile, strict=True))
        ]

    def _along(self, axis: int, interval: Interval) -> tuple[Hashable, dict[str, list[Interval]]]:
        needed = needed_along(self.stage, axis, interval)
        blocks = []
        for value in self.stage.frontier:
            if value.name in self.tables and needed[value.name]:
                step = self.tables[value.name].steps[axis]
                blocks.append(tuple(-(-high // step) - low // step for low, high in needed[value.name]))
        return (kind_of(self.stage, axis, interval), tuple(blocks)), needed

    def kind(self, box: Box) -> Hashable:
        """Equal for two tiles that take equally many bytes."""
        return tuple(line[interval][0] for line, interval in zip(self._lines, box, strict=True))

    def reads(self, box: Box) -> Iterator[tuple[Value, Box]]:
        """The boxes of the frontier that a tile reads."""
        needed = [line[interval][1] for line, interval in zip(self._lines, box, strict=True)]
        for value in self.stage.frontier:
            for part in itertools.product(*(along[value.name] for along in needed)):
                yield value, part


def representatives(
    stage: Stage, all_kinds: bool, own: Box, late: Callable[[Box], bool] = lambda _: False
) -> list[Representative]:
    """The tiles to run, in the order of the stage: the first of each kind, and a second one where that differs.

    Args:
        stage: the stage, its tile set.
        all_kinds: also kinds that are too small to matter, and what is skipped after each tile.
        own: the box that the tiles make up.
        late: whether a tile runs after all those that are not late.
    """
    if not volume(own):
        return []
    intervals = [
        [(low + start, high + start) for low, high in split(end - start, step)]
        for (start, end), step in zip(own, stage.tile, strict=True)
    ]
    along = [[kind_of(stage, axis, interval) for interval in line] for axis, line in enumerate(intervals)]

    def box_at(place: tuple[int, ...]) -> Box:
        return tuple(line[k] for line, k in zip(intervals, place, strict=True))

    some = (range(len(line)) for line in intervals) if all_kinds else map(_first_two, along)
    places = sorted(itertools.product(*some), key=lambda place: late(box_at(place)))
    light = LIGHT * max(bytes_of_kind(stage, kind) for kind in itertools.product(*map(dict.fromkeys, along)))
    seen: Counter[Kinds] = Counter()
    touched: set[tuple[bool, ...]] = set()
    twice: set[Kinds] = set()
    chosen: list[Representative] = []
    for place in places:
        kind = tuple(line[k] for line, k in zip(along, place, strict=True))
        seen[kind] += 1
        if seen[kind] == 1:
            # The first that touches a map may find no gradient of it to add to: one more of its kind runs.
            reads = tuple(all(k.lengths[i] for k in kind) for i in range(len(stage.frontier)))
            if reads not in touched:
                touched.add(reads)
                twice.add(kind)
        if seen[kind] > 1 + (kind in twice):
            if all_kinds:
                chosen[-1].skipped[kind] += 1
        elif all_kinds or not chosen or kind in twice or bytes_of_kind(stage, kind) >= light:
            chosen.append(Representative(box_at(place), kind))
    return chosen


def _first_two(line: list[Kind]) -> list[int]:
    """The places of the first two of each kind."""
    seen: Counter[Kind] = Counter()
    found = []
    for k, kind in enumerate(line):
        seen[kind] += 1
        if seen[kind] <= 2:
            found.append(k)
    return found


def kind_of(stage: Stage, axis: int, interval: Interval) -> Kind:
    """The kind of an interval of the target: what it needs along its axis, node by node back to the frontier."""
    needed = needed_along(stage, axis, interval)
    values = (*stage.frontier, *(node.value for node in stage.nodes))
    lengths = tuple(sum(high - low for low, high in needed[v.name]) for v in values)
    pieces = tuple(
        tuple((high - low, (low == 0) + (high == v.extents[axis])) for low, high in needed[v.name]) for v in values
    )
    return Kind(lengths, pieces)


def needed_along(stage: Stage, axis: int, interval: Interval) -> dict[str, list[Interval]]:
    """By value name the intervals that an interval of the target needs along its axis."""
    wanted: dict[str, list[Interval]] = {stage.target.name: [interval]}
    needed: dict[str, list[Interval]] = {}
    for node in reversed(stage.nodes):
        needed[node.value.name] = joined(wanted.get(node.value.name, []))
        for low, high in needed[node.value.name]:
            for read in node.rule.reads:
                wanted.setdefault(read.value.name, []).extend(read.maps[axis].need(low, high))
    for value in stage.frontier:
        needed[value.name] = joined(wanted.get(value.name, []))
    return needed


def joined(intervals: list[Interval]) -> list[Interval]:
    """Intervals as a tile holds them: those that overlap or touch as one."""
    if len(intervals) < 2 or intervals.count(intervals[0]) == len(intervals):
        return intervals[:1]
    return [box[0] for box in merge((interval,) for interval in intervals)]


def bytes_of_kind(stage: Stage, kinds: Kinds) -> int:
    """The bytes of every value that a tile makes or reads."""
    values = (*stage.frontier, *(node.value for node in stage.nodes))
    return sum(v.depth * v.dtype.itemsize * prod(kind.lengths[i] for kind in kinds) for i, v in enumerate(values))
