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
#: Crops above each other, and the narrowest panel under a title.
_STACKED, _NARROWEST = 3, 80

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
        locations: row and column of the upper left pixel of each crop that lies in the image; without, no panel shows
            them (in a volume all may lie in other slices).
        classes: names of the classes.
        height: of the panels in pixels; three crops stand above each other.
    """
    panels = [("image, masks" if masks is not None else "image", overlay(image, masks=masks))]
    if crops is not None and len(locations):
        windows = overlay(image)
        draw = ImageDraw.Draw(windows)
        for top, left in locations:
            box = (left, top, left + crops.shape[2] - 1, top + crops.shape[1] - 1)
            draw.rectangle(box, outline=_BOX, width=2)
        panels.append(("crops", windows))
    for number, name in enumerate(classes):
        alone = np.zeros_like(saliency)
        alone[number] = saliency[number]
        panels.append((name, overlay(image, alone, masks, limits=limits)))
    columns = [_titled(panel, name, height) for name, panel in panels]
    for first in range(0, 0 if crops is None else len(crops), _STACKED):
        assert crops is not None
        column = []
        for number, each in enumerate(crops[first : first + _STACKED], start=first):
            said = f"crop {number + 1}" if attention is None else f"attention {attention[number]:.2f}"
            column.append(_titled(overlay(each), said, (height + _TITLE) // _STACKED - _TITLE))
        columns.append(_put(column, down=True))
    return _put(columns, down=False)


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels just around a mask, two wide."""
    wide = np.pad(mask, 2)
    steps = [(y, x) for y in range(5) for x in range(5)]
    grown = np.logical_or.reduce([wide[y : y + mask.shape[0], x : x + mask.shape[1]] for y, x in steps])
    outline: NDArray[np.bool_] = grown & ~mask
    return outline


def _titled(panel: Image.Image, title: str, height: int) -> Image.Image:
    """A panel of a height, with its title above it."""
    panel = panel.resize((max(1, round(panel.width * height / panel.height)), height), Image.Resampling.BILINEAR)
    made = Image.new("RGB", (max(panel.width, _NARROWEST), height + _TITLE), "white")
    ImageDraw.Draw(made).text((2, 1), title, fill="black")
    made.paste(panel, (0, _TITLE))
    return made


def _put(panels: Sequence[Image.Image], *, down: bool) -> Image.Image:
    """Panels beneath each other, or side by side with a gap."""
    if down:
        size = (max(each.width for each in panels), sum(each.height for each in panels))
    else:
        size = (sum(each.width + _GAP for each in panels) - _GAP, max(each.height for each in panels))
    made, at = Image.new("RGB", size, "white"), 0
    for each in panels:
        made.paste(each, (0, at) if down else (at, 0))
        at += each.height if down else each.width + _GAP
    return made
