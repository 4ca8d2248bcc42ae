"""The ways to run one stage: for every tile worth considering, how long it takes and how many bytes it needs.

Boxes are products of intervals, and what an interval needs along one axis does not depend on the other axes. So
lengths are found per axis and multiplied:

    result   [0, 40)  x  [0, 60)          conv 3x3 needs  [0, 41) x [0, 61)
    units    40 * 60 * channels * ...     all tiles of a grid together: (sum of lengths) x (sum of lengths)

which makes a hundred tile sizes as cheap as one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod

import numpy as np

from ..boxes import Interval, merge
from ..graph import Graph, Local, Reduced
from ..ops.rule import Value
from ..runner import requiring
from ..signature import Sharing
from .reuse import overwriting
from .stages import Stage
from .times import Array, Times, kind_of, units_of

#: Steps of a tile grid that are considered: an axis is cut into so many tiles.
CUTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 96, 128, 192, 256)
#: The fewest pixels along an axis that a tile is cut to.
NARROWEST = 4

#: What autograd saves of common operations: their result, or nothing. Of all others it saves the inputs.
SAVES_RESULT = {"relu", "sigmoid", "tanh", "exp", "sqrt", "rsqrt", "reciprocal", "softmax", "_softmax", "log_softmax",
                "_log_softmax", "elu", "leaky_relu", "hardtanh"}  # fmt: skip
SAVES_NOTHING = {"add", "sub", "neg", "cat", "slice", "permute", "transpose", "view", "constant_pad_nd", "pad",
                 "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d", "upsample_trilinear3d",
                 "reflection_pad2d", "replication_pad2d", "pixel_shuffle", "_to_copy", "clone", "select", "unsqueeze",
                 "squeeze", "split", "chunk"}  # fmt: skip
#: Operations whose results are views: they hold no bytes of their own.
VIEWS = {"slice", "permute", "transpose", "view", "select", "unsqueeze", "squeeze", "detach", "expand", "alias"}


@dataclass(frozen=True)
class Option:
    """One way to cut a stage into tiles.

    Attributes:
        tile: pixels of the target per axis.
        tiles: how many run.
        forward, again, backward: seconds of all tiles: without autograd; once more for the gradient; the gradient.
        running: bytes at the height of a tile's forward.
        saved: bytes that autograd keeps of one tile.
        working: bytes at the height of the backward of one tile that is computed again.
    """

    tile: tuple[int, ...]
    tiles: int
    forward: float
    again: float
    backward: float
    running: int
    saved: int
    working: int

    @property
    def recompute(self) -> float:
        """Seconds of a step whose tiles are computed again."""
        return self.forward + self.again + self.backward

    @property
    def keep(self) -> float:
        """Seconds of a step whose tiles keep their autograd graphs."""
        return self.forward + self.backward

    @property
    def kept(self) -> int:
        """Bytes that all tiles keep."""
        return self.saved * self.tiles


class Piece:
    """What one stage computes, whatever its tile: its nodes, from its frontier to its target.

    Args:
        target: the value it makes.
        nodes: its operations, in graph order.
        frontier: the stored values it reads.
        reductions: what is summed over its tiles.
        stored: whether the target's map is kept.
        times: the constants of the device.
        image: values without a gradient.
        trains: whether anything needs a gradient; without, there is no backward.
        running: the share of its tiles that run; less than 1 where an image has constant parts.
    """

    def __init__(
        self,
        target: Value,
        nodes: tuple[Local, ...],
        frontier: tuple[Value, ...],
        reductions: tuple[Reduced, ...],
        stored: bool,
        times: Times,
        image: frozenset[str],
        trains: bool = True,
        running: float = 1.0,
    ) -> None:
        self.target, self.nodes, self.frontier = target, nodes, frontier
        self.reductions, self.stored, self.times, self.image = reductions, stored, times, image
        self.trains, self.running = trains, running
        self.values = (*frontier, *(node.value for node in nodes))
        self._at = {value.name: k for k, value in enumerate(self.values)}
        self._lines: dict[int, tuple[Array, Array, Array, Array]] = {}
        #: The tiles to consider; None considers many.
        self.tiles: list[tuple[int, ...]] | None = None
        self.reads = frozenset(value.name for value in frontier)
        self.inside = frozenset(node.value.name for node in nodes) - {target.name}
        #: Measured bytes over estimated ones, of a tile's forward, graph and backward.
        self.corrections: tuple[float, ...] = (1.0, 1.0, 1.0)

    # ------------------------------------------------------------------ lengths, axis by axis

    def lengths(self, axis: int, steps: Array) -> tuple[Array, Array]:
        """Per step and value: the pixels of a typical tile along an axis, and those of all tiles together."""
        extent = self.target.extents[axis]
        slope, halo, border, whole = self._line(axis)
        counts = np.ceil(extent / steps)[:, None]
        rest = extent - (counts - 1) * steps[:, None]
        typical = np.minimum(slope * steps[:, None] + halo, whole)
        total = (counts - 1) * typical + np.minimum(slope * rest + halo, whole) - border
        return np.where(counts == 1, whole, typical), np.where(counts == 1, whole, np.maximum(total, whole))

    def _line(self, axis: int) -> tuple[Array, Array, Array, Array]:
        """What an interval of n pixels needs of each value along an axis, as ``slope * n + halo``.

        Two intervals in the middle of the map give the line, one at either end what the border cuts off all tiles
        together, the whole map the most there is.
        """
        extent = self.target.extents[axis]
        alike = next((a for a in self._lines if extent == self.target.extents[a] and self._alike(a, axis)), None)
        if alike is not None:
            self._lines[axis] = self._lines[alike]
        if axis not in self._lines:
            whole = self._of_interval(axis, (0, extent))
            few, many = max(1, extent // 16), max(1, extent // 4)
            low, middle = extent // 2, extent // 2
            short = self._of_interval(axis, (low, low + few))
            long = self._of_interval(axis, (middle - many // 2, middle - many // 2 + many))
            slope = (long - short) / (many - few) if many > few else whole / extent
            halo = np.maximum(long - slope * many, 0.0)
            first, last = self._of_interval(axis, (0, many)), self._of_interval(axis, (extent - many, extent))
            border = np.maximum(2 * long - first - last, 0.0)
            self._lines[axis] = (slope, halo, border, whole)
        return self._lines[axis]

    def _alike(self, a: int, b: int) -> bool:
        """Whether two axes are the same for every operation."""
        return all(read.maps[a] == read.maps[b] for node in self.nodes for read in node.rule.reads)

    def _of_interval(self, axis: int, interval: Interval) -> Array:
        wanted: list[list[Interval]] = [[] for _ in self.values]
        wanted[-1 if self.nodes else self._at[self.target.name]] = [interval]
        found = np.zeros(len(self.values))
        offset = len(self.frontier)
        for k in range(len(self.values) - 1, -1, -1):
            intervals = wanted[k]
            if not intervals:
                continue
            if len(intervals) > 1:
                intervals = [box[0] for box in merge([(i,) for i in intervals])]
            found[k] = sum(high - low for low, high in intervals)
            if k >= offset:
                for read in self.nodes[k - offset].rule.reads:
                    needs = wanted[self._at[read.value.name]]
                    for low, high in intervals:
                        needs.extend(read.maps[axis].need(low, high))
        return found

    # ------------------------------------------------------------------ what does not depend on the tile

    @cached_property
    def _depths(self) -> Array:
        return np.array([value.depth for value in self.values], dtype=np.float64)

    @cached_property
    def _itemsizes(self) -> Array:
        return np.array([value.dtype.itemsize for value in self.values], dtype=np.float64)

    @cached_property
    def _memory_of(self) -> list[int]:
        """Per value the one whose memory it is: a view's, an overwritten input's, or its own."""
        over = overwriting(self.nodes)
        memory = list(range(len(self.values)))
        for k, node in enumerate(self.nodes, start=len(self.frontier)):
            if node.op in VIEWS:
                memory[k] = memory[self._at[node.rule.reads[0].value.name]]
            elif node.value.name in over:
                memory[k] = memory[self._at[node.rule.reads[over[node.value.name]].value.name]]
        return memory

    @cached_property
    def _owned(self) -> Array:
        """1 for values that hold memory of their own, and none of a stored map."""
        count = len(self.frontier)
        return np.array([float(k >= count and memory == k) for k, memory in enumerate(self._memory_of)])

    @cached_property
    def _saved(self) -> Array:
        """1 for values whose memory autograd keeps."""
        saved = np.zeros(len(self.values))
        for node in self.nodes:
            if node.op in SAVES_RESULT:
                saved[self._memory_of[self._at[node.value.name]]] = 1
            elif node.op not in SAVES_NOTHING and node.op not in VIEWS:
                for read in node.rule.reads:
                    saved[self._memory_of[self._at[read.value.name]]] = 1
        return saved * self._owned

    @cached_property
    def _indices(self) -> Array:
        """Bytes per element of the positions that a max-pool saves beside its result."""
        return np.array([0.0] * len(self.frontier) + [8.0 if "max_pool" in n.op else 0.0 for n in self.nodes])

    @cached_property
    def _alive(self) -> Array:
        """By step and value: whether its memory lives during the step, when dead values are dropped at once."""
        last = list(range(len(self.values)))
        for k, node in enumerate(self.nodes, start=len(self.frontier)):
            for read in node.rule.reads:
                last[self._memory_of[self._at[read.value.name]]] = k
            last[self._memory_of[k]] = max(last[self._memory_of[k]], k)
        steps = np.arange(len(self.values))[:, None]
        return ((np.arange(len(self.values)) <= steps) & (steps <= np.array(last))).astype(np.float64)

    @cached_property
    def _reads(self) -> Array:
        """By node and value: whether the node reads the value."""
        reads = np.zeros((len(self.nodes), len(self.values)))
        for k, node in enumerate(self.nodes):
            for read in node.rule.reads:
                reads[k, self._at[read.value.name]] = 1
        return reads

    @cached_property
    def _weights(self) -> int:
        """Bytes of the global values that its operations use."""
        sides = {value.name: value for node in self.nodes for value in node.rule.side}
        return sum(prod(value.shape) * value.dtype.itemsize for value in sides.values())

    @cached_property
    def _kinds(self) -> dict[str, list[int]]:
        """The positions of the nodes of each kind."""
        kinds: dict[str, list[int]] = {}
        for k, node in enumerate(self.nodes):
            kinds.setdefault(kind_of(node), []).append(k)
        return kinds

    # ------------------------------------------------------------------ options

    @cached_property
    def options(self) -> tuple[Option, ...]:
        """Every tile worth considering, the largest first."""
        return tuple(self.at(self.tiles if self.tiles is not None else candidate_tiles(self.target.extents)))

    @cached_property
    def recomputed(self) -> list[Option]:
        """The options of which no other is both smaller and faster, where tiles are computed again; smallest first."""
        return _front(self.options, lambda o: (o.working, o.recompute))

    @cached_property
    def keeping(self) -> list[Option]:
        """The same where graphs are kept."""
        return _front(self.options, lambda o: (o.kept, o.keep))

    def within(self, limit: int) -> Option:
        """The fastest option whose backward takes no more bytes, else the smallest."""
        return self.recomputed[max(0, bisect_right(self._limits, limit) - 1)]

    @cached_property
    def _limits(self) -> list[int]:
        return [option.working for option in self.recomputed]

    def correct(self, ratios: Sequence[float]) -> None:
        """Multiply the bytes of every option by what measuring one of them showed.

        A ratio out of all proportion is of nothing to something: it says nothing of other tiles.
        """
        self.corrections = tuple(
            known * (ratio if 1 / 8 <= ratio <= 8 else 1.0)
            for known, ratio in zip(self.corrections, ratios, strict=True)
        )
        for name in ("options", "recomputed", "keeping", "_limits"):
            self.__dict__.pop(name, None)

    def at(self, tiles: Sequence[tuple[int, ...]]) -> list[Option]:
        """The options of given tiles."""
        typical, total = self._depths, self._depths
        steps = np.array(tiles, dtype=np.float64)
        along = [self.lengths(axis, steps[:, axis]) for axis in range(steps.shape[1])]
        for one, all_of_them in along:
            typical, total = typical * one, total * all_of_them
        counts = np.ceil(np.array(self.target.extents) / steps).prod(axis=1)
        forward, last, backward = self._seconds(typical, total, counts, [one for one, _ in along])
        running, saved, working = self._bytes(typical, counts)
        if not self.trains:
            last, backward, saved, working = forward, 0 * backward, 0 * saved, running
        counts = np.ceil(counts * self.running)
        forward, last, backward = (seconds * self.running for seconds in (forward, last, backward))
        columns = (counts, forward, forward - last, backward, running, saved, working)
        return [
            Option(tile, int(n), float(f), float(a), float(b), int(r), int(s), int(w))
            for tile, n, f, a, b, r, s, w in zip(tiles, *columns, strict=True)
        ]

    def _seconds(self, typical: Array, total: Array, counts: Array, along: list[Array]) -> tuple[Array, Array, Array]:
        """Seconds of all tiles: forward, the part of it that backward need not repeat, and backward."""
        times, offset = self.times, len(self.frontier)
        bytes_of, all_bytes = typical * self._itemsizes, total * self._itemsizes
        made = slice(offset, None)
        touched = bytes_of @ self._reads.T + bytes_of[:, made]
        moved = all_bytes @ self._reads.T + all_bytes[:, made]
        calls = counts * sum(len(ks) for kind, ks in self._kinds.items() if kind != "free")
        forward, backward = calls * times.call + counts * times.tile, 2 * calls * times.call + counts * times.tile
        # Every tile brings every weight into the processor's own layout, and adds to every weight's gradient.
        weights = counts * self._weights * self._memory[0]
        forward, backward = forward + 2 * weights, backward + 6 * weights
        last = np.zeros(len(counts))
        for kind, positions in self._kinds.items():
            if kind == "free":
                continue
            size = touched[:, positions]
            work = np.array([units_of(self.nodes[k], kind) for k in positions])
            units = total[:, made][:, positions] * work if work.any() else moved[:, positions]
            # Rates are those of float32; other dtypes move, and roughly compute, by their width.
            width = self._itemsizes[made][positions] / 4 if work.any() else 1.0
            ahead = units * width * times.rate(kind, False, size)
            back = units * width * times.rate(kind, True, size)
            for column, k in enumerate(positions):
                node = self.nodes[k]
                slow = self._slowness(node, along)
                if all(read.value.name in self.image for read in node.rule.reads) and "first" not in kind:
                    back[:, column] *= 0.5 if node.rule.side else 0.0
                forward = forward + ahead[:, column] * slow
                backward = backward + back[:, column] * slow
                if node.rule.ghost is not None and node.value is self.target:
                    last = last + ahead[:, column] * slow
        out = all_bytes[:, self._at[self.target.name]]
        for _ in self.reductions:
            size = bytes_of[:, self._at[self.target.name]]
            forward = forward + out * times.rate("statistics", False, size)
            backward = backward + out * times.rate("statistics", True, size)
        return self._with_copies(forward, last, backward, out, all_bytes, counts)

    def _with_copies(
        self, forward: Array, last: Array, backward: Array, out: Array, all_bytes: Array, counts: Array
    ) -> tuple[Array, Array, Array]:
        """Add what moves between tiles and maps: results written, gradients added; one whole tile moves nothing."""
        several = counts > 1
        far, fresh = self._memory
        if self.stored:
            forward = forward + several * out * (far + fresh)
            backward = backward + several * out * far
        for k, value in enumerate(self.frontier):
            if value.name not in self.image:
                backward = backward + several * all_bytes[:, k] * 2 * far
        return forward, last, backward

    @cached_property
    def _memory(self) -> tuple[float, float]:
        """Seconds a byte of memory outside the caches, and of fresh memory."""
        copy = self.times.rates["copy"].forward
        return copy[2] * 1e-9, copy[3] * 1e-9

    def _slowness(self, node: Local, along: list[Array]) -> Array | float:
        if node.rule.slowness is None:
            return 1.0
        at = self._at[node.rule.reads[0].value.name]
        found: Array = node.rule.slowness([lengths[:, at] for lengths in along])
        return found

    def _bytes(self, typical: Array, counts: Array) -> tuple[Array, Array, Array]:
        """Bytes of one tile: the height of its forward, what autograd saves, the height of its backward."""
        bytes_of = typical * self._itemsizes
        own = bytes_of * self._owned
        largest = np.max(bytes_of, axis=1)
        running = np.max(own @ self._alive.T, axis=1)
        saved = own @ self._saved + typical @ self._indices
        if self.nodes:
            # A kept tile holds its result, beside the map that it was copied to; a whole one is the map itself.
            result, memory = bytes_of[:, -1], self._memory_of[-1]
            saved = saved + result * (counts > 1) - own[:, memory] * self._saved[memory]
        working = np.maximum(saved, running) + 2 * largest
        if self.reductions:
            # Statistics look at the tile less its mean; their gradient is a tile too, in two terms.
            running, working = running + bytes_of[:, -1], working + 2 * bytes_of[:, -1]
        f, s, w = self.corrections
        return running * f, saved * s, working * w


@lru_cache(maxsize=256)
def candidate_tiles(extents: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Tiles to consider: equal cuts of every axis, strips, slabs, and shapes between; the largest first."""
    steps = [
        list(
            dict.fromkeys(-(-extent // cut) for cut in CUTS if cut == 1 or -(-extent // cut) >= min(NARROWEST, extent))
        )
        for extent in extents
    ]
    found: dict[tuple[int, ...], None] = {}

    def step(axis: int, k: int) -> int:
        return steps[axis][max(0, min(k, len(steps[axis]) - 1))]

    last = max(map(len, steps))
    for k in range(last):
        for behind in _BEHIND[len(extents)]:
            # Axis a is cut as often as the first one, less by so many places; None: not cut at all.
            found[tuple(step(a, 0 if less is None else k - less) for a, less in enumerate(behind))] = None
    return sorted(found, key=lambda tile: (_count(extents, tile), tile))


_BEHIND: dict[int, tuple[tuple[int | None, ...], ...]] = {
    1: ((0,),),
    2: ((0, 0), (0, 2), (0, 4), (0, None), (2, 0), (1, 0), (0, 1)),
    3: ((0, 0, 0), (0, 0, 2), (0, 2, 2), (2, 0, 0), (2, 2, 0), (0, 0, None), (0, None, None), (1, 1, 0), (3, 3, 0),
        (0, 2, 0), (0, 2, None), (4, 4, 0)),
}  # fmt: skip


def seconds_of(graph: Graph, stages: Iterable[Stage], times: Times, sharing: Sharing | None = None) -> float:
    """The seconds of a step that runs these stages as they are; of shared tiles those that run."""
    inputs = frozenset(value.name for value in graph.inputs.values() if value.spatial)
    needs = requiring(graph, set(graph.trained))
    total = 0.0
    for stage in stages:
        piece = Piece(
            stage.target,
            stage.nodes,
            stage.frontier,
            stage.reductions,
            stage.stored,
            times,
            inputs,
            stage.name in needs,
        )
        (option,) = piece.at([stage.tile])
        share = 1.0 if sharing is None else sharing.count(stage) / stage.tiles
        total += share * (option.keep if stage.way == "keep" else option.recompute)
    return total


def _front(options: Sequence[Option], of: Callable[[Option], tuple[int, float]]) -> list[Option]:
    """Sorted by bytes, without those that are no faster than a smaller one."""
    front: list[Option] = []
    for option in sorted(options, key=of):
        if not front or of(option)[1] < of(front[-1])[1]:
            front.append(option)
    return front


def _count(extents: Iterable[int], tile: Iterable[int]) -> int:
    count = 1
    for extent, step in zip(extents, tile, strict=True):
        count *= -(-extent // step)
    return count
