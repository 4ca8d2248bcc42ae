"""A map of numbers over a slide, and the slide with it drawn on top.

A heatmap is a small array that knows where it lies: its cells are squares of level-0 pixels, the first one in the
slide's corner. Every file that is made of it (`heat_files.py`) is in those coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from streamingcnn.slides.annotations import Outline

__all__ = ["COLOURS", "Heatmap", "colour_of", "overlay", "scaled_to_one"]

_OUTLINE = (0, 90, 0)
#: From cold to hot: value, then red, green, blue; straight lines between.
COLOURS = np.array([(0.0, 40, 60, 160), (0.35, 40, 170, 200), (0.6, 250, 220, 60), (1.0, 200, 20, 20)])


@dataclass(frozen=True, eq=False)
class Heatmap:
    """A map over a slide.

    Attributes:
        heat: (rows, columns) float32, 0 for cold to 1 for hot.
        scale: pixels of level 0 to a cell, along (y, x).
        size: height and width of level 0; the last cells may reach beyond it.
        mpp: micrometres to a pixel of level 0 along (y, x), or None.
        how: what it shows and how it was scaled to 0 to 1, in words.
    """

    heat: NDArray[np.float32]
    scale: tuple[float, float]
    size: tuple[int, int]
    mpp: tuple[float, float] | None
    how: str

    def at(self, extents: tuple[int, int]) -> Tensor:
        """The heat of every pixel of the slide scaled to ``extents``, bilinear between the middles of cells."""
        lines = []
        for axis in (0, 1):
            middle = (torch.arange(extents[axis]) + 0.5) * self.size[axis] / extents[axis]
            lines.append((2 * middle / (self.scale[axis] * self.heat.shape[axis]) - 1).float())
        grid = torch.stack(torch.meshgrid(*lines, indexing="ij")[::-1], dim=-1)[None]
        heat = torch.from_numpy(np.ascontiguousarray(self.heat))[None, None]
        return torch.nn.functional.grid_sample(heat, grid, padding_mode="border", align_corners=False)[0, 0]


def scaled_to_one(heat: NDArray[np.floating], highest: float = 0.995) -> NDArray[np.float32]:
    """Heat whose 0 stays 0 and whose ``highest`` quantile becomes 1; what lies above is 1 too.

    >>> scaled_to_one(np.array([[0.0, 1.0, 2.0, 4.0]]), highest=1.0)
    array([[0.  , 0.25, 0.5 , 1.  ]], dtype=float32)
    """
    top = float(np.quantile(heat, highest)) or float(heat.max()) or 1.0
    return np.asarray(np.clip(heat / top, 0, 1), np.float32)


def colour_of(heat: float) -> tuple[int, int, int]:
    """Red, green, blue of a heat from 0 to 1."""
    red, green, blue = (round(float(np.interp(heat, COLOURS[:, 0], COLOURS[:, 1 + c]))) for c in range(3))
    return red, green, blue


def overlay(
    image: Tensor,
    heat: Tensor,
    outlines: Sequence[Outline] = (),
    *,
    limits: tuple[float, float] = (0.0, 1.0),
    opacity: float = 0.6,
    downsample: float = 1.0,
) -> Image.Image:
    """The slide with heat laid over it, the hotter the denser, and the true outlines on top.

    Example::

        overlay(image, torch.sigmoid(logits), read_asap("tumor_001.xml")).save("tumor_001.png")

    Args:
        image: (3, height, width) uint8.
        heat: (rows, columns), stretched over the image whatever its size.
        outlines: closed lines in pixels of the full slide.
        limits: the heat that is coldest (transparent) and the one that is hottest.
        opacity: of the hottest heat, 0 to 1.
        downsample: pixels of the full slide per pixel of the image.
    """
    height, width = image.shape[1:]
    low, high = limits
    share = ((heat.detach().float() - low) / max(high - low, 1e-12)).clamp(0, 1)
    share = torch.nn.functional.interpolate(share[None, None], (height, width), mode="bilinear", align_corners=False)[
        0, 0
    ]
    heat_share = share.numpy()
    colours = np.stack([np.interp(heat_share, COLOURS[:, 0], COLOURS[:, 1 + c]) for c in range(3)], axis=-1)
    alpha = opacity * heat_share[..., None]
    slide: NDArray[np.float64] = image.permute(1, 2, 0).numpy().astype(np.float64)
    picture = Image.fromarray(np.rint(slide * (1 - alpha) + colours * alpha).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for outline in outlines:
        for ring in outline.rings:
            corners = [(float(x), float(y)) for x, y in ring / downsample]
            draw.line([*corners, corners[0]], fill=_OUTLINE, width=max(2, min(height, width) // 300))
    return picture
