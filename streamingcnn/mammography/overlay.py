"""Pictures of what a network found: saliency over the image, outlines of masks, and the crops it looked at.

image       regions      benign       malignant    crop 1       crop 2
masks'      windows of   saliency     saliency     attention    attention
outlines    the crops    in green     in red       0.71         0.29
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from streamingcnn.mammography.measures import nearest

__all__ = ["overlay", "picture"]

#: Of the saliency and the outlines of each class, in order: benign, malignant, and two more.
COLOURS = ((0, 200, 60), (230, 30, 30), (60, 110, 255), (240, 200, 0))
_OUTLINES = ((150, 255, 150), (255, 170, 160), (170, 200, 255), (255, 240, 150))
_BOX = (255, 230, 0)
_TITLE, _GAP = 14, 4

Pixels = NDArray[np.generic]


def overlay(
    image: Pixels,
    saliency: Pixels | None = None,
    masks: Pixels | None = None,
    *,
    limits: tuple[float, float] = (0.0, 1.0),
    opacity: float = 0.6,
    window: tuple[float, float] | None = None,
) -> Image.Image:
    """An image in grey, the saliency of each class over it in its colour, the outlines of masks on top.

    >>> image, saliency = np.random.rand(64, 48), np.zeros((2, 4, 3))
    >>> saliency[1, 2, 1] = 1.0  # malignant: red
    >>> made = np.array(overlay(image, saliency))
    >>> made.shape, bool(made[40, 24, 0] > made[40, 24, 1])
    ((64, 48, 3), True)

    Args:
        image: (H, W), of any range: its lowest value becomes black, its highest white.
        saliency: (classes, h, w), benign in green and malignant in red; of any size, nearest.
        masks: (classes, H, W), true where lesions are.
        limits: the saliency that is transparent and the one that is densest.
        opacity: of the densest, 0 to 1.
        window: the values that become black and white, in place of the lowest and highest.

    Raises:
        ValueError: shapes do not belong together, or there are more than four classes.
    """
    pixels = np.asarray(image, np.float64)
    if pixels.ndim != 2:
        raise ValueError(f"an image of shape {pixels.shape}; needed is (H, W): one channel, of a volume one slice")
    for name, given in (("saliency", saliency), ("masks", masks)):
        if given is not None and (given.ndim != 3 or len(given) > len(COLOURS)):
            raise ValueError(f"{name} of shape {given.shape}; needed is (classes, height, width), 4 classes at most")
    if masks is not None and masks.shape[1:] != pixels.shape:
        raise ValueError(f"masks of shape {masks.shape} over an image of {pixels.shape}; needed is the image's size")
    low, high = window or (float(np.nanmin(pixels)), float(np.nanmax(pixels)))
    grey = 255 * np.clip((np.nan_to_num(pixels, nan=low) - low) / max(high - low, 1e-12), 0, 1)
    made = np.repeat(grey[..., None], 3, 2)
    for colour, each in zip(COLOURS, () if saliency is None else saliency, strict=False):
        share = np.clip((np.asarray(each, np.float64) - limits[0]) / max(limits[1] - limits[0], 1e-12), 0, 1)
        alpha = opacity * nearest(np.nan_to_num(share), pixels.shape)[..., None]
        made = made * (1 - alpha) + np.array(colour) * alpha
    for colour, each in zip(_OUTLINES, () if masks is None else masks, strict=False):
        made[_outline(np.asarray(each, bool))] = colour
    return Image.fromarray(np.rint(made).astype(np.uint8))


def picture(
    image: Pixels,
    saliency: Pixels,
    *,
    masks: Pixels | None = None,
    crops: Pixels | None = None,
    attention: Sequence[float] | None = None,
    locations: Sequence[tuple[int, int]] = (),
    classes: Sequence[str] = ("benign", "malignant"),
    limits: tuple[float, float] = (0.0, 1.0),
    height: int = 384,
) -> Image.Image:
    """All that a network says of an image, side by side: masks, windows, a panel per class, crops with attention.

    >>> made = picture(np.random.rand(64, 48), np.random.rand(2, 4, 3), crops=np.random.rand(1, 16, 16),
    ...                attention=[1.0], locations=[(8, 8)], height=128)
    >>> made.height
    142

    Args:
        image, saliency, masks, limits: of :func:`overlay`.
        crops: (K, h, w), those that were looked at.
        attention: how much each counts; None: crops have their number only.
        locations: row and column of each crop's upper left pixel.
        classes: names of the classes.
        height: of the panels in pixels; crops are drawn at the same scale as the image.
    """
    windows = overlay(image)
    draw = ImageDraw.Draw(windows)
    sides = (0, 0) if crops is None else crops.shape[1:]
    for top, left in locations:
        draw.rectangle((left, top, left + sides[1] - 1, top + sides[0] - 1), outline=_BOX, width=2)
    panels = [("image, masks" if masks is not None else "image", overlay(image, masks=masks)), ("crops", windows)]
    for number, name in enumerate(classes):
        alone = np.zeros_like(saliency)
        alone[number] = saliency[number]
        panels.append((name, overlay(image, alone, masks, limits=limits)))
    for number, each in enumerate(() if crops is None else crops):
        said = f"crop {number + 1}" if attention is None else f"attention {attention[number]:.2f}"
        panels.append((said, overlay(each)))
    scale = height / np.asarray(image).shape[0]
    return _side_by_side([(name, _scaled(panel, scale)) for name, panel in panels], height)


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels just around a mask, two wide."""
    wide = np.pad(mask, 2)
    steps = [(y, x) for y in range(5) for x in range(5)]
    grown = np.logical_or.reduce([wide[y : y + mask.shape[0], x : x + mask.shape[1]] for y, x in steps])
    outline: NDArray[np.bool_] = grown & ~mask
    return outline


def _scaled(panel: Image.Image, scale: float) -> Image.Image:
    size = (max(1, round(panel.width * scale)), max(1, round(panel.height * scale)))
    return panel.resize(size, Image.Resampling.BILINEAR)


def _side_by_side(panels: Sequence[tuple[str, Image.Image]], height: int) -> Image.Image:
    made = Image.new("RGB", (sum(max(p.width, 80) + _GAP for _, p in panels) - _GAP, height + _TITLE), "white")
    draw, left = ImageDraw.Draw(made), 0
    for name, panel in panels:
        draw.text((left + 2, 1), name, fill="black")
        made.paste(panel, (left, _TITLE))
        left += max(panel.width, 80) + _GAP
    return made
