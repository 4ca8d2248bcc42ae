"""A volume as pictures: one of a slice, and all slices one after another as a GIF."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from streamingcnn.files import whole_file
from streamingcnn.mammography.overlay import overlay

__all__ = ["film", "slice_picture"]

Pixels = NDArray[np.generic]


def slice_picture(
    volume: Pixels,
    number: int,
    saliency: Pixels | None = None,
    masks: Pixels | None = None,
    *,
    limits: tuple[float, float] = (0.0, 1.0),
    scale: float = 1.0,
) -> Image.Image:
    """One slice in grey, the saliency of each class over it, the outlines of masks, and which slice it is.

    >>> volume, saliency = np.random.rand(5, 64, 48), np.random.rand(2, 5, 4, 3)
    >>> slice_picture(volume, 2, saliency, scale=2).size
    (96, 128)

    Args:
        volume: (D, H, W); black and white are its lowest and highest value, in every slice the same.
        number: of the slice, from 0.
        saliency: (classes, D, h, w), benign in green and malignant in red.
        masks: (classes, D, H, W), true where lesions are sharp.
        limits: the saliency that is transparent and the one that is densest.
        scale: how much larger than the slice the picture is.

    Raises:
        ValueError: shapes do not belong together, or there is no such slice.
    """
    if volume.ndim != 3 or not 0 <= number < len(volume):
        raise ValueError(f"slice {number} of a volume of shape {volume.shape}; needed is (slices, height, width)")
    for name, given in (("saliency", saliency), ("masks", masks)):
        if given is not None and (given.ndim != 4 or given.shape[1] != len(volume)):
            raise ValueError(
                f"{name} of shape {given.shape} for {len(volume)} slices; needed is (classes, slices, h, w)"
            )
    made = overlay(
        volume[number],
        None if saliency is None else saliency[:, number],
        None if masks is None else masks[:, number],
        limits=limits,
        window=(float(np.nanmin(volume)), float(np.nanmax(volume))),
    )
    made = made.resize((round(made.width * scale), round(made.height * scale)), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(made)
    draw.text((3, 1), f"slice {number + 1} of {len(volume)}", fill="white")
    # How deep it is, as a bar at the lower border.
    draw.rectangle((0, made.height - 3, round(made.width * (number + 1) / len(volume)) - 1, made.height - 1), "white")
    return made


def film(
    path: str | Path,
    volume: Pixels,
    saliency: Pixels | None = None,
    masks: Pixels | None = None,
    *,
    limits: tuple[float, float] = (0.0, 1.0),
    scale: float = 1.0,
    seconds: float = 0.1,
) -> Path:
    """Write all slices one after another as a GIF that begins anew; arguments are those of :func:`slice_picture`.

    Example::

        film("volume.gif", volume, result.saliency[0].numpy(), masks)

    ``seconds`` is how long each slice is seen. Returns the path; OSError where it cannot be written.
    """

    def frames() -> Iterator[Image.Image]:
        for number in range(len(volume)):
            made = slice_picture(volume, number, saliency, masks, limits=limits, scale=scale)
            yield made.quantize(128, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)

    first, *rest = frames()
    with whole_file(Path(path)) as partial:
        first.save(partial, "GIF", save_all=True, append_images=rest, duration=round(1000 * seconds), loop=0)
    return Path(path)
