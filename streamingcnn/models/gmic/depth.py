"""The slices of a volume through a 2-D trunk, some at a time, and computed again in the backward pass.

Slices do not see each other in a trunk whose norms look at one slice alone, so taking them one after another is exact.
What is held between forward and backward is the small map of each slice, not what the trunk computed on its way:

    forward     slice 1 -> map 1,  slice 2 -> map 2,  ...        (no graph)
    backward    ..., slice 2 again, with its graph, gradient, forgotten, slice 1 again, ...
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from streamingcnn.again import recomputed
from streamingcnn.boxes import Box
from streamingcnn.sources.source import Source

__all__ = ["SliceSource", "by_slices"]


class SliceSource:
    """One slice of a volume as a source of an image.

    >>> from streamingcnn.sources import ArraySource
    >>> SliceSource(ArraySource(torch.zeros(1, 70, 64, 48)), 3).read(((0, 8), (0, 8))).shape
    torch.Size([1, 8, 8])
    """

    def __init__(self, source: Source, slice: int) -> None:
        self.source, self.slice = source, slice
        self.shape = (*source.shape[:-3], *source.shape[-2:])
        self.dtype, self.axes = source.dtype, source.axes.replace("Z", "")

    def read(self, box: Box) -> Tensor:
        """The pixels of a box of the slice."""
        return self.source.read(((self.slice, self.slice + 1), *box)).squeeze(-3)


def by_slices(trunk: nn.Module, volume: Tensor | Source, at_once: int | None) -> Tensor:
    """The maps of all slices, (N, D, C, h, w), of a volume (N, C, D, H, W) or a source of one.

    >>> by_slices(nn.Conv2d(1, 4, 3, stride=2), torch.zeros(2, 1, 5, 9, 9), at_once=1).shape
    torch.Size([2, 5, 4, 4, 4])

    ``at_once`` slices go through the trunk together, and again in the backward pass; None: all, with one graph that
    holds everything. A source is read slice by slice. A batch norm that trains looks at all slices, so with one in the
    trunk all go together, as with None.
    """
    if _couples_slices(trunk):
        at_once = None
    if isinstance(volume, Tensor):
        images, depth = volume.shape[0], volume.shape[2]
        flat = volume.transpose(1, 2).flatten(0, 1)
        parts: Any = [flat] if at_once is None else flat.split(at_once)
    else:
        images, depth = (volume.shape[0] if volume.axes.startswith("N") else 1), volume.shape[-3]
        if _couples_slices(trunk):
            raise ValueError(
                "the trunk has batch norms that train, which look at all slices of a volume, and a source is read "
                "slice by slice; take GroupNorm, or norm.eval()"
            )
        parts = [SliceSource(volume, z) for z in range(depth)]
    maps: list[Tensor] = [trunk(part) if at_once is None else recomputed(trunk, part) for part in parts]
    if isinstance(volume, Tensor):
        joined: Tensor = torch.cat(maps).unflatten(0, (images, depth))
        return joined
    return torch.stack(maps, 1)


def _couples_slices(trunk: nn.Module) -> bool:
    kinds = (nn.BatchNorm2d, nn.SyncBatchNorm)
    return any(isinstance(m, kinds) and (m.training or not m.track_running_stats) for m in trunk.modules())
