"""An image at another resolution: exact area averages, read box by box.

A pixel of the result covers so many pixels of the image, whole ones and parts of them, and is their mean, each
weighed by its part:

    image      |    0    |    1    |    2    |    3    |    4    |
    result     |          0           |           1           |         factor 2.2
    weights of 0:   1         1     .2         0        0               over their sum, 2.2

What a pixel is depends on its own place alone: the same sums in the same order, whatever box it is read with. So the
result of any box is that part of the whole resampled image, to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from streamingcnn.boxes import Box, full, grid, shift, sizes
from streamingcnn.sources.source import ConstantBlocks, Source, said_by

__all__ = ["ResampledSource"]

#: Pixels of the image that are held while a box is made.
_HELD = 1 << 20
#: Factors this close to a whole number are taken for it.
_CLOSE = 1e-6


class ResampledSource:
    """A source with every pixel the mean of the area that it covers.

    Example::

        half = ResampledSource(open_image("slide.svs", level=0), 2)      # or (2.0, 2.004), per axis
        half.read(((0, 256), (0, 256)))                                  # reads 512 x 512 pixels of the slide

    Pixels of integers are rounded to the nearest. A last row or column of less than a pixel is left out.

    Attributes:
        source: the image.
        factors: pixels of the image per pixel of this one, per spatial axis; at least 1.
    """

    def __init__(self, source: Source, factors: float | Sequence[float]) -> None:
        space = len(source.axes.replace("N", "").replace("C", ""))
        given = tuple(factors) if isinstance(factors, Sequence) else (factors,) * space
        if len(given) != space or any(factor < 1 - _CLOSE for factor in given):
            raise ValueError(f"factors={factors}: needed is one of at least 1, or one for each of {space} axes")
        self.source, self.dtype, self.axes = source, source.dtype, source.axes
        self.factors = tuple(float(round(f)) if abs(f - round(f)) < _CLOSE else float(f) for f in given)
        self._extents = tuple(source.shape[-space:])
        made = (
            max(1, int(extent / factor + _CLOSE)) for extent, factor in zip(self._extents, self.factors, strict=True)
        )
        self.shape = (*source.shape[:-space], *made)

    @property
    def mpp(self) -> tuple[float, ...] | None:
        """Micrometres per pixel along each spatial axis."""
        mpp = said_by(self.source, "mpp")
        return None if mpp is None else tuple(m * f for m, f in zip(mpp, self.factors, strict=True))

    @property
    def downsample(self) -> float:
        """Pixels of the full image per pixel of this one."""
        return float(said_by(self.source, "downsample", 1.0)) * self.factors[-1]

    def constant_blocks(self) -> ConstantBlocks | None:
        """None: pixels at the edge of a block are means over it."""
        return None

    def read(self, box: Box) -> torch.Tensor:
        """The pixels of a box; more of the image than a million pixels is read in parts."""
        lead = self.shape[: len(self.shape) - len(box)]
        made = torch.empty(*lead, *sizes(box), dtype=self.dtype)
        held = _HELD / prod(self.factors)
        steps = [max(1, extent) for extent in sizes(box)]
        while prod(steps) > held and max(steps) > 1:
            widest = steps.index(max(steps))
            steps[widest] = -(-steps[widest] // 2)
        for part in grid(sizes(box), steps):
            at: Any = (..., *(slice(low, high) for low, high in part))
            made[at] = self._means(shift(part, [low for low, _ in box]))
        return made

    def _means(self, box: Box) -> torch.Tensor:
        windows = [_windows(*each) for each in zip(box, self.factors, self._extents, strict=True)]
        first = [int(index[0, 0]) for index, _ in windows]
        last = [int(index[-1, -1]) + 1 for index, _ in windows]
        pixels = self.source.read(tuple(zip(first, last, strict=True))).numpy()
        # The last axis first: it has the longest runs of neighbours.
        for axis in range(len(box) - 1, -1, -1):
            index, weights = windows[axis]
            dim = pixels.ndim - len(box) + axis
            pixels = _weighed(pixels, dim, index - first[axis], weights)
        return self._rounded(pixels)

    def _rounded(self, means: npt.NDArray[np.float64]) -> torch.Tensor:
        found = torch.from_numpy(means)
        if not self.dtype.is_floating_point:
            found = found.add_(0.5).floor_()
        return found.to(self.dtype)

    def read_all(self) -> torch.Tensor:
        """All pixels; for images that fit into memory."""
        return self.read(full(self.shape[1:]))

    def close(self) -> None:
        """Let go of the file behind the image."""
        close = said_by(self.source, "close")
        if close is not None:
            close()

    def __repr__(self) -> str:
        factors = "x".join(f"{factor:.4g}" for factor in self.factors)
        return f"ResampledSource({self.source!r}, {factors})"


def _windows(
    interval: tuple[int, int], factor: float, extent: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """Per pixel of an interval, the pixels of the image it covers, and the part of each; (pixels, as many as most).

    >>> index, weights = _windows((0, 2), 2.5, 5)
    >>> index.tolist(), weights.tolist()
    ([[0, 1, 2, 3], [2, 3, 4, 4]], [[0.4, 0.4, 0.2, 0.0], [0.2, 0.4, 0.4, 0.0]])
    """
    low = np.arange(*interval, dtype=np.float64) * factor
    high = np.minimum(low + factor, extent)
    first = np.floor(low).astype(np.intp)
    count = int(np.ceil(factor)) + (0 if factor == int(factor) else 1)
    index = np.minimum(first[:, None] + np.arange(count), extent - 1)
    whole = first[:, None] + np.arange(count, dtype=np.float64)
    parts = np.clip(np.minimum(whole + 1, high[:, None]) - np.maximum(whole, low[:, None]), 0, 1)
    return index, parts / parts.sum(1, keepdims=True)


def _weighed(
    pixels: npt.NDArray[Any], dim: int, index: npt.NDArray[np.intp], weights: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """The weighed sums of neighbours along one dimension, one neighbour after another."""
    shape = [1] * pixels.ndim
    shape[dim] = -1
    total: npt.NDArray[np.float64] = pixels.take(index[:, 0], dim) * weights[:, 0].reshape(shape)
    for k in range(1, index.shape[1]):
        total += pixels.take(index[:, k], dim) * weights[:, k].reshape(shape)
    return total
