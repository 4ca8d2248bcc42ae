"""From a path to an image: what a file is says its content, not its name.

first bytes            what                     read by
II*. MM.*              slide (SVS, NDPI, ...)   OpenSlide
                       any other TIFF           tifffile, by tiles and strips
.PNG  FF D8            picture                  Pillow, as a whole
.NUMPY                 array                    numpy, mapped
a NIfTI header         volume                   nibabel
a folder with zarr     array                    zarr
anything else          slide (MRXS, DICOM, ...) OpenSlide, wsidicom
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

import openslide

from streamingcnn.sources.arrays import NpyImage, ZarrImage
from streamingcnn.sources.dicom import DicomImage, is_dicom
from streamingcnn.sources.file import FileImage
from streamingcnn.sources.flat import FlatImage
from streamingcnn.sources.nifti import NiftiImage
from streamingcnn.sources.resampled import ResampledSource
from streamingcnn.sources.resolution import check_mpp, given_mpp, missing_mpp
from streamingcnn.sources.slide import SlideImage
from streamingcnn.sources.source import ReadError
from streamingcnn.sources.tiff import TiffImage, check_tiff

__all__ = ["READABLE", "at_mpp", "open_image"]

#: What :func:`open_image` reads, as it says itself where it cannot.
READABLE = (
    "slides that OpenSlide reads (.svs, .ndpi, .mrxs, .scn, .bif, .vms, .svslide, tiled .tif, DICOM .dcm), TIFF and "
    "OME-TIFF, .png, .jpg, .npy, zarr folders, .nii and .nii.gz"
)
#: An image within this share of a resolution is taken as it is.
CLOSE = 0.01

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_NIFTI = {344: (b"n+1\0", b"ni1\0"), 4: (b"n+2\0", b"ni2\0")}


def open_image(
    path: str | Path,
    mpp: float | None = None,
    level: int | None = None,
    page: int | None = None,
    *,
    slide_mpp: float | Sequence[float] | None = None,
) -> FileImage | ResampledSource:
    """Open an image file, at a resolution or at a level of its pyramid, to be read box by box.

    Example::

        image = open_image("slide.svs", mpp=0.5)
        image.shape, image.mpp                           # (3, 40960, 51200), (0.5, 0.5)
        image.read(((0, 256), (512, 1024)))              # (3, 256, 512) uint8

    What the file is, its content says. With ``mpp`` the nearest finer level is read and averaged over areas
    (:class:`~streamingcnn.sources.ResampledSource`); a level that is within 1 % of it is taken as it is, and
    ``image.mpp`` says what it has.

    Args:
        path: a slide, a TIFF, a picture, an array, a volume; see :data:`READABLE`.
        mpp: micrometres per pixel that are wanted.
        level: of the pyramid in place of ``mpp``: 0 is the full image, negative ones count from the smallest.
        page: of a TIFF, to read one page alone.
        slide_mpp: the micrometres per pixel of the full image, in place of what the file says: one number, or one per
            axis.

    Returns:
        A source with ``mpp``, ``downsample`` (pixels of the full image per pixel), ``read_all()`` and ``close()``.

    Raises:
        FileNotFoundError: there is no such file.
        ReadError: it is not of a kind that can be read, or is damaged.
        ValueError: both mpp and level; no such level; an mpp that the image has not, or that no slide has.
        ModuleNotFoundError: it needs a library that is not installed; the message names the extra.
    """
    if mpp is not None and level is not None:
        raise ValueError(f"mpp={mpp:g} and level={level}: give one of them, a resolution or a level")
    if mpp is not None:
        check_mpp(mpp, "mpp")
    image = _opened(Path(path), level or 0, page)
    if slide_mpp is not None:
        given = given_mpp(slide_mpp if isinstance(slide_mpp, (int, float)) else tuple(slide_mpp), len(image.axes) - 1)
        image.mpp = tuple(size * image.downsample for size in given)
    return image if mpp is None else at_mpp(image, float(mpp))


def at_mpp(image: FileImage, mpp: float) -> FileImage | ResampledSource:
    """An image at so many micrometres per pixel, from the coarsest of its levels that is not coarser.

    Raises:
        ValueError: the image does not know its own resolution, or has none as fine.
    """
    if image.mpp is None:
        raise missing_mpp(image.path, mpp, image.stated_mpp)
    finest = tuple(size / image.downsample for size in image.mpp)
    if max(finest) > mpp * (1 + CLOSE):
        raise ValueError(
            f"{image.path} has {max(finest):.4g} um per pixel at its finest, so mpp={mpp:g} would have to be made up; "
            f"take mpp={max(finest):.4g} or more, or level=0"
        )
    fine = [k for k, down in enumerate(image.levels) if max(finest) * down <= mpp * (1 + CLOSE)]
    chosen = max(fine, key=lambda k: image.levels[k])
    found = image.at_level(chosen)
    found.mpp = tuple(size * image.levels[chosen] for size in finest)
    factors = [mpp / size for size in found.mpp]
    if all(abs(factor - 1) <= CLOSE for factor in factors):
        return found
    return ResampledSource(found, [max(1.0, factor) for factor in factors])


def _opened(path: Path, level: int, page: int | None) -> FileImage:
    if not path.exists():
        raise FileNotFoundError(f"there is no slide at {path.absolute()}")
    if page is not None:
        return TiffImage(path, level, page)
    if path.is_dir():
        if any((path / name).exists() for name in ("zarr.json", ".zarray", ".zgroup")):
            return ZarrImage(path, level)
        if is_dicom(path):
            return DicomImage(path, level)
        raise _unreadable(path)
    with path.open("rb") as file:
        start = file.read(352)
    if not start:
        raise ReadError(f"{path} is empty (0 bytes); copy it again or leave it out")
    if start[:4] in _TIFF:
        return _tiff(path, level)
    if start.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")) and openslide.OpenSlide.detect_format(path) is None:
        return FlatImage(path).at_level(level)
    if start.startswith(b"\x93NUMPY"):
        return NpyImage(path).at_level(level)
    if _is_nifti(path, start):
        return NiftiImage(path).at_level(level)
    if is_dicom(path):
        return DicomImage(path, level)
    if openslide.OpenSlide.detect_format(path) is None:
        raise _unreadable(path)
    return SlideImage(path, level)


def _tiff(path: Path, level: int) -> FileImage:
    """A scanner's own slide, or colours in tiles, through OpenSlide; everything else through tifffile."""
    check_tiff(path)
    vendor = openslide.OpenSlide.detect_format(path)
    if vendor is None:
        return TiffImage(path, level)
    if vendor == "generic-tiff" and not _is_colour(path):
        return TiffImage(path, level)
    return SlideImage(path, level)


def _is_colour(path: Path) -> bool:
    """Whether a TIFF is what OpenSlide takes it for: bytes of red, green and blue."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        return page.samplesperpixel in (3, 4) and page.dtype == "uint8" and not file.is_ome and page.planarconfig == 1


def _is_nifti(path: Path, start: bytes) -> bool:
    if start.startswith(b"\x1f\x8b"):
        try:
            with gzip.open(path) as packed:
                start = packed.read(352)
        except (OSError, EOFError):
            return path.name.endswith((".nii.gz", ".nii"))
    return any(start[at : at + 4] in known for at, known in _NIFTI.items())


def _unreadable(path: Path) -> ReadError:
    return ReadError(f"{path} is not an image that can be read; what can be read are {READABLE}")
