"""Writing a slide as slide scanners do: a pyramid of tiled images in one TIFF file.

The full image is written tile by tile as it is rendered; each lower level is the mean of 2 x 2 pixels of
the one above it, and its pages are marked as reduced images, which is how OpenSlide tells a pyramid from a
stack. The resolution stands in pixels per centimetre, from which OpenSlide gives micrometres per pixel.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from streamingcnn.files import whole_file
from streamingcnn.synthetic.slides import MPP, TILE, Slide

__all__ = ["write_slide"]

_SMALLEST_LEVEL = 64
_REDUCED_IMAGE = 1


def write_slide(slide: Slide, path: Path) -> None:
    """Write a synthetic slide as a pyramidal, tiled, deflated TIFF with its resolution.

    Example::

        write_slide(make_slide(seed=0, tumour=True), Path("tumour_000.tif"))

    Levels are 1, 1/2, 1/4, ... down to 64 pixels or more along the shorter axis. Levels below the first are
    held in memory together, a third of the slide's bytes.

    Raises:
        OSError: the file could not be written; nothing half-written is left.
    """
    rows, columns = slide.grid
    lower = np.empty((slide.size[0] // 2, slide.size[1] // 2, 3), dtype=np.uint8)

    def rendered() -> Iterator[NDArray[np.uint8]]:
        half = TILE // 2
        for number, tile in enumerate(slide.tiles()):
            row, column = divmod(number, columns)
            lower[row * half : (row + 1) * half, column * half : (column + 1) * half] = halve(tile)
            yield tile

    with whole_file(path) as partial, tifffile.TiffWriter(partial, bigtiff=rows * columns > 10_000) as tiff:
        _write_level(tiff, rendered(), slide.size, MPP)
        factor = 2
        while min(lower.shape[:2]) >= _SMALLEST_LEVEL:
            _write_level(tiff, _tiles_of(lower), (lower.shape[0], lower.shape[1]), MPP * factor, _REDUCED_IMAGE)
            lower, factor = halve(lower), factor * 2


def halve(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The mean of every 2 x 2 pixels, rounded; a last odd row or column is dropped."""
    height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
    blocks = pixels[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3).astype(np.uint16)
    mean: NDArray[np.uint8] = ((blocks.sum((1, 3), dtype=np.uint16) + 2) // 4).astype(np.uint8)
    return mean


def _tiles_of(pixels: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    for top in range(0, pixels.shape[0], TILE):
        for left in range(0, pixels.shape[1], TILE):
            tile = pixels[top : top + TILE, left : left + TILE]
            missing = [(0, TILE - tile.shape[0]), (0, TILE - tile.shape[1]), (0, 0)]
            yield np.pad(tile, missing, mode="edge")


def _write_level(
    tiff: tifffile.TiffWriter,
    tiles: Iterator[NDArray[np.uint8]],
    size: tuple[int, int],
    mpp: float,
    subfiletype: int = 0,
) -> None:
    pixels_per_cm = 10_000 / mpp
    tiff.write(
        tiles,
        shape=(*size, 3),
        dtype=np.uint8,
        tile=(TILE, TILE),
        photometric="rgb",
        compression="adobe_deflate",
        compressionargs={"level": 1},
        resolution=(pixels_per_cm, pixels_per_cm),
        resolutionunit="CENTIMETER",
        subfiletype=subfiletype,
        metadata=None,
        maxworkers=1,
    )
