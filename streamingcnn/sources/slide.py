"""Whole-slide images through OpenSlide.

OpenSlide's own coordinates are (x, y) of the full image whatever the level; here, as everywhere in this
library, a box is (rows, columns) in pixels of the level that was opened. An OpenSlide handle must not cross
a fork, so each process opens its own at its first read.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import torch
from PIL import Image

from streamingcnn.boxes import Box, full, sizes
from streamingcnn.sources.source import ReadError

__all__ = ["SlideImage", "open_image"]


def open_image(path: str | Path, level: int = 0) -> SlideImage:
    """Open a slide at one level of its pyramid.

    Example::

        image = open_image("slide.tif")
        image.shape, image.mpp                           # (3, 1024, 1024), (0.5, 0.5)
        image.read(((0, 256), (512, 1024)))              # (3, 256, 512) uint8

    Level 0 is the full image; negative levels count from the smallest one.

    Raises:
        FileNotFoundError: there is no such file.
        ReadError: the file is no slide, or is damaged.
        ValueError: the slide has no such level.
    """
    return SlideImage(path, level)


class SlideImage:
    """One level of a slide as a source: RGB, transparent pixels on the slide's own background.

    Attributes:
        path: the file.
        level: of the pyramid, 0 is the full image.
        shape: (3, height, width) in pixels of this level.
        downsample: pixels of the full image per pixel of this level.
        mpp: micrometres per pixel of this level along (y, x), None where the file does not say.
    """

    dtype = torch.uint8
    axes = "CYX"

    def __init__(self, path: str | Path, level: int = 0) -> None:
        self.path = Path(path)
        self._handle: openslide.OpenSlide | None = None
        self._opened_by = -1
        handle = self._open()
        if not -handle.level_count <= level < handle.level_count:
            have = ", ".join(f"{n}: {h}x{w}" for n, (w, h) in enumerate(handle.level_dimensions))
            raise ValueError(f"{self.path} has no level {level}; its levels are (height x width) {have}")
        self.level = level % handle.level_count
        width, height = handle.level_dimensions[self.level]
        self.shape = (3, int(height), int(width))
        self.downsample = float(handle.level_downsamples[self.level])
        self.mpp = _mpp(handle.properties, self.downsample)
        background = handle.properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "FFFFFF")
        self._background = f"#{background}"

    def read(self, box: Box) -> torch.Tensor:
        """The pixels of a box ((top, bottom), (left, right)) of this level, (3, rows, columns) uint8.

        Raises:
            ValueError: the box is not inside the image.
            ReadError: the file is damaged there; the message names file and box.
        """
        if len(box) != 2 or any(
            not 0 <= low <= high <= extent for (low, high), extent in zip(box, self.shape[1:], strict=True)
        ):
            raise ValueError(
                f"{self.path}: the box {box} is not inside level {self.level}, which is "
                f"((0, {self.shape[1]}), (0, {self.shape[2]}))"
            )
        rows, columns = sizes(box)
        if not rows * columns:
            return torch.empty(3, rows, columns, dtype=torch.uint8)
        corner = (round(box[1][0] * self.downsample), round(box[0][0] * self.downsample))
        try:
            region = self._open().read_region(corner, self.level, (columns, rows))
        except openslide.OpenSlideError as error:
            self.close()  # OpenSlide answers nothing more through a handle that has met an error
            raise ReadError(
                f"{self.path}: the region {box} of level {self.level} cannot be read ({error}); the file is "
                f"damaged or incomplete, copy it again or leave it out"
            ) from error
        opaque = Image.new("RGB", region.size, self._background)
        opaque.paste(region, mask=region.getchannel("A"))
        return torch.from_numpy(np.array(opaque)).permute(2, 0, 1).contiguous()

    def read_all(self) -> torch.Tensor:
        """All pixels, (3, height, width) uint8; for slides and levels that fit into memory."""
        return self.read(full(self.shape[1:]))

    def close(self) -> None:
        """Let go of the file; a later read opens it again."""
        if self._handle is not None and self._opened_by == os.getpid():
            self._handle.close()
        self._handle = None

    def _open(self) -> openslide.OpenSlide:
        if self._handle is None or self._opened_by != os.getpid():
            if not self.path.is_file():
                raise FileNotFoundError(f"there is no slide at {self.path.absolute()}")
            try:
                self._handle = openslide.OpenSlide(self.path)
            except openslide.OpenSlideUnsupportedFormatError:
                raise ReadError(
                    f"{self.path} is not a slide that OpenSlide reads: a tiled TIFF, SVS, NDPI, MRXS or "
                    f"another whole-slide format (`vips tiffsave --tile` makes one)"
                ) from None
            except openslide.OpenSlideError as error:
                raise ReadError(f"{self.path} is a damaged slide: {error}; copy it again or leave it out") from error
            self._opened_by = os.getpid()
        return self._handle

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None, "_opened_by": -1}

    def __repr__(self) -> str:
        return f"SlideImage({str(self.path)!r}, level={self.level}, shape={self.shape}, mpp={self.mpp})"


def _mpp(properties: Any, downsample: float) -> tuple[float, float] | None:
    try:
        y, x = (float(properties[f"openslide.mpp-{axis}"]) for axis in "yx")
    except (KeyError, ValueError):
        return None
    return (y * downsample, x * downsample)
