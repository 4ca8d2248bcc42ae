"""A small picture of a large image, in bounded memory.

The coarsest level of the pyramid that is fine enough is read box by box and averaged over whole blocks of pixels, so
that a pixel of the picture stands for a known square of the full image; level 0 is read only where there is no other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from streamingcnn.boxes import Box
from streamingcnn.slides.level0 import file_image, level_0
from streamingcnn.sources.opened import open_image
from streamingcnn.sources.source import Source

__all__ = ["Thumbnail", "thumbnail"]

#: Pixels along the side of the boxes that are read.
_READ = 2048


@dataclass(frozen=True, eq=False)
class Thumbnail:
    """A picture and where it lies.

    Attributes:
        pixels: (height, width, channels) float32, in the image's own units.
        scale: pixels of level 0 along (y, x) to a pixel of the picture.
        size: height and width of level 0.
        mpp: micrometres to a pixel of the picture along (y, x), or None.
    """

    pixels: NDArray[np.float32]
    scale: tuple[float, float]
    size: tuple[int, int]
    mpp: tuple[float, float] | None

    def picture(self) -> Image.Image:
        """The picture as RGB, for bytes; one channel becomes grey."""
        bytes_ = np.clip(np.rint(self.pixels), 0, 255).astype(np.uint8)
        return Image.fromarray(bytes_[..., 0] if bytes_.shape[2] == 1 else bytes_[..., :3]).convert("RGB")


def thumbnail(image: str | Path | Source, *, longest: int = 1024, mpp: float | None = None) -> Thumbnail:
    """A small picture of an image, at most ``longest`` pixels along its longer side.

    Example::

        small = thumbnail("slide.svs", longest=512)
        small.picture().save("small.png")
        small.scale                                      # (127.8, 127.8) pixels of level 0 to a pixel

    Args:
        image: a path, or a source of (channels, height, width).
        longest: pixels along the longer side, at most.
        mpp: micrometres a pixel that are fine enough; the picture is then no larger than that needs.

    Raises:
        ValueError: the source is not one image of two axes.
        ReadError: the file is damaged.
    """
    opened: Source = open_image(image) if isinstance(image, (str, Path)) else image
    if len(opened.shape) != 3:
        raise ValueError(f"needed is one image of (channels, height, width); {opened!r} has {opened.axes}")
    whole = level_0(opened)
    # By how much level 0 may be made smaller: no less than the image that was given.
    wanted = max(1.0, max(whole.size) / longest, *whole.per_pixel)
    if mpp is not None and whole.mpp is not None:
        wanted = max(wanted, mpp / max(whole.mpp))
    level = _coarsest(opened, wanted)
    rows, columns = level.shape[-2:]
    already = max(level_0(level).per_pixel)
    step = max(1, int(wanted / already + 1e-6))
    if max(-(-rows // step), -(-columns // step)) > longest:
        step += 1
    pixels = np.empty((-(-rows // step), -(-columns // step), level.shape[0]), np.float32)
    for box in _boxes((rows, columns), step):
        at = tuple(slice(low // step, -(-high // step)) for low, high in box)
        pixels[at] = _averaged(level.read(box), step)
    scale = (step * whole.size[0] / rows, step * whole.size[1] / columns)
    mpp_of = None if whole.mpp is None else (whole.mpp[0] * scale[0], whole.mpp[1] * scale[1])
    return Thumbnail(pixels, scale, whole.size, mpp_of)


def _coarsest(image: Source, wanted: float) -> Source:
    """The level of an image's file that is nearest to so many pixels of level 0 to a pixel, and no coarser."""
    file = file_image(image)
    if file is None:
        return image
    fine = [number for number, downsample in enumerate(file.levels) if downsample <= wanted * (1 + 1e-3)]
    return file.at_level(max(fine, key=lambda number: file.levels[number])) if fine else file


def _boxes(extents: tuple[int, int], step: int) -> Iterator[Box]:
    side = max(1, _READ // step) * step
    for top in range(0, extents[0], side):
        for left in range(0, extents[1], side):
            yield (top, min(top + side, extents[0])), (left, min(left + side, extents[1]))


def _averaged(pixels: torch.Tensor, step: int) -> NDArray[np.float32]:
    """Means over blocks of step x step pixels, the last of which may be smaller; channels last."""
    means = torch.nn.functional.avg_pool2d(pixels[None].float(), step, ceil_mode=True, count_include_pad=False)[0]
    return means.permute(1, 2, 0).numpy()
