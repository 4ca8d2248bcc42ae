"""How many tiles of a map run, where parts of the images are constant.

    blocks of the image    tiles of a later map, each with all of the image that it follows from
    B B B B B B            . . .
    B B B x B B            . x x      x: touches a block that is not constant, and is its own
    B B B B B B            . x x      .: one of a few that run once for all (signature.py)

It is an estimate from the blocks alone, quick enough to be asked for every size of a tile; what truly runs is found,
cell by cell, for the plan that is taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..graph import Graph, Local
from ..signature import WORTHWHILE, Content

__all__ = ["Running"]


@dataclass(frozen=True)
class _Seen:
    """The inputs that a pixel of a map follows from, and how far around its place, in shares of the image's axes."""

    inputs: frozenset[str]
    reach: tuple[float, ...]


@dataclass
class Running:
    """The share of a map's tiles that run, by their size.

    Args:
        graph: the captured network.
        content: what is known of its images.
    """

    graph: Graph
    content: Content
    _known: dict[tuple[object, ...], float] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        #: None: every tile of such a map is its own.
        self._seen: dict[str, _Seen | None] = {}
        if not self.content.constants:
            return
        for name, node in self.graph.nodes.items():
            if name in self.content.constants:
                self._seen[name] = _Seen(frozenset((name,)), (0.0,) * self.graph.space)
            elif isinstance(node, Local):
                self._seen[name] = self._through(node)

    def _through(self, node: Local) -> _Seen | None:
        """What a local operation makes of what its inputs follow from."""
        befores = [self._seen.get(read.value.name) for read in node.rule.reads]
        if not befores or None in befores or not node.rule.shift_invariant:
            return None
        inputs: frozenset[str] = frozenset()
        reach = [0.0] * self.graph.space
        for read, before in zip(node.rule.reads, befores, strict=True):
            assert before is not None
            inputs |= before.inputs
            for axis, (own, extent) in enumerate(zip(node.value.extents, read.value.extents, strict=True)):
                middle = own // 2
                for low, high in read.maps[axis].need(middle, middle + 1):
                    beyond = max(middle / own - low / extent, high / extent - (middle + 1) / own, 0.0)
                    reach[axis] = max(reach[axis], beyond + before.reach[axis])
        return _Seen(inputs, tuple(reach))

    def share(self, name: str, tile: tuple[int, ...]) -> float:
        """The share of the tiles of this size that run, of the map with this name; 1 where no other is worthwhile."""
        seen = self._seen.get(name)
        if seen is None:
            return 1.0
        extents = self.graph.nodes[name].value.extents
        key = (seen, extents, tile)
        if key not in self._known:
            own = np.logical_or.reduce([self._own(each, seen.reach, extents, tile) for each in seen.inputs])
            # Beside them, of each constant the one in the middle, and those at the borders.
            run = min(own.size, int(np.count_nonzero(own)) + (not own.all()) * 3 ** len(tile))
            share = run / own.size
            self._known[key] = share if share <= 1 - WORTHWHILE else 1.0
        return self._known[key]

    def _own(
        self, name: str, reach: tuple[float, ...], extents: tuple[int, ...], tile: tuple[int, ...]
    ) -> npt.NDArray[np.bool_]:
        """By tile: whether it follows from a block that is not constant."""
        blocks = self.content.constants[name]
        image = self.graph.nodes[name].value.extents
        own = blocks.labels < 0
        for axis, (first, end) in enumerate(_spans(blocks.steps, image, reach, extents, tile)):
            sums = np.cumsum(own, axis=axis, dtype=np.int64)
            sums = np.concatenate((np.zeros_like(sums.take([0], axis)), sums), axis)
            own = sums.take(end, axis) > sums.take(first, axis)
        return own


def _spans(
    steps: tuple[int, ...],
    image: tuple[int, ...],
    reach: tuple[float, ...],
    extents: tuple[int, ...],
    tile: tuple[int, ...],
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Per axis, of every tile: the first block that it follows from, and the one after the last."""
    for step, size, far, extent, length in zip(steps, image, reach, extents, tile, strict=True):
        low = np.arange(0, extent, length)
        high = np.minimum(low + length, extent)
        count = -(-size // step)
        first = np.floor((low / extent - far) * size / step)
        end = np.ceil((high / extent + far) * size / step)
        yield first.clip(0, count - 1).astype(np.int64), end.clip(1, count).astype(np.int64)
