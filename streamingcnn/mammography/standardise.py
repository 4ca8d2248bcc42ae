"""Mean 0 and deviation 1, each image by itself, a volume over all of its slices at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["standardised"]

#: The smallest deviation that is divided by: a constant image becomes 0.
SMALLEST = 1e-5


def standardised(image: NDArray[np.generic]) -> NDArray[np.float32]:
    """An image or volume with its mean taken off, divided by its standard deviation, in float32.

    >>> standardised(np.array([[0, 2], [2, 4]]))
    array([[-1.4142135,  0.       ],
           [ 0.       ,  1.4142135]], dtype=float32)

    A constant image becomes 0. Raises ValueError where pixels are not numbers.
    """
    pixels = np.asarray(image, np.float64)
    wrong = int((~np.isfinite(pixels)).sum())
    if wrong:
        raise ValueError(
            f"{wrong} of the image's {pixels.size} pixels are NaN or infinite; put a number in their place (the lowest "
            "of the others, say) before the image is standardised"
        )
    made: NDArray[np.float32] = ((pixels - pixels.mean()) / max(float(pixels.std()), SMALLEST)).astype(np.float32)
    return made
