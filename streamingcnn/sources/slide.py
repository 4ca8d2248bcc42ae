"""Whole-slide images through OpenSlide.

OpenSlide's own coordinates are (x, y) of the full image whatever the level; here, as everywhere in this
library, a box is (rows, columns) in pixels of the level that was opened.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import torch
from PIL import Image

from streamingcnn.boxes import Box, sizes
from streamingcnn.sources.file import FileImage, Handle
from streamingcnn.sources.resolution import plausible
from streamingcnn.sources.source import ReadError

__all__ = ["SlideImage"]

#: Decoded tiles that a handle keeps, in bytes.
CACHE = 32 << 20


class SlideImage(FileImage):
    """One level of a slide as a source: RGB, transparent pixels on the slide's own background.

    Example::

        image = SlideImage("slide.svs", level=1)
        image.shape, image.mpp                           # (3, 8192, 8192), (1.0, 1.0)
        image.read(((0, 256), (512, 1024)))              # (3, 256, 512) uint8

    Level 0 is the full image; negative levels count from the smallest one.

    Attributes:
        vendor: of the scanner, as OpenSlide names it.

    Raises:
        FileNotFoundError: there is no such file.
        ReadError: the file is no slide, or is damaged.
        ValueError: the slide has no such level.
    """

    def __init__(self, path: str | Path, level: int = 0) -> None:
        super().__init__(path)
        self._handle = Handle(partial(_opened, self.path), _closed)
        handle = self._handle.get()
        if not -handle.level_count <= level < handle.level_count:
            have = ", ".join(f"{n}: {h}x{w}" for n, (w, h) in enumerate(handle.level_dimensions))
            raise ValueError(f"{self.path} has no level {level}; its levels are (height x width) {have}")
        self.level = level % handle.level_count
        width, height = handle.level_dimensions[self.level]
        self.shape = (3, int(height), int(width))
        self.levels = tuple(float(downsample) for downsample in handle.level_downsamples)
        self.downsample = self.levels[self.level]
        self.vendor = str(handle.properties.get(openslide.PROPERTY_NAME_VENDOR, ""))
        stated = _mpp(handle.properties)
        self.stated_mpp = None if stated is None else tuple(size * self.downsample for size in stated)
        self.mpp = self.stated_mpp if plausible(stated) else None
        background = handle.properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "FFFFFF")
        self._background = f"#{background}"

    def at_level(self, level: int) -> SlideImage:
        return self if level == self.level else SlideImage(self.path, level)

    def _pixels(self, box: Box) -> torch.Tensor:
        rows, columns = sizes(box)
        corner = (round(box[1][0] * self.downsample), round(box[0][0] * self.downsample))
        handle = self._handle.get()
        try:
            region = handle.read_region(corner, self.level, (columns, rows))
        except openslide.OpenSlideError:
            # OpenSlide answers nothing more through a handle that has met an error, and another thread may have met
            # it, elsewhere: so the box is tried again through a handle of its own.
            self._handle.forget(handle)
            try:
                with _opened(self.path) as own:
                    region = own.read_region(corner, self.level, (columns, rows))
            except openslide.OpenSlideError as error:
                raise ReadError(
                    f"{self.path}: the region {box} of level {self.level} cannot be read ({error}); the file is "
                    f"damaged or incomplete, copy it again or leave it out"
                ) from error
        opaque = Image.new("RGB", region.size, self._background)
        opaque.paste(region, mask=region.getchannel("A"))
        return torch.from_numpy(np.array(opaque)).permute(2, 0, 1).contiguous()

    def close(self) -> None:
        self._handle.close()


def _opened(path: Path) -> openslide.OpenSlide:
    if not path.is_file():
        raise FileNotFoundError(f"there is no slide at {path.absolute()}")
    try:
        handle = openslide.OpenSlide(path)
    except openslide.OpenSlideUnsupportedFormatError:
        raise ReadError(
            f"{path} is not a slide that OpenSlide reads: a tiled TIFF, SVS, NDPI, MRXS or "
            f"another whole-slide format (`vips tiffsave --tile` makes one)"
        ) from None
    except openslide.OpenSlideError as error:
        raise ReadError(f"{path} is a damaged slide: {error}; copy it again or leave it out") from error
    handle.set_cache(openslide.OpenSlideCache(CACHE))
    return handle


def _closed(handle: openslide.OpenSlide) -> None:
    handle.close()


def _mpp(properties: Any) -> tuple[float, ...] | None:
    """Micrometres per pixel of the full image along (y, x), as the file says."""
    try:
        return tuple(float(properties[f"openslide.mpp-{axis}"]) for axis in "yx")
    except (KeyError, ValueError):
        return None
