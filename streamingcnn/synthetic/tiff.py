"""Synthetic slides as files: tiled, deflated pyramids, in memory that does not grow with the slide.

A level is made while the one above it is written: a tile's halves go to a row of half-size tiles, and a row that is
full goes, deflated, to a file without a name. The next level is read from there.

    level 0    a b c d ...     2 rows of tiles          level 1    ab c...      1 row
               e f g h ...        in memory     -->                ef g...        to the file
"""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from math import ceil
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import tifffile
from numpy.typing import NDArray

from streamingcnn.files import whole_file
from streamingcnn.synthetic.slides import MPP, TILE

__all__ = ["Rendered", "write_slide"]

_SMALLEST_LEVEL = 64
_REDUCED_IMAGE = 1

Pixels = NDArray[np.uint8]


class Rendered(Protocol):
    """What can be written: a size in pixels, multiples of 256, and tiles of 256 x 256 x 3, row after row."""

    @property
    def size(self) -> tuple[int, int]: ...

    def tiles(self) -> Iterator[Pixels]: ...


def write_slide(slide: Rendered, path: Path) -> None:
    """Write a synthetic slide as a pyramidal, tiled, deflated TIFF with its resolution.

    Example::

        write_slide(make_slide(seed=0, tumour=True), Path("tumour_000.tif"))

    Levels are 1, 1/2, 1/4, ... down to 64 pixels or more along the shorter axis. In memory are two rows of tiles; the
    lower levels wait, deflated, in a temporary file beside the slide.

    Raises:
        OSError: the file could not be written; nothing half-written is left.
    """
    size, tiles, mpp, kind = slide.size, slide.tiles(), MPP, 0
    large = size[0] * size[1] > 10_000 * TILE**2
    with whole_file(path) as partial, ExitStack() as files, tifffile.TiffWriter(partial, bigtiff=large) as tiff:
        while True:
            half = (size[0] // 2, size[1] // 2)
            if min(half) < _SMALLEST_LEVEL:
                _write_level(tiff, tiles, size, mpp, kind)
                return
            waiting = files.enter_context(tempfile.TemporaryFile(dir=path.parent))
            _write_level(tiff, _halved(tiles, size, waiting), size, mpp, kind)
            waiting.seek(0)
            size, tiles, mpp, kind = half, _tiles_of(waiting), 2 * mpp, _REDUCED_IMAGE


def halve(pixels: Pixels) -> Pixels:
    """The mean of every 2 x 2 pixels, rounded; a last odd row or column is dropped."""
    height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
    blocks = pixels[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3).astype(np.uint16)
    mean: Pixels = ((blocks.sum((1, 3), dtype=np.uint16) + 2) // 4).astype(np.uint8)
    return mean


def _halved(tiles: Iterator[Pixels], size: tuple[int, int], out: IO[bytes]) -> Iterator[Pixels]:
    """The tiles of a level as they are; those of the next one are written on the way."""
    rows, columns = (ceil(extent / TILE) for extent in size)
    half_rows, half_columns = (ceil(extent // 2 / TILE) for extent in size)
    half = TILE // 2
    strip = np.zeros((TILE, ceil(columns / 2) * TILE, 3), np.uint8)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        top = row % 2 * half
        strip[top : top + half, column * half : (column + 1) * half] = halve(tile)
        if column == columns - 1 and (row % 2 or row == rows - 1) and row // 2 < half_rows:
            for left in range(0, half_columns * TILE, TILE):
                packed = zlib.compress(strip[:, left : left + TILE].tobytes(), 1)
                out.write(len(packed).to_bytes(4, "little") + packed)
        yield tile  # last: nobody asks for a tile after the last one


def _tiles_of(file: IO[bytes]) -> Iterator[Pixels]:
    while count := file.read(4):
        packed = file.read(int.from_bytes(count, "little"))
        yield np.frombuffer(zlib.decompress(packed), np.uint8).reshape(TILE, TILE, 3)


def _write_level(
    tiff: tifffile.TiffWriter, tiles: Iterator[Pixels], size: tuple[int, int], mpp: float, subfiletype: int
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
