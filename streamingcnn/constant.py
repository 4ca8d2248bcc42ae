"""Constant blocks of an image that is a tensor: padding, masked background, empty space around a body.

A few pixels of each block are looked at first; where they already differ, as they do in nearly every block of a
photograph, nothing more is read. The rest is one pass over the blocks that may be constant.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .boxes import grid
from .ops.rule import along
from .sources.source import ConstantBlocks

#: The side of a block in pixels, by number of spatial axes.
SIDES = {1: 1024, 2: 64, 3: 16}
#: Fewer blocks than this, or a smaller share of constant ones, are not worth a look.
FEWEST, LEAST = 16, 1 / 16


def constant_blocks_in(image: Tensor, axes: tuple[int, ...]) -> ConstantBlocks | None:
    """The constant blocks of an image whose spatial axes are given; None where they are too few to be of use.

    >>> image = torch.rand(1, 3, 256, 256)
    >>> constant_blocks_in(image, (2, 3)) is None
    True
    >>> image[..., 64:, :] = 0.5
    >>> constant_blocks_in(image, (2, 3)).labels[:, 0].tolist()
    [-1, 0, 0, 0]
    """
    extents = tuple(image.shape[axis] for axis in axes)
    steps = (SIDES[len(axes)],) * len(axes)
    if np.prod([-(-extent // step) for extent, step in zip(extents, steps, strict=True)]) < FEWEST:
        return None
    with torch.no_grad():
        alike = _corners_alike(image, axes, steps)
        if alike.mean() < LEAST:
            return None
        boxes = list(grid(extents, steps))
        chosen = np.flatnonzero(alike)
        parts = [along(image, axes, boxes[k]) for k in chosen]
        corner = ((0, 1),) * len(axes)
        firsts = [along(part, axes, corner) for part in parts]
        same = torch.stack([(part == first).all() for part, first in zip(parts, firsts, strict=True)]).cpu().numpy()
        if same.sum() < LEAST * alike.size:
            return None
        values = torch.stack([first.flatten() for first in firsts])[torch.from_numpy(same).to(image.device)]
        _, which = values.unique(dim=0, return_inverse=True)
    labels = np.full(alike.size, -1, np.int64)
    labels[chosen[same]] = which.cpu().numpy()
    return ConstantBlocks(steps, labels.reshape(alike.shape))


def _corners_alike(
    image: Tensor, axes: tuple[int, ...], steps: tuple[int, ...]
) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Per block, whether its middle and its last pixel are equal to its first one."""
    first, middle, last = image, image, image
    for axis, step in zip(axes, steps, strict=True):
        extent = image.shape[axis]
        low = torch.arange(0, extent, step, device=image.device)
        high = (low + step).clamp(max=extent)
        first, middle, last = (
            sample.index_select(axis, places)
            for sample, places in ((first, low), (middle, (low + high) // 2), (last, high - 1))
        )
    alike = (first == middle) & (first == last)
    others = [dim for dim in range(image.dim()) if dim not in axes]
    for dim in reversed(others):
        alike = alike.all(dim)
    found: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] = alike.cpu().numpy()
    return found
