"""From windows to pixels: crops out of a tensor, on its device, or out of a source, box by box.

A crop that hangs over the lower or right border is filled up behind the image. The published code writes such a crop
shifted instead, its content against the lower right corner and the filling in front; ``reference=True`` does so too:

    behind:  a a a .     reference:  . . . .        a  the image
             a a a .                 . a a a        .  its lowest value
             . . . .                 . a a a
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from streamingcnn.sources.source import Source

__all__ = ["crop", "crop_source", "lowest"]

#: Rows of a source that are read at a time to find its lowest value.
_STRIP = 512


def crop(
    image: Tensor, rows: Tensor, columns: Tensor, size: tuple[int, int], slices: Tensor, *, reference: bool = False
) -> Tensor:
    """Cut crops out of a volume, (N, C, D, H, W), at the pixels (N, K) of their upper left corners.

    >>> image = torch.arange(9.0).view(1, 1, 1, 3, 3)
    >>> at = torch.tensor([[1]])
    >>> crop(image, at, at, (3, 3), torch.tensor([[[0]]]))[0, 0, 0, 0]
    tensor([[4., 5., 0.],
            [7., 8., 0.],
            [0., 0., 0.]])
    >>> crop(image, at, at, (3, 3), torch.tensor([[[0]]]), reference=True)[0, 0, 0, 0]
    tensor([[0., 0., 0.],
            [0., 4., 5.],
            [0., 7., 8.]])

    ``slices`` (N, K, S) are those that each crop holds. The result is (N, K, C, S, height, width); what is beyond the
    image has the lowest value of its slice.
    """
    images, _, _, height, width = image.shape
    (y, inside_y), (x, inside_x) = (
        _along(start, side, extent, reference)
        for start, side, extent in ((rows, size[0], height), (columns, size[1], width))
    )
    n = torch.arange(images, device=image.device)[:, None, None, None, None]
    at = slices[:, :, :, None, None]
    # Indices on either side of a slice bring their axes to the front: (N, K, S, height, width, C).
    pixels = image[n, :, at, y[:, :, None, :, None], x[:, :, None, None, :]].movedim(-1, 2)
    floor = image.amin((3, 4))[n[..., 0, 0], :, slices].movedim(-1, 2)[..., None, None]
    inside = (inside_y[..., :, None] & inside_x[..., None, :])[:, :, None, None]
    return torch.where(inside, pixels, floor)


def _along(start: Tensor, side: int, extent: int, reference: bool) -> tuple[Tensor, Tensor]:
    """The pixel of each place of a crop along one axis, (N, K, side), and whether it is inside the image."""
    start = start.clamp(0, extent - 1)[..., None]
    over = (start + side - extent).clamp(min=0) if reference else torch.zeros_like(start)
    pixel = start + torch.arange(side, device=start.device) - over
    return pixel.clamp(0, extent - 1), (pixel >= start) & (pixel < extent)


def crop_source(
    source: Source,
    rows: Tensor,
    columns: Tensor,
    size: tuple[int, int],
    slices: Tensor,
    *,
    dtype: torch.dtype,
    reference: bool = False,
) -> Tensor:
    """The same crops, read out of a source: their boxes alone are read, and the whole only where one hangs over.

    A source of two spatial axes is a volume of one slice. The result is on the device of ``rows``.
    """
    batched, flat = source.axes.startswith("N"), len(source.axes.lstrip("N")) == 3
    shape = source.shape if batched else (1, *source.shape)
    height, width = shape[-2:]
    made = torch.empty((*slices.shape[:2], shape[1], slices.shape[2], *size), dtype=dtype)
    floors: dict[int, Tensor] = {}
    wanted = slices.tolist()
    for n, k in product(range(slices.shape[0]), range(slices.shape[1])):
        top = min(max(int(rows[n, k]), 0), height - 1)
        left = min(max(int(columns[n, k]), 0), width - 1)
        high, wide = min(size[0], height - top), min(size[1], width - left)
        corner = (size[0] - high, size[1] - wide) if reference else (0, 0)
        for s, z in enumerate(wanted[n][k]):
            box = ((top, top + high), (left, left + wide))
            part = source.read(box if flat else ((z, z + 1), *box))
            part = (part if batched else part[None])[n].reshape(shape[1], high, wide)
            if (high, wide) != size:
                if z not in floors:
                    floors[z] = lowest(source, z)
                made[n, k, :, s] = floors[z][n].to(dtype)[:, None, None]
            made[n, k, :, s, corner[0] : corner[0] + high, corner[1] : corner[1] + wide] = part.to(dtype)
    return made.to(rows.device)


def lowest(source: Source, z: int = 0) -> Tensor:
    """The lowest value of each image and channel of a source, (N, C), in one of its slices; read strip by strip."""
    flat = len(source.axes.lstrip("N")) == 3
    height, width = source.shape[-2:]
    found: Sequence[Tensor] = []
    for top in range(0, height, _STRIP):
        box = ((top, min(top + _STRIP, height)), (0, width))
        part = source.read(box if flat else ((z, z + 1), *box))
        found = [*found, part.to(torch.float64).flatten(-2).amin(-1)]
    low = torch.stack(list(found)).amin(0)
    low = low if flat else low[..., 0]
    return low if source.axes.startswith("N") else low[None]
