"""Where the breast is: the largest thing on the image that is left when its outer pixels are peeled off."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamingcnn.extras import require

__all__ = ["Breast", "find_breast"]


@dataclass(frozen=True)
class Breast:
    """A box around the breast, and where the breast ends in it.

    Attributes:
        rows, columns: the box, half-open, in pixels of the image.
        rightmost: rows (first, last) and column of the pixels furthest from the chest, in the box, breast to the right.
        bottommost: row and columns (first, last) of its lowest pixels, in the box, breast to the right.
        distance: columns between the chest side of the image and the breast.
    """

    rows: tuple[int, int]
    columns: tuple[int, int]
    rightmost: tuple[tuple[int, int], int]
    bottommost: tuple[int, tuple[int, int]]
    distance: int


def find_breast(
    image: NDArray[np.generic],
    *,
    faces: str = "right",
    threshold: float = 0.0,
    peel: int = 100,
    margin: int = 50,
) -> Breast:
    """The breast of an image (H, W), or of a volume (D, H, W), through its maximum over depth.

    >>> image = np.zeros((60, 40))
    >>> image[10:50, :25] = 1
    >>> image[2:5, 30:38] = 1  # a label on the film
    >>> found = find_breast(image, peel=3, margin=4)
    >>> found.rows, found.columns
    ((6, 54), (0, 29))

    Args:
        image: pixels, 0 or low outside the breast.
        faces: "right" where the chest is on the left, or "left".
        threshold: what is above it belongs to something; 100 for the published volumes.
        peel: how many erosions take labels and their strings off; as many dilations follow.
        margin: pixels added above, below, and on the nipple's side.

    Raises:
        ValueError: there is nothing above the threshold that is thick enough, or `faces` is something else.
    """
    require("scipy")
    from scipy import ndimage

    if faces not in ("left", "right"):
        raise ValueError(f"faces='{faces}'; needed is 'right' (chest on the left) or 'left'")
    pixels = np.asarray(image)
    if pixels.ndim not in (2, 3):
        raise ValueError(f"an image of shape {pixels.shape}; needed is (H, W), or (D, H, W) of a volume")
    inside = (pixels if pixels.ndim == 2 else pixels.max(0)) > threshold
    if pixels.ndim == 3:
        inside = ndimage.binary_fill_holes(inside)
    inside = inside[:, ::-1] if faces == "left" else inside
    # The image's border is no border of the breast: the chest touches it.
    peeled = ndimage.binary_erosion(inside, iterations=peel, border_value=1) if peel else inside
    parts, count = ndimage.label(peeled)
    if not count:
        raise ValueError(
            f"no breast: nothing above {threshold:g} is {2 * peel} pixels thick in an image of {inside.shape}; take a "
            "lower threshold, or a smaller peel for small images"
        )
    largest = parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    breast = ndimage.binary_dilation(largest, iterations=peel, mask=inside) if peel else largest
    rows, columns = np.flatnonzero(breast.any(1)), np.flatnonzero(breast.any(0))
    high, wide = breast.shape
    top, bottom = max(0, int(rows[0]) - margin), min(high, int(rows[-1]) + 1 + margin)
    left, right = int(columns[0]), min(wide, int(columns[-1]) + 1 + margin)
    box = breast[top:bottom, left:right]
    # The nipple is looked for in the lower two thirds, as published: above may be an arm.
    lower = box[box.shape[0] // 3 :]
    furthest = int(np.flatnonzero(lower.any(0))[-1])
    at = np.flatnonzero(lower[:, furthest]) + box.shape[0] // 3
    lowest = int(np.flatnonzero(box.any(1))[-1])
    along = np.flatnonzero(box[lowest])
    return Breast(
        (top, bottom),
        (left, right) if faces == "right" else (wide - right, wide - left),
        ((int(at[0]), int(at[-1])), furthest),
        (lowest, (int(along[0]), int(along[-1]))),
        left,
    )
