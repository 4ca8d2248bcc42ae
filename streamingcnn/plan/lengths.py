"""How many pixels of every value a tile needs, axis by axis.

Boxes are products of intervals, and what an interval needs along one axis does not depend on the other axes. So
lengths are found per axis and multiplied:

    result   [0, 40)  x  [0, 60)          conv 3x3 needs  [0, 41) x [0, 61)
    units    40 * 60 * channels * ...     all tiles of a grid together: (sum of lengths) x (sum of lengths)

which makes a hundred tile sizes as cheap as one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from ..boxes import Interval, merge
from ..graph import Local
from ..ops.axes import AxisMap
from ..ops.rule import Value
from .times import Array

__all__ = ["Lengths"]

#: By operation, the positions of what it reads and what it needs of each.
Steps = tuple[tuple[tuple[int, AxisMap], ...], ...]


class Lengths:
    """What tiles of a target need of the values it is made from.

    Args:
        target: the value that is cut into tiles.
        nodes: its operations, in graph order.
        at: the positions of all values by name, those of the frontier first.
    """

    def __init__(self, target: Value, nodes: tuple[Local, ...], at: Mapping[str, int]) -> None:
        self.target, self.nodes, self._at = target, nodes, at
        #: Where the values of the frontier end.
        self._offset = len(at) - len(nodes)

    def of_steps(self, axis: int, steps: Array, within: Interval | None = None) -> tuple[Array, Array]:
        """Per step and value: the pixels of a typical tile along an axis, and those of all tiles together.

        Args:
            axis: of the target.
            steps: the sizes of tiles.
            within: the interval that the tiles fill; None: all of the target.
        """
        extent = self.target.extents[axis]
        low, high = (0, extent) if within is None else within
        asked = extent, self._offset, self._steps(axis)
        try:
            slope, halo, border, whole = _line(*asked)
        except TypeError:  # a rule of the user's own whose axes cannot be hashed
            slope, halo, border, whole = _line.__wrapped__(*asked)
        counts = np.ceil((high - low) / steps)[:, None]
        rest = high - low - (counts - 1) * steps[:, None]
        typical = np.minimum(slope * steps[:, None] + halo, whole)
        # One end of the map cuts off half of what both do.
        border = border * ((low == 0) + (high == extent)) / 2
        total = (counts - 1) * typical + np.minimum(slope * rest + halo, whole) - border
        least = whole if (low, high) == (0, extent) else np.minimum(slope * (high - low) + halo, whole) - border
        return np.where(counts == 1, least, typical), np.where(counts == 1, least, np.maximum(total, least))

    def _steps(self, axis: int) -> Steps:
        return tuple(
            tuple((self._at[read.value.name], read.maps[axis]) for read in node.rule.reads) for node in self.nodes
        )


@lru_cache(maxsize=4096)
def _line(extent: int, offset: int, steps: Steps) -> tuple[Array, Array, Array, Array]:
    """What an interval of n pixels needs of each value along an axis, as ``slope * n + halo``.

    Two intervals in the middle of the map give the line, one at either end what the border cuts off all tiles
    together, the whole map the most there is. The blocks of a network are mostly alike, and so are its axes: what was
    found for one serves all.
    """
    whole = _of_interval((0, extent), offset, steps)
    few, many = max(1, extent // 16), max(1, extent // 4)
    low, middle = extent // 2, extent // 2
    short = _of_interval((low, low + few), offset, steps)
    long = _of_interval((middle - many // 2, middle - many // 2 + many), offset, steps)
    slope = (long - short) / (many - few) if many > few else whole / extent
    halo = np.maximum(long - slope * many, 0.0)
    first, last = _of_interval((0, many), offset, steps), _of_interval((extent - many, extent), offset, steps)
    border = np.maximum(2 * long - first - last, 0.0)
    for column in (slope, halo, border, whole):
        column.flags.writeable = False
    return slope, halo, border, whole


def _of_interval(interval: Interval, offset: int, steps: Steps) -> Array:
    """The pixels of each value that an interval of the last one needs: of the frontier first, then of each step."""
    count = offset + len(steps)
    wanted: list[list[Interval]] = [[] for _ in range(count)]
    wanted[-1] = [interval]
    found = np.zeros(count)
    for k in range(count - 1, -1, -1):
        intervals = wanted[k]
        if not intervals:
            continue
        if len(intervals) > 1:
            intervals = [box[0] for box in merge([(i,) for i in intervals])]
        found[k] = sum(high - low for low, high in intervals)
        if k >= offset:
            for at, needed in steps[k - offset]:
                for low, high in intervals:
                    wanted[at].extend(needed.need(low, high))
    return found
