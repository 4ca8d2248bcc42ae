"""TIFF and OME-TIFF through tifffile: tiles and strips are decoded one by one, never a whole page.

    page    | 0  1  2  3 |      a box needs tiles 5, 6, 9 and 10: they are read, decoded, kept a while
            | 4 [5  6] 7 |      (pieces.py), and cut
            | 8 [9 10] 11|

A header is believed in nothing: a file of 300 bytes may claim a million by a million pixels. What it claims is held
against what it has, and a piece that would take more memory than any should is refused before it is decoded.
"""

from __future__ import annotations

import itertools
import threading
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
import torch

from streamingcnn.boxes import Box
from streamingcnn.memory import format_bytes
from streamingcnn.sources.file import FileImage, Handle
from streamingcnn.sources.pieces import Pieces
from streamingcnn.sources.resolution import plausible
from streamingcnn.sources.source import ReadError

__all__ = ["TiffImage", "check_tiff"]

#: Decoded tiles that are kept per process, in bytes.
CACHE = 64 << 20
#: The largest tile or strip that is decoded, in bytes.
LARGEST = 256 << 20
#: Micrometres in a unit of ResolutionUnit: an inch, a centimetre, a millimetre, a micrometre.
_UNITS = {2: 25400.0, 3: 10000.0, 4: 1000.0, 5: 1.0}
_OME_UNITS = {"nm": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6}


class TiffImage(FileImage):
    """One level of one image of a TIFF as a source: any number of channels, any type, and stacks of pages.

    Example::

        image = TiffImage("cells.ome.tif", level=1)
        image.shape, image.dtype, image.axes             # (4, 8192, 8192), torch.uint16, "CYX"

    Pages that belong together (channels, a stack along z) are one image. A page that is not compressed is mapped; of
    any other its tiles or strips are decoded, of which 64 MiB are kept.

    Args:
        path: the file.
        level: of the pyramid, 0 is the full image; negative ones count from the smallest.
        page: read this page alone, by its place in the file; None: the file's first image.

    Raises:
        FileNotFoundError: there is no such file.
        ReadError: it is no TIFF, is damaged, or is packed in a way that cannot be read here.
        ValueError: there is no such level or page, or the image has an axis of time.
    """

    def __init__(self, path: str | Path, level: int = 0, page: int | None = None) -> None:
        super().__init__(path)
        self.page = page
        self._asked = level
        self._handle = Handle(partial(_Opened, self.path, level, page), _Opened.close)
        opened = self._handle.get()
        self.shape, self.axes, self.dtype = opened.shape, opened.axes, opened.torch_dtype
        self.level, self.levels = opened.level, opened.levels
        self.downsample = self.levels[self.level]
        stated = opened.mpp
        self.stated_mpp = None if stated is None else tuple(size * self.downsample for size in stated)
        self.mpp = self.stated_mpp if plausible(stated) else None

    def at_level(self, level: int) -> TiffImage:
        return self if level == self.level else TiffImage(self.path, level, self.page)

    def _pixels(self, box: Box) -> torch.Tensor:
        return torch.from_numpy(self._handle.get().read(box))

    def close(self) -> None:
        self._handle.close()


def check_tiff(path: Path) -> None:
    """Raise ReadError for a TIFF that claims what it does not have, or has pieces too large to decode.

    It reads the headers alone.
    """
    with _open(path) as file:
        for page in file.pages:
            if isinstance(page, tifffile.TiffPage) and not file.is_ndpi:
                _check_page(path, page)


def _open(path: Path) -> tifffile.TiffFile:
    if not path.is_file():
        raise FileNotFoundError(f"there is no image at {path.absolute()}")
    file = None
    try:
        file = tifffile.TiffFile(path)
        file.pages[0]
    except Exception as error:  # a damaged header ends in errors of many kinds
        if file is not None:
            file.close()
        raise ReadError(
            f"{path} is no TIFF, or its header is damaged ({error}); copy it again or leave it out"
        ) from error
    return file


def _check_page(path: Path, page: tifffile.TiffPage) -> None:
    claimed = " x ".join(map(str, page.shape))
    pieces, piece = prod(page.chunked), prod(page.chunks) * (page.dtype.itemsize if page.dtype else 1)
    offsets, counts = page.dataoffsets, page.databytecounts
    if len(offsets) != pieces or len(counts) != pieces:
        raise ReadError(
            f"{path}: page {page.index} claims {claimed} pixels, which are {pieces} tiles or strips, and has "
            f"{len(offsets)}; the file is damaged or made up"
        )
    size = path.stat().st_size
    cut = sum(1 for offset, count in zip(offsets, counts, strict=True) if count and offset + count > size)
    if cut:
        raise ReadError(
            f"{path} is truncated: {cut} of the {pieces} tiles or strips of page {page.index} lie beyond its end; "
            "copy it again or leave it out"
        )
    if piece > LARGEST and not page.is_memmappable:
        what = "tile" if page.is_tiled else "strip"
        raise ReadError(
            f"{path}: page {page.index} ({claimed} pixels) is packed in pieces of {format_bytes(piece)}, and a piece "
            f"is decoded as a whole; at most {format_bytes(LARGEST)} a {what} are. Write it again with tiles "
            "(`vips tiffsave in.tif out.tif --tile --pyramid --compression deflate --bigtiff`)"
        )


class _Opened:
    """An open file: which page holds what, and how to read a box of it."""

    def __init__(self, path: Path, level: int, page: int | None) -> None:
        self.path = path
        self.file = _open(path)
        self._lock = threading.Lock()
        self._pieces = Pieces(CACHE)
        self._mapped: dict[int, npt.NDArray[Any]] = {}
        try:
            self._find(level, page)
        except (ReadError, ValueError):
            self.file.close()
            raise
        except Exception as error:
            self.file.close()
            raise ReadError(f"{path}: its pages cannot be understood ({error!r}); the file is damaged") from error

    def _find(self, level: int, page: int | None) -> None:
        if page is not None:
            if not 0 <= page < len(self.file.pages):
                raise ValueError(f"{self.path} has no page {page}; its pages are 0 to {len(self.file.pages) - 1}")
            first: Any = self.file.pages[page]
            pyramid: list[Any] = [(first.shape, first.axes, [first])]
        else:
            series: Any = self.file.series[0]
            pyramid = [(one.shape, one.axes, list(one.pages)) for one in series.levels]
        if not -len(pyramid) <= level < len(pyramid):
            have = ", ".join(f"{k}: {' x '.join(map(str, shape))}" for k, (shape, _, _) in enumerate(pyramid))
            raise ValueError(f"{self.path} has no level {level}; its levels are {have}")
        self.level = level % len(pyramid)
        shape, axes, pages = pyramid[self.level]
        widths = [dict(zip(a, s, strict=True))["X"] for s, a, _ in pyramid]
        self.levels = tuple(widths[0] / width for width in widths)
        self._lay_out(shape, axes, pages)
        self.mpp = self._resolution(pyramid[0][2][0], dict(zip(pyramid[0][1], pyramid[0][0], strict=True)))

    def _lay_out(self, shape: tuple[int, ...], axes: str, pages: list[Any]) -> None:
        """Which page and which plane of it each channel (and each z) is."""
        key = pages[0].keyframe
        self._key = key
        lead = len(shape) - len(key.shape)
        if any(page is None for page in pages) or lead < 0:
            raise ReadError(f"{self.path}: pages of its image are missing; the file is damaged or incomplete")
        names = {"I": "Z", "Q": "Z"} if "Z" not in axes else {}
        before = [(names.get(axis, axis), size) for axis, size in zip(axes[:lead], shape[:lead], strict=True)]
        if (wrong := [axis for axis, size in before if size > 1 and axis not in "CZS"]) or "Z" in key.axes:
            raise ValueError(
                f"{self.path} has the axes {axes} of {' x '.join(map(str, shape))}, and images here have channels "
                f"and space; give page= to read one page alone ({', '.join(wrong) or 'Z'} is too many)"
            )
        for page in pages:
            _check_page(self.path, page if isinstance(page, tifffile.TiffPage) else page.aspage())
        sizes = dict(before)
        depth = sizes.get("Z", 1)
        samples = dict(zip(key.axes, key.shape, strict=True)).get("S", 1)
        numbers = np.arange(len(pages)).reshape([size for _, size in before])
        order = [axis for axis, _ in before]
        if "Z" in order:
            numbers = np.moveaxis(numbers, order.index("Z"), -1)
        #: The page of (channel, z); each has ``samples`` channels of its own.
        self._numbers = numbers.reshape(-1, depth)
        self._pages = pages
        rows, columns = (dict(zip(key.axes, key.shape, strict=True))[axis] for axis in "YX")
        self._samples = samples
        stacked = "Z" in order and depth > 1
        space = (depth, rows, columns) if stacked else (rows, columns)
        self.axes = "CZYX" if stacked else "CYX"
        self.shape = (len(self._numbers) * samples, *space)
        self.dtype = np.dtype(key.dtype).newbyteorder("=")
        self.torch_dtype = torch.from_numpy(np.empty(0, self.dtype)).dtype

    def read(self, box: Box) -> npt.NDArray[Any]:
        """The pixels of a box, (channels, *space)."""
        planes = box[0] if len(box) == 3 else (0, 1)
        made = np.empty((len(self._numbers), self._samples, planes[1] - planes[0], *_lengths(box[-2:])), self.dtype)
        for channel, z in itertools.product(range(len(self._numbers)), range(*planes)):
            self._read_page(int(self._numbers[channel, z]), box[-2:], made[channel, :, z - planes[0]])
        return made.reshape(self.shape[0], *_lengths(box))

    def _read_page(self, number: int, box: Box, out: npt.NDArray[Any]) -> None:
        """Write a box of a page to ``out``, (samples, rows, columns)."""
        key = self._key
        if key.is_memmappable:
            page = (
                np.moveaxis(self._map(number), key.axes.index("S"), 0) if "S" in key.axes else self._map(number)[None]
            )
            out[:] = page[(slice(None), *(slice(low, high) for low, high in box))]
            return
        (y, x), grid = (key.axes.index("Y"), key.axes.index("X")), key.chunked
        planes = key.axes.startswith("S")  # each sample in pieces of its own; chunks then leaves the samples out
        steps = key.chunks[y - planes], key.chunks[x - planes]
        ranges = [range(low // step, -(-high // step)) for (low, high), step in zip(box, steps, strict=True)]
        for plane, row, column in itertools.product(range(grid[0] if planes else 1), *ranges):
            index = (plane, row, column) if planes else (row, column, 0)[: len(grid)]
            piece = self._piece(number, int(np.ravel_multi_index(index, grid)), box)
            corner = row * steps[0], column * steps[1]
            part = tuple(
                (max(low, start), min(high, start + size))
                for (low, high), start, size in zip(box, corner, piece.shape[1:], strict=True)
            )
            inside: Any = tuple(slice(low - s, high - s) for (low, high), s in zip(part, corner, strict=True))
            there: Any = tuple(slice(low - b, high - b) for (low, high), (b, _) in zip(part, box, strict=True))
            out[(slice(plane, plane + 1) if planes else slice(None), *there)] = piece[(slice(None), *inside)]

    def _map(self, number: int) -> npt.NDArray[Any]:
        page, key = self._pages[number], self._key
        if number not in self._mapped:
            self._mapped[number] = np.memmap(
                self.path, key.dtype.newbyteorder(self.file.byteorder), "r", page.dataoffsets[0], key.shape
            )
        return self._mapped[number]

    def _piece(self, number: int, index: int, box: Box) -> npt.NDArray[Any]:
        """A decoded tile or strip, (samples, rows, columns)."""
        return self._pieces.get((number, index), lambda: self._decoded(number, index, box))

    def _decoded(self, number: int, index: int, box: Box) -> npt.NDArray[Any]:
        page, key = self._pages[number], self._key
        offset, count = page.dataoffsets[index], page.databytecounts[index]
        with self._lock:
            self.file.filehandle.seek(offset)
            packed = self.file.filehandle.read(count) if count else None
        try:
            tables = {"jpegtables": key.jpegtables} if key.jpegtables is not None else {}
            piece, _, shape = key.decode(packed, index, **tables)
        except Exception as error:
            raise self._explained(error, number, index, box) from error
        if piece is None:  # a tile that was left out, as it is empty
            piece = np.full(shape, key.nodata, self.dtype)
        return np.ascontiguousarray(np.moveaxis(piece[0], -1, 0)).astype(self.dtype, copy=False)

    def _explained(self, error: Exception, number: int, index: int, box: Box) -> ReadError:
        packing = getattr(self._key.compression, "name", str(self._key.compression))
        if "imagecodecs" in str(error):
            return ReadError(
                f"{self.path}: its pixels are packed as {packing}, which tifffile alone cannot read; pip install "
                "imagecodecs, or open it through OpenSlide, SlideImage(path), if it is a slide"
            )
        return ReadError(
            f"{self.path}: the region {box} of page {number} cannot be read (tile or strip {index}, {packing}: "
            f"{error}); the file is damaged or incomplete, copy it again or leave it out"
        )

    def _resolution(self, page: Any, sizes: dict[str, int]) -> tuple[float, ...] | None:
        """Micrometres per pixel of the full image, as the file says."""
        found = self._ome_resolution()
        if found is None:
            tags = page.keyframe.tags
            unit = _UNITS.get(int(tags.valueof("ResolutionUnit", 2)))
            per_unit = [tags.valueof(f"{axis}Resolution") for axis in "YX"]
            if unit is None or any(not rate or not rate[0] for rate in per_unit):
                return None
            found = {axis: unit * rate[1] / rate[0] for axis, rate in zip("YX", per_unit, strict=True)}
        if self.axes == "CZYX":
            return (found["Z"], found["Y"], found["X"]) if "Z" in found else None
        return (found["Y"], found["X"])

    def _ome_resolution(self) -> dict[str, float] | None:
        if not self.file.is_ome:
            return None
        described = tifffile.xml2dict(self.file.ome_metadata or "<OME/>").get("OME", {}).get("Image", {})
        pixels = (described[0] if isinstance(described, list) else described).get("Pixels", {})
        found = {}
        for axis in "ZYX":
            unit = _OME_UNITS.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
            if unit is not None and isinstance(size := pixels.get(f"PhysicalSize{axis}"), (int, float)):
                found[axis] = float(size) * unit
        return found if {"Y", "X"} <= found.keys() else None

    def close(self) -> None:
        self._mapped.clear()
        self.file.close()

    def __del__(self) -> None:
        # An image that nobody holds any more closes its file, as OpenSlide's and Python's own do.
        if "file" in self.__dict__:
            self.file.close()


def _lengths(box: Box) -> tuple[int, ...]:
    return tuple(high - low for low, high in box)
