"""How well a saliency map says where: Dice at one threshold, and average precision over pixels.

Both are of one class, and of images that hold a lesion of it: a mask without a pixel has no Dice and no precision.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from streamingcnn.extras import require

__all__ = ["best_threshold", "dice", "pixel_average_precision"]


def dice(saliency: NDArray[np.floating], mask: NDArray[np.bool_], threshold: float) -> float:
    """Twice what both cover, through the sum of what each covers; NaN where the mask is empty.

    >>> dice(np.array([[0.9, 0.6], [0.1, 0.2]]), np.array([[True, False], [True, False]]), 0.5)
    0.5

    A map coarser than its mask is repeated to its size (nearest), where the one is a multiple of the other or not.
    """
    _check(saliency, mask)
    if not mask.any():
        return float("nan")
    found = nearest(saliency, mask.shape) >= threshold
    return float(2 * (found & mask).sum() / (found.sum() + mask.sum()))


def best_threshold(
    saliencies: Sequence[NDArray[np.floating]],
    masks: Sequence[NDArray[np.bool_]],
    thresholds: Sequence[float] = tuple(np.linspace(0.02, 0.98, 49)),
) -> float:
    """The ONE threshold with the highest mean Dice over images that hold a lesion; chosen on validation images.

    >>> best_threshold([np.array([[0.9, 0.3]])], [np.array([[True, False]])], [0.2, 0.5])
    0.5
    """
    pairs = [(s, m) for s, m in zip(saliencies, masks, strict=True) if m.any()]
    if not pairs:
        raise ValueError(f"none of the {len(masks)} masks has a pixel, so no threshold is better than another")
    means = [float(np.mean([dice(s, m, t) for s, m in pairs])) for t in thresholds]
    return float(thresholds[int(np.argmax(means))])


def pixel_average_precision(saliency: NDArray[np.floating], mask: NDArray[np.bool_]) -> float:
    """The average precision of an image's pixels, ranked by saliency; NaN where the mask is empty.

    >>> pixel_average_precision(np.array([[0.9, 0.1], [0.8, 0.2]]), np.array([[True, False], [False, True]]))
    0.8333333333333333
    """
    _check(saliency, mask)
    if not mask.any():
        return float("nan")
    require("sklearn")
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(mask.ravel(), nearest(saliency, mask.shape).ravel()))


def nearest(saliency: NDArray[np.floating], size: tuple[int, ...]) -> NDArray[np.floating]:
    """A map at another size, each pixel that of the nearest cell.

    >>> nearest(np.array([[1.0, 2.0]]), (2, 4))
    array([[1., 1., 2., 2.],
           [1., 1., 2., 2.]])
    """
    at = [np.arange(to) * extent // to for extent, to in zip(saliency.shape, size, strict=True)]
    return saliency[np.ix_(*at)]


def _check(saliency: NDArray[np.floating], mask: NDArray[np.bool_]) -> None:
    if saliency.ndim != mask.ndim or any(
        cells > pixels for cells, pixels in zip(saliency.shape, mask.shape, strict=False)
    ):
        raise ValueError(
            f"a mask of shape {mask.shape} for a saliency map of {saliency.shape}; needed is a mask of the image's own "
            "size, at least as large as the map"
        )
    if not np.isfinite(saliency).all():
        raise ValueError("the saliency map has values that are NaN; look for them in the image")
