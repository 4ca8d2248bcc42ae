"""Arrays as sources: a NumPy array, a memory-mapped file, a tensor, anything that is indexed by slices."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from streamingcnn.boxes import Box

__all__ = ["ArraySource"]

#: The usual order of spatial axes, from the last.
_LETTERS = "ZYX"


class ArraySource:
    """An array of (channels, *space), or (images, channels, *space), read by box.

    Example::

        image = ArraySource(np.load("slide.npy", mmap_mode="r"))             # (3, 65536, 65536) uint8 on disk

    Args:
        array: what has ``shape`` and gives an array or a tensor for slices: NumPy, a tensor, zarr.
        batched: whether its first axis counts images.
    """

    def __init__(self, array: Any, batched: bool = False) -> None:
        self.array = array
        self.shape = tuple(int(size) for size in array.shape)
        self.space = len(self.shape) - 1 - batched
        if not 1 <= self.space <= 3:
            raise ValueError(f"an array of shape {self.shape} is no image; needed is (channels, *space)")
        self.axes = "N" * batched + "C" + _LETTERS[3 - self.space :]
        self.dtype = self._tensor((slice(0, 1),) * len(self.shape)).dtype

    def read(self, box: Box) -> torch.Tensor:
        """The pixels of a box, with all channels."""
        return self._tensor((..., *(slice(low, high) for low, high in box)))

    def _tensor(self, at: tuple[Any, ...]) -> torch.Tensor:
        part = self.array[at]
        return part if isinstance(part, torch.Tensor) else torch.from_numpy(np.array(part))

    def __repr__(self) -> str:
        return f"ArraySource({'x'.join(map(str, self.shape))}, {self.dtype})"
