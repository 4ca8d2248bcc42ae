"""Which tiles are the same computation: found from integers, before anything runs.

Every map is divided into small *cells*, and every cell has a label: a number that stands for all that its values
follow from. Two cells of one label are the same computation on the same numbers. The labels of an image say which of
its blocks are constant (equal ones) and which are not (each its own). The label of a cell of any later map is the

    signature    - the labels of the cells that it reads, and where in them its needed boxes begin and end
                 - per operation, how the box relates to what it reads: lengths, padding, phases of a stride
                 - its own position, where an operation of the stage depends on coordinates (dropout, say)

and a tile's is that of the cells it is made of. Tiles of one signature run once.

    image, B: background     labels of a 3x3 convolution's map      tiles of 2x2 cells
    B B B B B B              p q q q q r    p, q, r: padding        A B C     A, C: corner tiles
    B B B B B B              s t t t t u    t: background           D E F     E: background, wherever it lies
    B B B x B B      -->     s t 1 2 3 u    1, 2, 3: tissue
    B B B B B B              s t 4 5 6 u

Why cells, and not the tiles themselves: a tile beside a tissue tile reads a few pixels of its edge, which are still
background. By tiles, the tissue would grow by a whole tile with each stage; by cells it grows by a cell.

Labels are 64-bit hashes, mixed as in splitmix64. They are the same in every run, and with a million cells two
different ones coincide with a chance below 1e-7.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from math import ceil, gcd, log2, prod
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from .ahead import Reading
from .boxes import Box, Interval, split
from .ops.axes import relation
from .ops.rule import Value
from .pages import Table
from .plan.stages import Globals, Stage
from .sources.source import ConstantBlocks

Hashes = npt.NDArray[np.uint64]
Integers = npt.NDArray[np.int64]
Scalar = TypeVar("Scalar", bound=np.generic)

#: About how many cells an image is divided into, and the smallest side of one, in pixels.
CELLS, SMALLEST = 2**20, 8
#: A stage's tiles are shared, and its map is paged, from this share of its tiles on: reading pages costs copies.
WORTHWHILE = 1 / 16
#: A cell that reads more cells than this along an axis is taken to be the only one of its kind.
WIDEST = 64

_ODD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class TilesRun:
    """How many tiles one forward was made of, and how many of them were run.

    >>> str(TilesRun(tiles=16384, run=1024))
    '1024 of 16384 tiles run, 94 % saved'
    """

    tiles: int
    run: int
    #: What was done with the pixels outside a mask, in words.
    filled: str | None = None
    #: What reading the pixels of sources took; it goes on counting in the backward.
    reading: Reading | None = field(default=None, compare=False)

    @property
    def saved(self) -> float:
        """The share of the tiles that were the same as others."""
        return 1 - self.run / max(1, self.tiles)

    def __str__(self) -> str:
        said = f"{self.run} of {self.tiles} tiles run, {100 * self.saved:.0f} % saved"
        return said if self.filled is None else f"{said}; {self.filled}"


@dataclass(frozen=True, eq=False)
class Content:
    """What a plan may know of the images of a call beside their shapes.

    Attributes:
        constants: by name of a spatial input, its constant blocks.
        sources: the inputs whose pixels are read from a source.
    """

    constants: Mapping[str, ConstantBlocks] = field(default_factory=dict)
    sources: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.constants or self.sources)

    @cached_property
    def digest(self) -> str:
        """Equal for images whose constant parts lie in the same places."""
        found = hashlib.sha256()
        for name, blocks in self.constants.items():
            found.update(repr((name, blocks.steps, blocks.labels.shape)).encode())
            found.update(np.ascontiguousarray(blocks.labels).tobytes())
        return found.hexdigest()


#: Tensors without constant parts, or images of which only the shape is known.
NOTHING = Content()


@dataclass(eq=False)
class Sharing:
    """Which tiles of each stage run, and for how many each stands.

    ::

        sharing = share(plan.steps, graph.image, Content({"x": constant_blocks}))
        for box, count in sharing.tiles(stage): ...

    Attributes:
        tables: by name of a stored map with shared pages: its layout.
        runs: the boxes that run of a stage with shared tiles, and the number of tiles that each stands for.
        sources: the inputs whose pixels are read from a source.
    """

    tables: dict[str, Table] = field(default_factory=dict)
    runs: dict[Stage, tuple[list[Box], list[int]]] = field(default_factory=dict)
    sources: frozenset[str] = frozenset()

    def tiles(self, stage: Stage) -> Iterator[tuple[Box, int]]:
        """The boxes of a stage that run, each with the number of tiles it stands for."""
        if stage not in self.runs:
            return ((box, 1) for box in stage.boxes())
        return zip(*self.runs[stage], strict=True)

    def count(self, stage: Stage) -> int:
        """How many tiles of a stage run."""
        return len(self.runs[stage][0]) if stage in self.runs else stage.tiles

    def statistics(self, steps: Iterable[Stage | Globals]) -> TilesRun:
        """How many tiles a plan has, and how many of them run."""
        stages = [step for step in steps if isinstance(step, Stage)]
        return TilesRun(sum(stage.tiles for stage in stages), sum(self.count(stage) for stage in stages))

    def map_bytes(self, value: Value) -> int:
        """The bytes of a stored map, shared pages counted once."""
        table = self.tables.get(value.name)
        pixels = prod(value.extents) if table is None else table.elements()
        return pixels * value.depth * value.dtype.itemsize


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of a map's cells; ``constant`` gives an image's own, where every label stands for one value."""

    steps: tuple[int, ...]
    hashes: Hashes
    constant: Integers | None = None


@dataclass(frozen=True)
class Axis:
    """What the intervals of a stage's target, cut into equal steps, need along one axis."""

    #: Equal for two intervals that relate in the same way to all that they read.
    codes: Hashes
    #: By name of a frontier value: the first pixel needed and the one after the last; equal where none is.
    low: dict[str, Integers]
    high: dict[str, Integers]


def share(steps: Iterable[Stage | Globals], image: Value, content: Content) -> Sharing:
    """Find the tiles that are the same computation.

    Args:
        steps: the steps of a plan.
        image: the first spatial input, whose pixels the size of a cell is in.
        content: what is known of the pixels of the inputs.
    """
    sharing = Sharing(sources=content.sources)
    labels = {name: _labels_of(blocks) for name, blocks in content.constants.items() if blocks.share > 0}
    side = _side(image.extents)
    for step in steps if labels else ():
        if not isinstance(step, Stage) or not any(value.name in labels for value in step.frontier):
            continue
        cell = _cell(step, image, side)
        made = _signatures(step, cell, labels)
        if step.stored:
            labels[step.name] = Labels(cell, made)
        if step.tiles > 1:
            _run_once(step, cell, made, sharing)
    return sharing


def _run_once(stage: Stage, cell: tuple[int, ...], cells: Hashes, sharing: Sharing) -> None:
    """Group the tiles of a stage by the labels of their cells."""
    tiles = cells
    for axis, (extent, tile, step) in enumerate(zip(stage.target.extents, stage.tile, cell, strict=True)):
        low = np.arange(0, extent, tile)
        high = np.minimum(low + tile, extent)
        index, counts = _touched(low, high, step)
        tiles = _mixed(_folded(tiles, axis, index) + _along(_mixed(counts), axis, tiles.ndim))
    _, first, inverse, counts = np.unique(tiles, return_index=True, return_inverse=True, return_counts=True)
    if len(first) > (1 - WORTHWHILE) * tiles.size:
        return
    order = np.argsort(first)
    table = Table(stage.target.extents, stage.tile, inverse.reshape(tiles.shape))
    places = np.stack(np.unravel_index(first[order], tiles.shape), 1).tolist()
    sharing.runs[stage] = [table.block(tuple(place)) for place in places], counts[order].tolist()
    if stage.stored:
        sharing.tables[stage.name] = table


# ------------------------------------------------------------------------------------------------- cells


def _side(extents: tuple[int, ...]) -> int:
    """The side of the image's cells, a power of two."""
    side: int = 2 ** ceil(log2(max(1.0, prod(extents) / CELLS)) / len(extents))
    return max(SMALLEST, side)


def _cell(stage: Stage, image: Value, side: int) -> tuple[int, ...]:
    """The cells of a stage's target: the image's at its scale, and such that its tiles are made of whole ones."""
    cells = []
    for own, extent, tile in zip(stage.target.extents, image.extents, stage.tile, strict=True):
        ideal = 2 ** max(0, round(log2(side * own / extent)))
        whole = ideal if tile >= own else gcd(tile, ideal)
        cells.append(whole if 4 * whole >= ideal else tile)
    return tuple(cells)


def _labels_of(blocks: ConstantBlocks) -> Labels:
    """Equal labels for blocks of equal value, and for each other block its own."""
    own = np.arange(blocks.labels.size, dtype=np.int64).reshape(blocks.labels.shape) - blocks.labels.size
    return Labels(blocks.steps, _mixed(np.where(blocks.labels < 0, own, blocks.labels)), blocks.labels)


def _signatures(stage: Stage, cell: tuple[int, ...], labels: Mapping[str, Labels]) -> Hashes:
    """The labels of the cells of a stage's target."""
    axes = [axis_of(stage, k, step) for k, step in enumerate(cell)]
    space = len(axes)
    made = np.zeros([len(axis.codes) for axis in axes], np.uint64)
    for k, axis in enumerate(axes):
        made = made * _ODD + _along(axis.codes, k, space)
    for value in stage.frontier:
        made = made * _ODD + _read(value, axes, labels.get(value.name))
    return _mixed(made)


def _read(value: Value, axes: list[Axis], labels: Labels | None) -> Hashes:
    """What the cells of a target read of one value: labels, and where in them they begin and end."""
    space = len(axes)
    spans = [(axis.low[value.name], axis.high[value.name]) for axis in axes]
    found = np.zeros((1,) * space, np.uint64)
    if labels is not None:
        indices = [_touched(low, high, step)[0] for (low, high), step in zip(spans, labels.steps, strict=True)]
        if any(index.shape[1] > WIDEST for index in indices):
            labels = None
    if labels is not None:
        found = labels.hashes
        for k, index in enumerate(indices):
            found = _mixed(_folded(found, k, index))
    for k, (low, high) in enumerate(spans):
        # Without labels every place is its own.
        step = 1 << 62 if labels is None else labels.steps[k]
        first = low // step
        ends = _mixed(_mixed(low - first * step) * _ODD + (high - first * step).astype(np.uint64))
        found = found * _ODD + _along(ends, k, space)
    found = _mixed(found)
    if labels is not None and labels.constant is not None:
        # Where all that is read has one value, it does not matter where it lies.
        least = most = labels.constant
        for k, index in enumerate(indices):
            least, most = _extreme(least, k, index, np.minimum), _extreme(most, k, index, np.maximum)
        found = np.where((least == most) & (least >= 0), _mixed(least), found)
    for k, (low, high) in enumerate(spans):
        found = np.where(_along(low < high, k, space), found, np.uint64(0))
    return found


def _touched(low: Integers, high: Integers, step: int) -> tuple[Integers, Integers]:
    """Per interval the cells it touches, the last one repeated to equal length, and how many they are."""
    first, last = low // step, np.maximum(high - 1, low) // step
    counts = last - first + 1
    return np.minimum(first[:, None] + np.arange(counts.max()), last[:, None]), counts


def _folded(hashes: Hashes, axis: int, index: Integers) -> Hashes:
    """One hash of the several along an axis that each row of the index names."""
    total = hashes.take(index[:, 0], axis)
    for column in index.T[1:]:
        total *= _ODD
        total += hashes.take(column, axis)
    return total


def _extreme(labels: Integers, axis: int, index: Integers, of: np.ufunc) -> Integers:
    total = labels.take(index[:, 0], axis)
    for column in index.T[1:]:
        of(total, labels.take(column, axis), out=total)
    return total


def _along(values: npt.NDArray[Scalar], axis: int, space: int) -> npt.NDArray[Scalar]:
    """A vector as an array that lies along one axis."""
    shape = [1] * space
    shape[axis] = -1
    return values.reshape(shape)


def _mixed(values: npt.NDArray[np.generic]) -> Hashes:
    """The finaliser of splitmix64: every bit of the result depends on every bit given."""
    z: Hashes = values.astype(np.uint64) + _ODD
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


# -------------------------------------------------------------------------------------- one axis of a stage

_known: weakref.WeakKeyDictionary[Stage, dict[Hashable, Axis]] = weakref.WeakKeyDictionary()


def axis_of(stage: Stage, axis: int, step: int) -> Axis:
    """How the intervals of one axis of a stage's target relate to what they read.

    It is remembered per stage, and by all that it follows from: the axes of a square image are mostly alike.
    """
    known = _known.setdefault(stage, {})
    maps = [read.maps[axis] for node in stage.nodes for read in node.rule.reads]
    key = (step, stage.target.extents[axis], *(m if isinstance(m, Hashable) else id(m) for m in maps))
    if key not in known:
        known[key] = _axis_of(stage, axis, step)
    return known[key]


def _axis_of(stage: Stage, axis: int, step: int) -> Axis:
    numbers: dict[Hashable, int] = {}
    codes, hulls = [], []
    for interval in split(stage.target.extents[axis], step):
        key, hull = walk(stage, axis, interval)
        codes.append(numbers.setdefault(key, len(numbers)))
        hulls.append(hull)
    names = [value.name for value in stage.frontier]
    low, high = ({n: np.array([hull[n][end] for hull in hulls], np.int64) for n in names} for end in (0, 1))
    return Axis(_mixed(np.array(codes, np.int64)), low, high)


def walk(stage: Stage, axis: int, interval: Interval) -> tuple[Hashable, dict[str, Interval]]:
    """How an interval of the target relates to all that it needs, and the hull of it by frontier value.

    The same walk as that of :meth:`Stage.needs`, on one axis; intervals that boxes may be merged to are looked at too
    (:func:`_merged`). Intervals are told relative to the first pixel needed of their value, so that equal keys mean
    programs that are the same but for a shift.
    """
    wanted: dict[str, set[Interval]] = {stage.target.name: {interval}}
    origins: dict[str, int] = {}
    key: list[Hashable] = []
    needed: list[tuple[str, Interval]] = []
    for node in reversed(stage.nodes):
        rule, intervals = node.rule, _merged(wanted.get(node.value.name, ()))
        key.append(len(intervals))
        origin = origins[node.value.name] = intervals[0][0] if intervals else 0
        for low, high in intervals:
            key.append((low - origin, high - origin) if rule.shift_invariant else (low, high))
            for read in rule.reads:
                key.append(relation(read.maps[axis], low, high))
                needs = read.maps[axis].need(low, high)
                needed += [(read.value.name, need) for need in needs]
                wanted.setdefault(read.value.name, set()).update(needs)
    hulls = {}
    for value in stage.frontier:
        asked = wanted.get(value.name) or {(0, 0)}
        hulls[value.name] = min(low for low, _ in asked), max(high for _, high in asked)
        origins[value.name] = hulls[value.name][0]
    key += [(low - origins[name], high - origins[name]) for name, (low, high) in needed]
    return (interval[1] - interval[0], *key), hulls


def _merged(asked: Iterable[Interval]) -> list[Interval]:
    """The intervals asked for, and all that boxes made of them may be merged to.

    A merged box begins where one of its boxes does and ends where one of them does. Mostly each interval lies inside
    the next, as halos do; then the hull of several is the widest of them, and nothing is new.
    """
    chain = sorted(asked, key=lambda interval: (interval[0], -interval[1]))
    if all(later[1] <= earlier[1] for earlier, later in pairwise(chain)):
        return chain
    lows, highs = sorted({low for low, _ in chain}), sorted({high for _, high in chain})
    return [(low, high) for low in lows for high in highs if low < high]
