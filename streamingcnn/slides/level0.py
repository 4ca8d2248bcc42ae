"""Where the pixels of an opened image lie in its slide: everything that is kept or shown is in pixels of level 0."""

from __future__ import annotations

from dataclasses import dataclass

from streamingcnn.sources.file import FileImage
from streamingcnn.sources.resampled import ResampledSource
from streamingcnn.sources.source import Source

__all__ = ["Level0", "file_image", "level_0"]


@dataclass(frozen=True)
class Level0:
    """The full image behind an opened one.

    Attributes:
        size: its height and width in pixels.
        per_pixel: its pixels to a pixel of the opened image, along (y, x).
        mpp: micrometres to a pixel of it along (y, x), or None.
    """

    size: tuple[int, int]
    per_pixel: tuple[float, float]
    mpp: tuple[float, float] | None


def level_0(image: Source) -> Level0:
    """The full image of whatever was opened: a level, a resolution, an array (which is its own).

    Example::

        level_0(open_image("slide.svs", mpp=1.0))        # Level0(size=(2967, 2220), per_pixel=(2.004, 2.004), ...)
    """
    base, factors = image, (1.0, 1.0)
    if isinstance(image, ResampledSource):
        base, factors = image.source, (image.factors[-2], image.factors[-1])
    downsample = float(getattr(base, "downsample", 1.0))
    full = base.at_level(0) if isinstance(base, FileImage) else base
    known = getattr(base, "mpp", None)
    return Level0(
        (int(full.shape[-2]), int(full.shape[-1])),
        (downsample * factors[0], downsample * factors[1]),
        None if known is None else (known[-2] / downsample, known[-1] / downsample),
    )


def file_image(image: Source) -> FileImage | None:
    """The file that an image is read from at the full resolution of one of its levels; None for an array."""
    base = image.source if isinstance(image, ResampledSource) else image
    return base if isinstance(base, FileImage) else None
