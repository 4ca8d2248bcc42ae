"""How many pixels of every value a tile needs, axis by axis.

Boxes are products of intervals, and what an interval needs along one axis does not depend on the other axes. So
lengths are found per axis and multiplied:

    result   [0, 40)  x  [0, 60)          conv 3x3 needs  [0, 41) x [0, 61)
    units    40 * 60 * channels * ...     all tiles of a grid together: (sum of lengths) x (sum of lengths)

which makes a hundred tile sizes as cheap as one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..boxes import Interval, merge
from ..graph import Local
from ..ops.rule import Value
from .times import Array

__all__ = ["Lengths"]


class Lengths:
    """What tiles of a target need of the values it is made from.

    Args:
        target: the value that is cut into tiles.
        nodes: its operations, in graph order.
        at: the positions of all values by name, those of the frontier first.
    """

    def __init__(self, target: Value, nodes: tuple[Local, ...], at: Mapping[str, int]) -> None:
        self.target, self.nodes, self._at = target, nodes, at
        self._lines: dict[int, tuple[Array, Array, Array, Array]] = {}

    def of_steps(self, axis: int, steps: Array, within: Interval | None = None) -> tuple[Array, Array]:
        """Per step and value: the pixels of a typical tile along an axis, and those of all tiles together.

        Args:
            axis: of the target.
            steps: the sizes of tiles.
            within: the interval that the tiles fill; None: all of the target.
        """
        extent = self.target.extents[axis]
        low, high = (0, extent) if within is None else within
        slope, halo, border, whole = self._line(axis)
        counts = np.ceil((high - low) / steps)[:, None]
        rest = high - low - (counts - 1) * steps[:, None]
        typical = np.minimum(slope * steps[:, None] + halo, whole)
        # One end of the map cuts off half of what both do.
        border = border * ((low == 0) + (high == extent)) / 2
        total = (counts - 1) * typical + np.minimum(slope * rest + halo, whole) - border
        least = whole if (low, high) == (0, extent) else np.minimum(slope * (high - low) + halo, whole) - border
        return np.where(counts == 1, least, typical), np.where(counts == 1, least, np.maximum(total, least))

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
        wanted: list[list[Interval]] = [[] for _ in self._at]
        wanted[-1 if self.nodes else self._at[self.target.name]] = [interval]
        found = np.zeros(len(self._at))
        offset = len(self._at) - len(self.nodes)
        for k in range(len(self._at) - 1, -1, -1):
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
