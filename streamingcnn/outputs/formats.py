"""The formats that results end in: .npy, .zarr, .tif, .nii and .nii.gz, each written once, from its first byte on."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from streamingcnn.boxes import grid
from streamingcnn.extras import require
from streamingcnn.outputs.blocks import Blocks

__all__ = ["FORMATS", "Described", "format_of"]

#: The side of a tile of a TIFF.
_TILE = 256


@dataclass(frozen=True)
class Described:
    """What a result's metadata says.

    Attributes:
        mpp: micrometres per pixel along each spatial axis, or None.
        affine: from (x, y, z) of a voxel to millimetres, or None.
        about: anything else, as JSON.
    """

    mpp: tuple[float, ...] | None
    affine: npt.NDArray[np.float64] | None
    about: dict[str, Any]


def _npy(blocks: Blocks, path: Path, described: Described) -> None:
    with path.open("wb") as file:
        header: Any = {
            "descr": np.lib.format.dtype_to_descr(blocks.dtype),
            "fortran_order": False,
            "shape": (blocks.channels, *blocks.extents),
        }
        np.lib.format.write_array_header_2_0(file, header)
        _write(blocks, file)


def _write(blocks: Blocks, file: IO[bytes]) -> None:
    for band in blocks.bands():
        file.write(band.tobytes())


def _zarr(blocks: Blocks, path: Path, described: Described) -> None:
    import zarr

    side = {1: 65536, 2: 512, 3: 64}[len(blocks.extents)]
    steps = tuple(min(side, extent) for extent in blocks.extents)
    axes = "zyx"[3 - len(steps) :]
    array: Any = zarr.create_array(
        store=path,
        shape=(blocks.channels, *blocks.extents),
        chunks=(min(blocks.channels, 16), *steps),
        dtype=blocks.dtype,
        dimension_names=("c", *axes),
    )
    for box in grid(blocks.extents, steps):
        array[(slice(None), *(slice(low, high) for low, high in box))] = blocks.read(box)
    if described.mpp is not None:
        array.attrs["um_per_pixel"] = dict(zip(axes, described.mpp, strict=True))
    array.attrs["streamingcnn"] = described.about


def _tiff(blocks: Blocks, path: Path, described: Described) -> None:
    bytes_in_all = blocks.channels * int(np.prod(blocks.extents)) * blocks.dtype.itemsize
    resolution: dict[str, Any] = {}
    if described.mpp is not None:
        y, x = described.mpp
        resolution = {"resolution": (10_000 / x, 10_000 / y), "resolutionunit": "CENTIMETER"}
    import tifffile

    with tifffile.TiffWriter(path, bigtiff=bytes_in_all > 2**31) as tiff:
        tiff.write(
            _tiles(blocks),
            shape=(blocks.channels, *blocks.extents) if blocks.channels > 1 else blocks.extents,
            dtype=blocks.dtype,
            tile=(_TILE, _TILE),
            photometric="minisblack",
            planarconfig="separate" if blocks.channels > 1 else None,
            compression="adobe_deflate",
            compressionargs={"level": 1},
            description=json.dumps(described.about),
            metadata=None,
            maxworkers=1,
            **resolution,
        )


def _tiles(blocks: Blocks) -> Iterator[npt.NDArray[Any]]:
    for band in blocks.bands(_TILE):
        for left in range(0, band.shape[1], _TILE):
            tile = band[:, left : left + _TILE]
            yield np.pad(tile, [(0, _TILE - tile.shape[0]), (0, _TILE - tile.shape[1])], mode="edge")


def _nifti(blocks: Blocks, path: Path, described: Described) -> None:
    import nibabel

    # (channels, z, y, x) in C's order is (x, y, z, channels) in Fortran's, which is NIfTI's.
    shape = (*blocks.extents[::-1], *((blocks.channels,) if blocks.channels > 1 else ()))
    kind: Any = nibabel.Nifti2Header if max(shape) > 32767 else nibabel.Nifti1Header
    header = kind()
    header.set_data_dtype(blocks.dtype)
    header.set_data_shape(shape)
    affine = described.affine
    if affine is None:
        mpp = described.mpp or (1000.0,) * 3
        affine = np.diag([*(size / 1000 for size in reversed(mpp)), 1.0])
    header.set_sform(affine, "aligned")
    header.set_qform(affine, "aligned", strip_shears=True)
    header.set_xyzt_units("mm")
    header["descrip"] = b"streamingcnn"
    header.set_slope_inter(1.0, 0.0)
    header["magic"] = header.single_magic
    header.set_data_offset(header.single_vox_offset)
    with ExitStack() as files:
        if path.name.endswith(".gz"):
            raw: Any = files.enter_context(path.open("wb"))
            file: Any = files.enter_context(gzip.GzipFile("", "wb", 1, raw, mtime=0))
        else:
            file = files.enter_context(path.open("wb"))
        start = header.binaryblock
        file.write(start + bytes(header.single_vox_offset - len(start)))
        _write(blocks, file)


#: By ending: how it is written, the numbers of spatial axes that it takes, what it needs.
FORMATS: dict[str, tuple[Callable[[Blocks, Path, Described], None], tuple[int, ...], str | None]] = {
    ".zarr": (_zarr, (1, 2, 3), "zarr"),
    ".tif": (_tiff, (2,), None),
    ".tiff": (_tiff, (2,), None),
    ".nii": (_nifti, (3,), "nibabel"),
    ".nii.gz": (_nifti, (3,), "nibabel"),
    ".npy": (_npy, (1, 2, 3), None),
}


def format_of(path: Path, space: int) -> Callable[[Blocks, Path, Described], None]:
    """How a result of so many spatial axes is written to a path.

    Raises:
        ValueError: the ending is none of those known, or does not take so many axes.
        ModuleNotFoundError: the format's library is missing.
    """
    ending = next((ending for ending in FORMATS if path.name.lower().endswith(ending)), None)
    fitting = ", ".join(ending for ending, (_, spaces, _) in FORMATS.items() if space in spaces)
    if ending is None:
        raise ValueError(f"out={str(path)!r}: a result with {space} spatial axes is written as one of {fitting}")
    write, spaces, module = FORMATS[ending]
    if space not in spaces:
        raise ValueError(f"out={str(path)!r}: {ending} takes no result with {space} spatial axes; take {fitting}")
    if module is not None:
        require(module)
    return write
