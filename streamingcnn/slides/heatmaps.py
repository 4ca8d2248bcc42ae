"""A map of numbers drawn over the slide that it was computed from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from streamingcnn.slides.annotations import Outline

__all__ = ["overlay"]

_OUTLINE = (0, 90, 0)
#: From cold to hot: value, then red, green, blue; straight lines between.
_COLOURS = np.array([(0.0, 40, 60, 160), (0.35, 40, 170, 200), (0.6, 250, 220, 60), (1.0, 200, 20, 20)])


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
    colours = np.stack([np.interp(heat_share, _COLOURS[:, 0], _COLOURS[:, 1 + c]) for c in range(3)], axis=-1)
    alpha = opacity * heat_share[..., None]
    slide: NDArray[np.float64] = image.permute(1, 2, 0).numpy().astype(np.float64)
    picture = Image.fromarray(np.rint(slide * (1 - alpha) + colours * alpha).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for outline in outlines:
        corners = [(float(x), float(y)) for x, y in outline.points / downsample]
        draw.line([*corners, corners[0]], fill=_OUTLINE, width=max(2, min(height, width) // 300))
    return picture
