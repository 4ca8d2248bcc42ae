"""The ways to run one stage: for every tile worth considering, how long it takes and how many bytes it needs.

``tiles`` says which tiles are considered, ``lengths`` what they need of every value, ``held`` which values hold memory.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray

from ..boxes import Box, full, sizes, volume
from ..graph import Graph, Local, Reduced, requiring
from ..ops.rule import Value
from ..signature import Sharing
from .held import Held
from .lengths import Lengths
from .stages import Stage
from .tiles import candidate_tiles
from .times import Array, Times, kind_of, units_of


@dataclass(frozen=True)
class Option:
    """One way to cut a stage into tiles.

    Attributes:
        tile: pixels of the target per axis.
        tiles: how many run.
        forward, again, backward: seconds of all tiles: without autograd; once more for the gradient; the gradient.
        fresh: seconds that the memory of kept graphs takes, which no tile had before.
        running: bytes at the height of a tile's forward.
        saved: bytes that autograd keeps of one tile.
        working: bytes at the height of the backward of one tile that is computed again.
    """

    tile: tuple[int, ...]
    tiles: int
    forward: float
    again: float
    backward: float
    fresh: float
    running: int
    saved: int
    working: int

    @cached_property
    def recompute(self) -> float:
        """Seconds of a step whose tiles are computed again."""
        return self.forward + self.again + self.backward

    @cached_property
    def keep(self) -> float:
        """Seconds of a step whose tiles keep their autograd graphs."""
        return self.forward + self.backward + self.fresh

    @cached_property
    def kept(self) -> int:
        """Bytes that all tiles keep."""
        return self.saved * self.tiles


@dataclass(frozen=True, eq=False)
class Options:
    """Options as columns: a stage has hundreds, and all but a few are looked at together and never one by one."""

    tiles: Sequence[tuple[int, ...]]
    seconds: tuple[Array, ...]
    whole: tuple[NDArray[np.int64], ...]
    _made: dict[int, Option] = field(default_factory=dict)

    def __getitem__(self, k: int) -> Option:
        option = self._made.get(k)
        if option is None:
            count, running, saved, working = (int(column[k]) for column in self.whole)
            forward, again, backward, fresh = (float(column[k]) for column in self.seconds)
            option = self._made[k] = Option(
                self.tiles[k], count, forward, again, backward, fresh, running, saved, working
            )
        return option

    def of(self, tile: tuple[int, ...]) -> Option:
        """The option of a tile."""
        return self[self.tiles.index(tile)]

    def recomputed(self) -> NDArray[np.intp]:
        """Where those stand of which no other is both smaller and faster, with tiles computed again; smallest first."""
        forward, again, backward, _ = self.seconds
        return self._front(self.whole[3], forward + again + backward)

    def keeping(self) -> NDArray[np.intp]:
        """The same where graphs are kept."""
        forward, _, backward, fresh = self.seconds
        return self._front(self.whole[2] * self.whole[0], forward + backward + fresh)

    @staticmethod
    def _front(bytes_of: NDArray[np.int64], seconds: Array) -> NDArray[np.intp]:
        order = np.lexsort((seconds, bytes_of))
        fastest = np.minimum.accumulate(seconds[order])
        better = np.append(True, fastest[1:] < fastest[:-1])
        front: NDArray[np.intp] = order[better]
        return front


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
        running: by a tile, the share of them that run; less than 1 where an image has constant parts.
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
        running: Callable[[tuple[int, ...]], float] = lambda _: 1.0,
    ) -> None:
        self.target, self.nodes, self.frontier = target, nodes, frontier
        self.reductions, self.stored, self.times, self.image = reductions, stored, times, image
        self.trains, self.running = trains, running
        self.values = (*frontier, *(node.value for node in nodes))
        self._at = {value.name: k for k, value in enumerate(self.values)}
        self.lengths, self.held = Lengths(target, nodes, self._at), Held(nodes, self._at)
        #: The tiles to consider; None considers many.
        self.tiles: list[tuple[int, ...]] | None = None
        self.reads = frozenset(value.name for value in frontier)
        self.inside = frozenset(node.value.name for node in nodes) - {target.name}
        #: Measured bytes over estimated ones, of a tile's forward, graph and backward.
        self.corrections: tuple[float, ...] = (1.0, 1.0, 1.0)

    # ------------------------------------------------------------------ what does not depend on the tile

    @cached_property
    def _depths(self) -> Array:
        return np.array([value.depth for value in self.values], dtype=np.float64)

    @cached_property
    def _itemsizes(self) -> Array:
        return np.array([value.dtype.itemsize for value in self.values], dtype=np.float64)

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
    def _timed(self) -> dict[int, str]:
        """The positions of the nodes that take time, and their kinds."""
        kinds = {k: kind_of(node) for k, node in enumerate(self.nodes)}
        return {k: kind for k, kind in kinds.items() if kind != "free"}

    @cached_property
    def _work(self) -> Array:
        """By node that takes time: units per element of its result, forward and backward; 0 where bytes are units."""
        # Rates are those of float32; other dtypes move, and roughly compute, by their width.
        width = {k: self.nodes[k].value.dtype.itemsize / 4 for k in self._timed}
        work = [
            [width[k] * each for each in units_of(self.nodes[k], kind, self.times)] for k, kind in self._timed.items()
        ]
        return np.array(work).reshape(-1, 2).T[:, None]

    # ------------------------------------------------------------------ options

    @cached_property
    def options(self) -> Options:
        """Every tile worth considering, the largest first."""
        return self.at(self.tiles if self.tiles is not None else candidate_tiles(self.target.extents))

    def within(self, limit: int) -> Option:
        """The fastest option, its tiles computed again, whose backward takes no more bytes; else the smallest."""
        return self.options[self._recomputed[max(0, bisect_right(self._limits, limit) - 1)]]

    @property
    def fastest(self) -> Option:
        """The fastest option whose tiles are computed again."""
        return self.options[self._recomputed[-1]]

    @cached_property
    def keeping(self) -> tuple[Option, Option]:
        """The smallest option whose graphs are kept, and the fastest."""
        front = self.options.keeping()
        return self.options[int(front[0])], self.options[int(front[-1])]

    @cached_property
    def _recomputed(self) -> list[int]:
        found: list[int] = self.options.recomputed().tolist()
        return found

    @cached_property
    def _limits(self) -> list[int]:
        found: list[int] = self.options.whole[3][self._recomputed].tolist()
        return found

    def correct(self, ratios: Sequence[float]) -> None:
        """Multiply the bytes of every option by what measuring one of them showed.

        A ratio out of all proportion is of nothing to something: it says nothing of other tiles.
        """
        self.corrections = tuple(
            known * (ratio if 1 / 8 <= ratio <= 8 else 1.0)
            for known, ratio in zip(self.corrections, ratios, strict=True)
        )
        for name in ("options", "keeping", "_recomputed", "_limits"):
            self.__dict__.pop(name, None)

    def at(self, tiles: Sequence[tuple[int, ...]], within: Box | None = None) -> Options:
        """The options of given tiles.

        Args:
            tiles: pixels of the target per axis.
            within: the box of the target that is cut into them; None: all of it.
        """
        typical, total = self._depths, self._depths
        box = full(self.target.extents) if within is None else within
        steps = np.minimum(np.array(tiles, dtype=np.float64), sizes(box))
        along = [self.lengths.of_steps(axis, steps[:, axis], interval) for axis, interval in enumerate(box)]
        for one, all_of_them in along:
            typical, total = typical * one, total * all_of_them
        counts = np.ceil(np.array(sizes(box)) / steps).prod(axis=1)
        forward, last, backward = self._seconds(typical, total, counts, [one for one, _ in along])
        running, saved, working = self._bytes(typical, counts)
        if not self.trains:
            last, backward, saved, working = forward, 0 * backward, 0 * saved, running
        shares = np.array([self.running(tile) for tile in tiles])
        counts = np.ceil(counts * shares)
        forward, last, backward = (seconds * shares for seconds in (forward, last, backward))
        # The rates of one whole tile, which is large, have it in them.
        fresh = saved * counts * self._memory[1] * (counts > 1)
        whole = tuple(column.astype(np.int64) for column in (counts, running, saved, working))
        return Options(tiles, (forward, forward - last, backward, fresh), whole)

    def _seconds(self, typical: Array, total: Array, counts: Array, along: list[Array]) -> tuple[Array, Array, Array]:
        """Seconds of all tiles: forward, the part of it that backward need not repeat, and backward."""
        times, offset = self.times, len(self.frontier)
        bytes_of, all_bytes = typical * self._itemsizes, total * self._itemsizes
        made = slice(offset, None)
        touched = bytes_of @ self._reads.T + bytes_of[:, made]
        moved = all_bytes @ self._reads.T + all_bytes[:, made]
        calls = counts * len(self._timed)
        forward, backward = calls * times.call + counts * times.tile, 2 * calls * times.call + counts * times.tile
        # Every tile brings every weight into the processor's own layout, and adds to every weight's gradient.
        weights = counts * self._weights * self._memory[0]
        forward, backward = forward + 2 * weights, backward + 6 * weights
        last = np.zeros(len(counts))
        if self._timed:
            positions = list(self._timed)
            transfers = moved[:, positions]
            units = np.where(self._work > 0, total[:, made][:, positions] * self._work, transfers)
            seconds = times.seconds(list(self._timed.values()), touched[:, positions], units, transfers)
            for column, (k, kind) in enumerate(self._timed.items()):
                node = self.nodes[k]
                if node.rule.slowness is not None:
                    seconds[..., column] *= self._slowness(node, along)
                if "first" not in kind and all(read.value.name in self.image for read in node.rule.reads):
                    seconds[1, :, column] *= 0.5 if node.rule.side else 0.0
                if node.rule.ghost is not None and node.value is self.target:
                    last = last + seconds[0, :, column]
            ahead, back = seconds.sum(axis=-1)
            forward, backward = forward + ahead, backward + back
        out = all_bytes[:, self._at[self.target.name]]
        for _ in self.reductions:
            size, units = bytes_of[:, [self._at[self.target.name]]], out[:, None]
            ahead, back = times.seconds(["statistics"], size, np.stack([units, units]), units)[..., 0]
            forward, backward = forward + ahead, backward + back
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

    def _slowness(self, node: Local, along: list[Array]) -> Array:
        assert node.rule.slowness is not None
        at = self._at[node.rule.reads[0].value.name]
        found: Array = node.rule.slowness([lengths[:, at] for lengths in along])
        return found

    def _bytes(self, typical: Array, counts: Array) -> tuple[Array, Array, Array]:
        """Bytes of one tile: the height of its forward, what autograd saves, the height of its backward."""
        bytes_of = typical * self._itemsizes
        own = bytes_of * self.held.owned
        largest = np.max(bytes_of, axis=1)
        running = np.max(own @ self.held.alive.T, axis=1)
        saved = own @ self.held.saved + typical @ self.held.indices
        if self.nodes:
            # A kept tile holds its result, beside the map that it was copied to; a whole one is the map itself.
            result, memory = bytes_of[:, -1], self.held.memory[-1]
            saved = saved + result * (counts > 1) - own[:, memory] * self.held.saved[memory]
        working = np.maximum(saved, running) + 2 * largest
        if self.reductions:
            # Statistics look at the tile less its mean; their gradient is a tile too, in two terms.
            running, working = running + bytes_of[:, -1], working + 2 * bytes_of[:, -1]
        f, s, w = self.corrections
        return running * f, saved * s, working * w


def seconds_of(
    graph: Graph,
    stages: Iterable[Stage],
    times: Times,
    sharing: Sharing | None = None,
    ranks: Callable[[Stage], Iterable[Box]] | None = None,
) -> float:
    """The seconds of a step that runs these stages as they are; of shared tiles those that run.

    Args:
        graph: the captured network.
        stages: with their tiles and ways.
        times: the constants of the device.
        sharing: which tiles run.
        ranks: by stage, the boxes that several ranks make of its target. A stage then takes what the slowest of them
            takes, as the others wait for its seams.
    """
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
        share = 1.0 if sharing is None else sharing.count(stage) / stage.tiles
        boxes = {full(stage.target.extents)} if ranks is None else {box for box in ranks(stage) if volume(box)}
        options = [piece.at([stage.tile], box)[0] for box in boxes]
        total += share * max(option.keep if stage.way == "keep" else option.recompute for option in options)
    return total
