"""Pictures without tiles: PNG and JPEG, read through Pillow.

Neither can be read in parts, so the picture is decoded as a whole, once per process, and there is a limit on how large
it may be.
"""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from streamingcnn.boxes import Box
from streamingcnn.sources.file import FileImage, Handle
from streamingcnn.sources.resolution import plausible
from streamingcnn.sources.source import ReadError

__all__ = ["FlatImage"]

#: The pixels that a picture may have: 512 MB of colours. Larger ones are to be slides, which are read by box.
LARGEST = 13_000**2


class FlatImage(FileImage):
    """A PNG or JPEG as a source: grey (1 channel) or RGB, transparent pixels on white.

    Example::

        image = FlatImage("region.png")
        image.read(((0, 256), (0, 256)))                 # (3, 256, 256) uint8; 16-bit greys are uint16

    Raises:
        FileNotFoundError: there is no such file.
        ReadError: it is no picture, is damaged, or has more than 169 million pixels.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._handle = Handle(partial(_decoded, self.path))
        with _open(self.path) as picture:
            width, height = picture.size
            mode = _mode(picture.mode)
            dots = picture.info.get("dpi")
        self.dtype = torch.uint16 if mode == "I;16" else torch.uint8
        self.shape = (3 if mode == "RGB" else 1, height, width)
        if dots and all(dots):
            self.stated_mpp = (25400 / float(dots[1]), 25400 / float(dots[0]))
            self.mpp = plausible(self.stated_mpp)

    def _pixels(self, box: Box) -> torch.Tensor:
        (top, bottom), (left, right) = box
        return self._handle.get()[:, top:bottom, left:right].clone()

    def close(self) -> None:
        self._handle.close()


def _open(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"there is no image at {path.absolute()}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # there is a limit of our own below
            picture = Image.open(path, formats=("PNG", "JPEG"))
    except Image.DecompressionBombError as error:
        raise _too_large(path, str(error)) from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ReadError(f"{path} is no PNG or JPEG, or is damaged ({error}); copy it again or leave it out") from error
    if picture.width * picture.height > LARGEST:
        picture.close()
        raise _too_large(path, f"{picture.height} x {picture.width} pixels")
    return picture


def _too_large(path: Path, said: str) -> ReadError:
    return ReadError(
        f"{path} is too large for a picture that has to be decoded as a whole ({said}; at most {LARGEST} pixels are); "
        "make it a tiled TIFF, which is read by box: `vips tiffsave picture.png slide.tif --tile --pyramid`"
    )


def _mode(mode: str) -> str:
    """The mode that pixels are given in."""
    if mode.startswith("I"):
        return "I;16"
    return "L" if mode in ("1", "L") else "RGB"


def _decoded(path: Path) -> torch.Tensor:
    with _open(path) as picture:
        mode = _mode(picture.mode)
        try:
            if mode == "RGB" and picture.has_transparency_data:
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
            pixels = np.array(picture if mode == "I;16" else picture.convert(mode))
        except (OSError, SyntaxError, ValueError) as error:
            raise ReadError(f"{path} is damaged ({error}); copy it again or leave it out") from error
    if mode == "I;16":
        pixels = pixels.astype(np.uint16)
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1).contiguous()
