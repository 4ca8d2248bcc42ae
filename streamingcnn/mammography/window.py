"""A window of the size that a network takes, placed where it holds most of the breast."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamingcnn.mammography.breast import Breast

__all__ = ["best_window", "cut_window"]


def best_window(
    image: NDArray[np.generic], breast: Breast, size: tuple[int, int] = (2944, 1920), *, view: str = "CC"
) -> tuple[int, int]:
    """The middle (row, column) of the window that holds most pixels above 0; ties go to the image's middle.

    >>> image = np.zeros((100, 60))
    >>> image[60:90, :30] = 1
    >>> breast = Breast((0, 100), (0, 60), ((70, 75), 29), (89, (0, 20)), 0)
    >>> best_window(image, breast, (40, 30))
    (70, 15)

    Args:
        image: (H, W), cut to the breast and turned so that the breast faces right.
        breast: of this image, from :func:`find_breast`.
        size: height and width of the window; it may be larger than the image, and the middle may lie outside.
        view: "CC": the right edge stands at the rightmost pixel of the breast, rows are tried; "MLO": the lower edge
            stands at its lowest pixel, too.
    """
    pixels = np.asarray(image)
    right = breast.rightmost[1] + 1
    column = right - size[1] // 2
    if view == "MLO":
        return breast.bottommost[0] + 1 - size[0] // 2, column
    if view != "CC":
        raise ValueError(f"view='{view}'; needed is 'CC' or 'MLO'")
    per_row = np.concatenate([[0], np.cumsum((pixels[:, max(0, right - size[1]) : right] > 0).sum(1))])
    middles = np.arange(pixels.shape[0])
    low = np.clip(middles - size[0] // 2, 0, pixels.shape[0])
    high = np.clip(middles - size[0] // 2 + size[0], 0, pixels.shape[0])
    held = per_row[high] - per_row[low]
    best = middles[held == held.max()]
    return int(best[np.argmin(np.abs(best - pixels.shape[0] / 2))]), column


def cut_window(image: NDArray[Any], middle: tuple[int, int], size: tuple[int, int]) -> NDArray[Any]:
    """The window around a middle, (..., height, width): moved inside where the image is large enough, else with zeros.

    >>> cut_window(np.ones((2, 3)), (0, 0), (4, 2))
    array([[0., 0.],
           [1., 1.],
           [1., 1.],
           [0., 0.]])

    Zeros come half above and half below, and behind on the right.
    """
    high, wide = image.shape[-2:]
    top, left = (
        min(max(0, at - side // 2), max(0, extent - side))
        for at, side, extent in zip(middle, size, (high, wide), strict=True)
    )
    part = image[..., top : top + size[0], left : left + size[1]]
    above = (size[0] - part.shape[-2]) // 2
    made = np.zeros((*image.shape[:-2], *size), image.dtype)
    made[..., above : above + part.shape[-2], : part.shape[-1]] = part
    return made
