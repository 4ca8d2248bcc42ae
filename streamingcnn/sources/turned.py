"""An image that is turned and reflected without ever being there as a whole.

A box of the turned image is a box of the image itself: it is read there, and the few pixels of it are turned.

    image        turned by 1      box of the turned image -> box that is read
    a b c        c f              (rows 0..1, columns 1..2) is f  ->  (rows 1..2, columns 2..3)
    d e f        b e
                 a d
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from streamingcnn.boxes import Box
from streamingcnn.sources.source import ConstantBlocks, Source, constant_blocks_of

__all__ = ["TurnedSource"]


class TurnedSource:
    """A 2-D source turned by quarters, against the clock, and then reflected left to right.

    >>> from streamingcnn.sources import ArraySource
    >>> image = ArraySource(torch.arange(6).view(1, 2, 3))
    >>> TurnedSource(image, quarters=1).read(((0, 3), (0, 2)))
    tensor([[[2, 5],
             [1, 4],
             [0, 3]]])

    It gives what ``torch.rot90(pixels, quarters, (-2, -1))`` and then ``.flip(-1)`` give of all pixels.

    Args:
        source: the image, with two spatial axes.
        quarters: turns by 90 degrees; 0 to 3.
        mirror: whether left and right are swapped afterwards.
    """

    def __init__(self, source: Source, quarters: int = 0, mirror: bool = False) -> None:
        if len(source.axes.replace("N", "").replace("C", "")) != 2:
            raise ValueError(f"only images are turned; this source has axes {source.axes}")
        self.source, self.quarters, self.mirror = source, quarters % 4, mirror
        # A quarter turn is a transposition and then a flip of rows; of columns where it goes the other way.
        self._transposed = bool(quarters % 2)
        self._flips = [quarters % 4 in (1, 2), quarters % 4 in (2, 3)]
        self._flips[1] ^= mirror
        height, width = source.shape[-2:]
        self._extents = (width, height) if self._transposed else (height, width)
        self.shape = (*source.shape[:-2], *self._extents)
        self.dtype, self.axes = source.dtype, source.axes

    @property
    def mpp(self) -> tuple[float, float] | None:
        """Micrometres per pixel along (y, x) of the turned image."""
        known = getattr(self.source, "mpp", None)
        return known if known is None or not self._transposed else (known[1], known[0])

    def read(self, box: Box) -> torch.Tensor:
        """The pixels of a box of the turned image."""
        there = [
            (extent - high, extent - low) if flipped else (low, high)
            for (low, high), extent, flipped in zip(box, self._extents, self._flips, strict=True)
        ]
        pixels = self.source.read(tuple(reversed(there)) if self._transposed else tuple(there))
        if self._transposed:
            pixels = pixels.transpose(-2, -1)
        axes = [axis for axis, flipped in zip((-2, -1), self._flips, strict=True) if flipped]
        return pixels.flip(axes) if axes else pixels.contiguous()

    def constant_blocks(self) -> ConstantBlocks | None:
        """Those of the source, where they lie now."""
        found = constant_blocks_of(self.source)
        if found is None:
            return None
        labels, steps = found.labels, found.steps
        if self._transposed:
            labels, steps = labels.T, steps[::-1]
        for axis, flipped in enumerate(self._flips):
            if flipped:
                labels = _flipped(labels, axis, self._extents[axis], steps[axis])
        return ConstantBlocks(tuple(steps), np.ascontiguousarray(labels))

    def __repr__(self) -> str:
        return f"TurnedSource({self.source!r}, quarters={self.quarters}, mirror={self.mirror})"


def _flipped(labels: npt.NDArray[np.int64], axis: int, extent: int, step: int) -> npt.NDArray[np.int64]:
    """Labels of an axis that runs the other way; where it is no whole number of blocks, a block covers two old ones."""
    starts = np.arange(0, extent, step)
    ends = np.minimum(starts + step, extent)
    first = labels.take((extent - ends) // step, axis)
    last = labels.take((extent - 1 - starts) // step, axis)
    return np.where(first == last, first, -1)
