"""A mammogram or a volume from a file: what it is, its content says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamingcnn.extras import require
from streamingcnn.sources import open_image
from streamingcnn.sources.source import ReadError

__all__ = ["read_image"]


def read_image(path: str | Path) -> NDArray[Any]:
    """The pixels of an image, (H, W), or of a volume, (D, H, W), as they are stored.

    Example::

        read_image("L_CC.png").shape, read_image("L_CC.nii.gz").shape    # (3518, 2800), (70, 2457, 1890)

    PNG of 8 and 16 bits, TIFF, NumPy and zarr arrays, NIfTI (its last axis is the depth), and DICOM: of one file, with
    several frames a volume; inverted where the file says that high values are dark.

    Raises:
        ValueError: it has colours.
        ReadError: it cannot be read.
        ModuleNotFoundError: a library is missing; the message says which.
    """
    path = Path(path)
    if path.is_file() and _is_dicom(path):
        return _dicom(path)
    image = open_image(path)
    try:
        if image.shape[0] != 1:
            raise ValueError(
                f"{path} has {image.shape[0]} channels; a mammogram has one. Convert it to grey, or train on "
                "it as on a slide, with in_channels"
            )
        box = tuple((0, extent) for extent in image.shape[1:])
        return np.asarray(image.read(box)[0].numpy())
    finally:
        image.close()


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _dicom(path: Path) -> NDArray[Any]:
    require("pydicom")
    import pydicom

    try:
        file = pydicom.dcmread(path)
        pixels = np.asarray(file.pixel_array)
    except Exception as error:
        raise ReadError(f"{path} is a DICOM file whose pixels cannot be read ({error})") from error
    if str(file.get("PhotometricInterpretation", "MONOCHROME2")) not in ("MONOCHROME1", "MONOCHROME2"):
        raise ValueError(f"{path} has colours ({file.PhotometricInterpretation}); a mammogram is grey")
    if file.get("PhotometricInterpretation") == "MONOCHROME1":
        highest = (1 << int(file.BitsStored)) - 1
        pixels = (highest - pixels.astype(np.int64)).astype(pixels.dtype)
    return pixels
