"""Where to look closer: the windows of a saliency map that hold most of it, one after another.

    1. each class of a map is stretched to 0..1, and the classes are summed to a score
    2. the window with the highest mean score is taken, at ties the first in reading order
    3. the score inside it becomes 0, and 2. is repeated

In a volume the best window of all slices is taken, and becomes 0 in the slices near it as well. Windows are found for
all images of a batch at the same time, on the device of the map, and nothing is copied to the host. No gradient passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Regions", "find_regions", "score_of", "to_pixels", "window_of"]


class Regions(NamedTuple):
    """Windows of a batch of maps, each of (N, K): cells of their upper left corner, and whether there was anything.

    A window whose score is 0 (the map is constant, or all of it was taken by windows before) stands at (0, 0) and is
    not valid. ``slices`` are all 0 in 2-D.
    """

    rows: Tensor
    columns: Tensor
    slices: Tensor
    valid: Tensor


def window_of(crop: Sequence[int], cells: Sequence[int], image: Sequence[int]) -> tuple[int, int]:
    """The size of a crop in cells of the map: rounded half to even, at least 1, at most the map.

    >>> window_of((256, 256), (46, 30), (2944, 1920))
    (4, 4)
    """
    high, wide = (
        min(max(1, round(side * cell / extent)), cell) for side, cell, extent in zip(crop, cells, image, strict=True)
    )
    return high, wide


def score_of(saliency: Tensor) -> Tensor:
    """Each class stretched to 0..1 over all of its cells, summed: (N, classes, *space) to (N, *space).

    >>> score_of(torch.tensor([[[[2.0, 4.0]], [[3.0, 3.0]]]]))
    tensor([[[0., 1.]]])

    A class that is the same everywhere, or is not a number, adds nothing.
    """
    flat = saliency.detach().flatten(2)
    low, high = flat.amin(2, keepdim=True), flat.amax(2, keepdim=True)
    stretched = torch.where(high > low, (flat - low) / (high - low), torch.zeros_like(flat))
    return stretched.sum(1).view(saliency.shape[0], *saliency.shape[2:])


@torch.no_grad()
def find_regions(score: Tensor, window: tuple[int, int], count: int, *, thickness: int = 1, apart: int = 10) -> Regions:
    """The ``count`` best windows of each map, (N, h, w), or of each volume, (N, D, h, w).

    >>> score = torch.zeros(1, 6, 6)
    >>> score[0, 4, 1] = 1.0
    >>> found = find_regions(score, (2, 2), 2)
    >>> found.rows, found.columns, found.valid
    (tensor([[3, 0]]), tensor([[0, 0]]), tensor([[ True, False]]))

    Args:
        score: see :func:`score_of`.
        window: its height and width in cells, at most the map's.
        count: how many windows.
        thickness: slices that a window spans, odd; its mean is over those that exist.
        apart: slices on either side of a window in which its cells are taken as well.
    """
    volume = score[:, None].clone() if score.dim() == 3 else score.clone()
    images, depth, height, width = volume.shape
    if window[0] > height or window[1] > width:
        raise ValueError(f"a window of {window[0]} x {window[1]} cells does not fit a map of {height} x {width}")
    device = score.device
    z, y, x = (torch.arange(size, device=device) for size in (depth, height, width))
    across, steps = width - window[1] + 1, height - window[0] + 1
    order = torch.arange(depth * steps * across, device=device)
    found = []
    for _ in range(count):
        means = F.avg_pool2d(volume, window, stride=1)
        if thickness > 1:
            means = F.avg_pool1d(
                means.flatten(2).transpose(1, 2), thickness, 1, thickness // 2, count_include_pad=False
            ).transpose(1, 2)
        flat = means.reshape(images, -1)
        best = flat.amax(1, keepdim=True)
        # The first of equal windows, on every device.
        place = torch.where(flat == best, order, len(order)).amin(1)
        valid = best[:, 0] > 0
        place = torch.where(valid, place, torch.zeros_like(place))
        at_slice = place // (steps * across)
        row, column = place % (steps * across) // across, place % across
        taken = (
            ((z - at_slice[:, None]).abs() <= apart)[:, :, None, None]
            & ((y >= row[:, None]) & (y < row[:, None] + window[0]))[:, None, :, None]
            & ((x >= column[:, None]) & (x < column[:, None] + window[1]))[:, None, None, :]
        )
        volume.masked_fill_(taken & valid[:, None, None, None], 0.0)
        found.append((row, column, at_slice, valid))
    rows, columns, slices, valids = (torch.stack(each, 1) for each in zip(*found, strict=True))
    return Regions(rows, columns, slices, valids)


def to_pixels(cells: Tensor, along: int, extent: int) -> Tensor:
    """The pixels at which cells begin, of a map with so many cells along an extent of so many pixels.

    >>> to_pixels(torch.tensor([0, 17]), 21, 1339)
    tensor([   0, 1084])

    Rounded half to even, in float64.
    """
    return (cells.to(torch.float64) / along * extent).round().to(torch.int64)
