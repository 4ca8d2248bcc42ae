"""Constant blocks of an image that is a tensor: padding, masked background, empty space around a body.

A few pixels of each block are looked at first; where they already differ, as they do in nearly every block of a
photograph, nothing more is read. The rest is one pass over the blocks that may be constant.
"""

from __future__ import annotations

import itertools

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


def constant_blocks_in(image: Tensor) -> ConstantBlocks | None:
    """The constant blocks of an image (batch, channels, *space); None where they are too few to be of use.

    >>> image = torch.rand(1, 3, 256, 256)
    >>> constant_blocks_in(image) is None
    True
    >>> image[..., 64:, :] = 0.5
    >>> constant_blocks_in(image).labels[:, 0].tolist()
    [-1, 0, 0, 0]
    """
    axes = tuple(range(2, image.dim()))
    extents = tuple(image.shape[2:])
    steps = (SIDES[len(axes)],) * len(axes)
    if np.prod([-(-extent // step) for extent, step in zip(extents, steps, strict=True)]) < FEWEST:
        return None
    with torch.no_grad():
        alike = _corners_alike(image, steps)
        if alike.mean() < LEAST:
            return None
        boxes = list(grid(extents, steps))
        chosen = np.flatnonzero(alike)
        parts = [along(image, axes, boxes[k]) for k in chosen]
        firsts = [part[(..., *(slice(0, 1),) * len(axes))] for part in parts]
        same = torch.stack([(part == first).all() for part, first in zip(parts, firsts, strict=True)]).cpu().numpy()
        if same.sum() < LEAST * alike.size:
            return None
        values = torch.stack([first.flatten() for first in firsts])[torch.from_numpy(same).to(image.device)]
        _, which = values.unique(dim=0, return_inverse=True)
    labels = np.full(alike.size, -1, np.int64)
    labels[chosen[same]] = which.cpu().numpy()
    return ConstantBlocks(steps, labels.reshape(alike.shape))


def _corners_alike(image: Tensor, steps: tuple[int, ...]) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Per block, whether its middle and its last pixels are equal to its first one."""
    index = []
    for extent, step in zip(image.shape[2:], steps, strict=True):
        low = torch.arange(0, extent, step)
        high = (low + step).clamp(max=extent)
        index.append([k.to(image.device) for k in (low, (low + high) // 2, high - 1)])
    alike = None
    for choice in itertools.product(range(3), repeat=len(steps)):
        sample = image
        for axis, (which, places) in enumerate(zip(choice, index, strict=True), start=2):
            sample = sample.index_select(axis, places[which])
        if alike is None:
            first, alike = sample, torch.ones(sample.shape[2:], dtype=torch.bool, device=image.device)
            continue
        alike &= (sample == first).flatten(0, 1).all(0)
    assert alike is not None
    found: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] = alike.cpu().numpy()
    return found
