"""Where a slide has tissue.

Glass is grey and tissue is stained, so at low resolution saturation tells them apart (Otsu's threshold). Nothing finds
all tissue of all slides: a mask of your own goes in by the same door, and so does none at all.

    mask = tissue_mask("slide.svs")                      # or "mask.png", or none
    mask.preview("slide.svs").save("preview.png")        # look at it
    image = mask.over(open_image("slide.svs", mpp=0.5))  # glass is one value from here on
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from streamingcnn.extras import require
from streamingcnn.slides.level0 import level_0
from streamingcnn.slides.thumbnail import Thumbnail, thumbnail
from streamingcnn.sources.masked import MaskedSource
from streamingcnn.sources.opened import open_image
from streamingcnn.sources.source import ReadError, Source

__all__ = ["TissueMask", "read_mask", "tissue_mask"]

#: Micrometres to a pixel of an automatic mask, where the slide says its own.
MPP = 8.0
#: Pixels along the longer side of a mask, at most: with known micrometres a pixel, and without.
_LONGEST, _LONGEST_BLIND = 4096, 1024
#: Otsu's threshold splits tissue itself where there is no glass, and noise where there is no tissue; saturation (of 1)
#: below the first is never tissue, above the second always.
_SATURATION = (0.05, 0.10)
#: Pixels of the image to a block of the masked source: small beside a tile, and few blocks even on the largest slide.
_BLOCK = 64


@dataclass(frozen=True, eq=False)
class TissueMask:
    """A map of what is kept of an image.

    Attributes:
        kept: (rows, columns), True for tissue.
        scale: pixels of level 0 along (y, x) to a pixel of the mask.
        size: height and width of level 0.
        mpp: micrometres to a pixel of the mask along (y, x), or None.
        how: where it comes from, in words; a run writes it down.
    """

    kept: NDArray[np.bool_]
    scale: tuple[float, float]
    size: tuple[int, int]
    mpp: tuple[float, float] | None
    how: str

    @property
    def share(self) -> float:
        """The share of the image that is tissue, 0 to 1."""
        return float(self.kept.mean())

    def over(self, source: Source, fill: float | Sequence[float] = 255, block: int = _BLOCK) -> MaskedSource:
        """The source with everything but tissue set to ``fill``, at whatever level or resolution it was opened.

        A block of ``block`` x ``block`` pixels of the source is kept where any of it is tissue.

        Raises:
            ValueError: there is no tissue at all, or the source has another aspect than the slide of this mask.
        """
        extents = (source.shape[-2], source.shape[-1])
        _check_aspect(extents, self.size, f"the image ({self.how})", "the slide of the mask")
        if not self.kept.any():
            raise ValueError(
                f"the tissue mask ({self.how}) keeps nothing of the image; give a mask of your own, or none (tissue "
                "'none') to keep all of it"
            )
        return MaskedSource(source, self.blocks(extents, block), fill, steps=(block, block))

    def blocks(self, extents: tuple[int, int], block: int) -> NDArray[np.bool_]:
        """Which blocks of the slide, scaled to ``extents`` pixels, touch tissue."""
        counts = np.zeros((self.kept.shape[0] + 1, self.kept.shape[1] + 1), np.int64)
        counts[1:, 1:] = self.kept.cumsum(0).cumsum(1)  # of tissue above and left: sums over boxes in four reads
        (top, bottom), (left, right) = (self._reach(axis, extents[axis], block) for axis in (0, 1))
        inside = counts[np.ix_(bottom, right)] - counts[np.ix_(top, right)]
        inside -= counts[np.ix_(bottom, left)] - counts[np.ix_(top, left)]
        found: NDArray[np.bool_] = inside > 0
        return found

    def _reach(self, axis: int, extent: int, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First and last (exclusive) pixel of the mask that each block of an axis touches."""
        starts = np.arange(0, extent, block)
        ends = np.minimum(starts + block, extent)
        per_pixel = self.size[axis] / extent / self.scale[axis]  # pixels of the mask to a pixel of the image
        last = self.kept.shape[axis]
        low = np.clip(np.floor(starts * per_pixel + 1e-6).astype(np.int64), 0, last - 1)
        return low, np.clip(np.ceil(ends * per_pixel - 1e-6).astype(np.int64), low + 1, last)

    def preview(self, image: str | Path | Source, longest: int = 1024) -> Image.Image:
        """The slide with everything but tissue dimmed, and a green line around the tissue.

        Args:
            image: the slide, as a path or a source.
            longest: pixels along the longer side.
        """
        picture = thumbnail(image, longest=longest).picture()
        kept = Image.fromarray(self.kept).resize(picture.size, Image.Resampling.NEAREST)
        dimmed = Image.blend(picture, Image.new("RGB", picture.size, (70, 70, 80)), 0.55)
        shown = Image.composite(picture, dimmed, kept)
        inside = np.asarray(kept)
        line = inside & ~_shrunk(inside, max(1, longest // 500))
        shown.paste((0, 150, 0), mask=Image.fromarray(line))
        ImageDraw.Draw(shown).text((6, 4), f"tissue {self.share:.1%}", fill=(0, 90, 0))
        return shown


def tissue_mask(
    image: str | Path | Source,
    how: str | Path | ArrayLike = "auto",
    *,
    speck: int = 64,
    hole: int = 256,
) -> TissueMask:
    """Where an image has tissue; a slide's level 0 is not read where there is another.

    Example::

        mask = tissue_mask("slide.svs")
        mask.share, mask.mpp                             # 0.31, (8.0, 8.0)
        tissue_mask("slide.svs", "masks/slide.png")      # of your own: anything but 0 is tissue
        tissue_mask("slide.svs", "none")                 # all of it

    Args:
        image: a path, or a source of RGB.
        how: "auto", "none", the file of a mask (.png, .tif, .npy; any size with the slide's aspect), or an array.
        speck: for "auto", pieces of tissue with fewer pixels of the mask than this are left out; a pixel of the mask
            has 8 um where the slide says its resolution.
        hole: for "auto", holes with fewer pixels than this are filled.

    Raises:
        ValueError: the mask's aspect is not the slide's, or there is no colour to tell tissue by.
        FileNotFoundError: there is no such mask.
        ReadError: the image or the mask is damaged.
    """
    if isinstance(how, str) and how == "auto":
        return _automatic(image, speck, hole)
    whole = level_0(open_image(image) if isinstance(image, (str, Path)) else image)
    size = whole.size
    if isinstance(how, str) and how == "none":
        kept, said = np.ones((1, 1), bool), "none: all of the image is kept"
    else:
        kept, said = (
            (read_mask(how), f"mask {how}")
            if isinstance(how, (str, Path))
            else (np.asarray(how).astype(bool), "mask given as an array")
        )
        if kept.ndim != 2 or not kept.size:
            raise ValueError(f"{said} has shape {kept.shape}; needed are rows and columns")
        _check_aspect((kept.shape[0], kept.shape[1]), size, said, "the slide")
    scale = (size[0] / kept.shape[0], size[1] / kept.shape[1])
    mpp = None if whole.mpp is None else (whole.mpp[0] * scale[0], whole.mpp[1] * scale[1])
    return TissueMask(kept, scale, size, mpp, said)


def read_mask(path: str | Path) -> NDArray[np.bool_]:
    """The mask in a file: True for everything but 0.

    A pyramid (as CAMELYON's masks are) is read at a level of at most 4096 pixels; any other file must fit into memory.

    Raises:
        FileNotFoundError: there is no such file.
        ReadError: it is no mask that can be read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no mask at {path.absolute()}")
    if path.suffix.lower() == ".npy":
        try:
            return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False)).astype(bool)
        except (ValueError, EOFError) as error:
            raise ReadError(f"{path} is no array that NumPy can load: {error}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                one_channel: NDArray[np.uint8] = np.array(picture.convert("RGB") if picture.mode == "P" else picture)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        pass  # too large to be read whole; a pyramid of it is read below
    except (OSError, ValueError, SyntaxError) as error:
        if path.suffix.lower() not in (".tif", ".tiff", ".svs"):
            raise ReadError(f"{path} is no picture that can be read ({error}); .png, .tif and .npy can") from error
    else:
        return np.asarray(one_channel.reshape(*one_channel.shape[:2], -1).any(2))
    pixels = thumbnail(path, longest=_LONGEST).pixels  # a mean above 0: something in the block was not 0
    return np.asarray(pixels.max(2) > 0)


def _automatic(image: str | Path | Source, speck: int, hole: int) -> TissueMask:
    require("skimage")
    from skimage.filters import gaussian, threshold_otsu
    from skimage.morphology import remove_small_holes, remove_small_objects

    opened = open_image(image) if isinstance(image, (str, Path)) else image
    longest = _LONGEST_BLIND if level_0(opened).mpp is None else _LONGEST
    small = thumbnail(opened, longest=longest, mpp=MPP)
    saturation = gaussian(_saturation(small), sigma=1, mode="nearest")
    otsu = float(threshold_otsu(saturation)) if np.ptp(saturation) > 0 else 1.0
    threshold = float(np.clip(otsu, *_SATURATION))
    kept = remove_small_objects(saturation > threshold, max_size=speck - 1)
    outside = np.pad(kept, 1)  # glass in a corner of the image is no hole
    kept = remove_small_holes(outside, max_size=hole - 1)[1:-1, 1:-1]
    said = f"auto: saturation above {threshold:.3f}, pieces of {speck} and holes of {hole} pixels"
    return TissueMask(np.asarray(kept, bool), small.scale, small.size, small.mpp, said)


def _saturation(small: Thumbnail) -> NDArray[np.float32]:
    if small.pixels.shape[2] < 3:
        raise ValueError(
            f"an image of {small.pixels.shape[2]} channel(s) has no colour to find tissue by; give the file of a mask, "
            "or 'none' to keep all of it"
        )
    rgb = small.pixels[..., :3]
    brightest = rgb.max(2)
    return np.asarray((brightest - rgb.min(2)) / np.maximum(brightest, 1e-6), np.float32)


def _check_aspect(given: tuple[int, int], wanted: tuple[int, int], what: str, of: str) -> None:
    """Refuse sizes that no common scale, rounded to pixels either way, can explain."""
    fits = any(
        abs(given[other] - wanted[other] * given[axis] / wanted[axis]) <= 1 + 0.01 * given[other]
        for axis, other in ((0, 1), (1, 0))
    )
    if not fits:
        raise ValueError(
            f"{what} is {given[0]} x {given[1]} (height x width), and {of} {wanted[0]} x {wanted[1]}: the aspects "
            f"{given[1] / given[0]:.3f} and {wanted[1] / wanted[0]:.3f} differ. It must be of this image, uncropped, "
            f"such as {max(1, round(wanted[0] / 32))} x {max(1, round(wanted[1] / 32))}"
        )


def _shrunk(inside: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    """What is left of a region whose border is taken away."""
    padded = np.pad(inside, by)
    rows, columns = inside.shape
    left = inside.copy()
    for down, right in ((0, by), (2 * by, by), (by, 0), (by, 2 * by)):
        left &= padded[down : down + rows, right : right + columns]
    return left
