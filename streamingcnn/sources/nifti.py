"""Volumes in NIfTI files, through nibabel.

An uncompressed file is mapped, and boxes are cut from it. A `.nii.gz` is one stream from its first voxel to its last,
in which nothing can be found without unpacking all that is before it; so it is unpacked once per process, to a
temporary file without a name, and that is mapped.
"""

from __future__ import annotations

import gzip
import shutil
import tempfile
import zlib
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from streamingcnn.boxes import Box
from streamingcnn.extras import require
from streamingcnn.memory import format_bytes
from streamingcnn.sources.file import FileImage, Handle
from streamingcnn.sources.source import ReadError

__all__ = ["NiftiImage"]

#: Micrometres in a unit of the header.
_UNITS = {"meter": 1e6, "mm": 1e3, "micron": 1.0, "unknown": 1e3}


class NiftiImage(FileImage):
    """A volume as a source: (channels, z, y, x), where x, y and z are the file's first three axes.

    Example::

        volume = NiftiImage("t1.nii.gz")
        volume.shape, volume.mpp, volume.affine          # (1, 189, 233, 197), (1000.0, 1000.0, 1000.0), 4 x 4

    Values are given with the header's slope and intercept, as float32, where it has any; else as they are stored. A
    fourth axis of the file is the channels.

    Attributes:
        affine: from (x, y, z) of a voxel to millimetres, as in the file.

    Raises:
        FileNotFoundError: there is no such file.
        ReadError: it is no NIfTI file, or is shorter than its header says.
        ModuleNotFoundError: nibabel is missing.
    """

    axes = "CZYX"

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        require("nibabel")
        self._handle = Handle(partial(_mapped, self.path))
        header, affine, stored_as = _header(self.path)
        self.affine: npt.NDArray[np.float64] = affine
        extents = _extents(self.path, header)
        self.shape = (extents[3], *extents[2::-1])
        self._scaling = (float(stored_as.slope), float(stored_as.inter))
        self._scaled = self._scaling != (1.0, 0.0)
        stored = np.dtype(header.get_data_dtype()).newbyteorder("=")
        self.dtype = torch.float32 if self._scaled else torch.from_numpy(np.empty(0, stored)).dtype
        unit = _UNITS.get(header.get_xyzt_units()[0])
        zooms = [float(size) for size in header.get_zooms()[:3]]
        if unit is not None:
            zooms += [1.0] * (3 - len(zooms))
            self.stated_mpp = self.mpp = tuple(size * unit for size in reversed(zooms))

    def _pixels(self, box: Box) -> torch.Tensor:
        (z, y, x) = (slice(low, high) for low, high in box)
        part = self._handle.get()[x, y, z].transpose(3, 2, 1, 0)
        if self._scaled:
            part = part.astype(np.float64) * self._scaling[0] + self._scaling[1]
            return torch.from_numpy(part.astype(np.float32))
        return torch.from_numpy(part.astype(part.dtype.newbyteorder("="), order="C"))

    def close(self) -> None:
        self._handle.close()


def _header(path: Path) -> tuple[Any, npt.NDArray[np.float64], Any]:
    """The header, the affine, and where and how the voxels are stored (which nibabel takes out of the header)."""
    import nibabel

    if not path.is_file():
        raise FileNotFoundError(f"there is no volume at {path.absolute()}")
    try:
        image: Any = nibabel.load(path)
        if not isinstance(image, (nibabel.Nifti1Image, nibabel.Nifti2Image)):
            raise ReadError(f"{path} is a volume of another kind ({type(image).__name__}); needed is NIfTI")
        return image.header, np.asarray(image.affine, np.float64), image.dataobj
    except ReadError:
        raise
    except Exception as error:
        raise ReadError(f"{path} is no NIfTI file, or is damaged ({error}); copy it again or leave it out") from error


def _extents(path: Path, header: Any) -> tuple[int, int, int, int]:
    """The file's extents along x, y, z and channels."""
    shape = tuple(int(size) for size in header.get_data_shape())
    while len(shape) > 4 and 1 in shape[3:]:
        shape = (*shape[:3], *(size for size in shape[3:] if size > 1))
    if not 1 <= len(shape) <= 4 or not all(shape):
        raise ReadError(f"{path} holds an array of {' x '.join(map(str, shape))}; needed is x, y, z and channels")
    x, y, z, channels = (*shape, 1, 1, 1, 1)[:4]
    return x, y, z, channels


def _mapped(path: Path) -> npt.NDArray[Any]:
    """The voxels (x, y, z, channels) as they are stored, in a mapped file."""
    header, _, stored_as = _header(path)
    extents, dtype = _extents(path, header), header.get_data_dtype()
    start, wanted = int(stored_as.offset), prod(extents) * dtype.itemsize
    if path.suffix.lower() != ".gz":
        return _voxels(path, path, dtype, start, extents)
    with tempfile.TemporaryFile() as file:
        free = shutil.disk_usage(tempfile.gettempdir()).free
        if wanted > free:
            raise ReadError(
                f"{path} takes {format_bytes(wanted)} when it is unpacked, and {tempfile.gettempdir()} has "
                f"{format_bytes(free)} free; unpack it (gunzip) where there is room, or set TMPDIR"
            )
        try:
            with gzip.open(path) as packed:
                left = start + wanted  # a header must not make the disk full of what it does not name
                while left and (part := packed.read(min(left, 1 << 24))):
                    file.write(part)
                    left -= len(part)
        except (OSError, EOFError, zlib.error) as error:
            raise ReadError(f"{path} is damaged or incomplete ({error}); copy it again or leave it out") from error
        file.flush()
        return _voxels(path, file, dtype, start, extents)


def _voxels(path: Path, file: Any, dtype: npt.DTypeLike, start: int, extents: tuple[int, ...]) -> npt.NDArray[Any]:
    try:
        return np.memmap(file, dtype, "r", start, extents, order="F")
    except ValueError as error:
        raise ReadError(f"{path} is shorter than its header says ({error}); copy it again or leave it out") from error
