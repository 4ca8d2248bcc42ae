"""Arrays in files: .npy, mapped, and zarr, read chunk by chunk.

An array says nothing of its axes, so there is one rule: an array of two axes is grey; one of three or more whose last
axis has 3 or 4 and is bytes is colours last, as pictures are kept; every other one has its channels first. A zarr
array with names for its axes (OME-Zarr, xarray) is taken at its word.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from streamingcnn.boxes import Box
from streamingcnn.extras import require
from streamingcnn.sources.file import FileImage, Handle
from streamingcnn.sources.resolution import plausible
from streamingcnn.sources.source import ReadError

__all__ = ["NpyImage", "ZarrImage"]

_UNITS = {"micrometer": 1.0, "micron": 1.0, "nanometer": 1e-3, "millimeter": 1e3, "centimeter": 1e4}


class _ArrayFile(FileImage):
    """An array in a file, by the names of its axes: c, z, y, x, and others of size 1."""

    def _lay_out(self, shape: tuple[int, ...], dtype: Any, names: str | None) -> None:
        names = _names(shape, np.dtype(dtype)) if names is None else names
        sizes = dict(zip(names, shape, strict=True))
        wrong = [axis for axis, size in sizes.items() if size != 1 and axis not in "czyx"]
        space = [axis for axis in "zyx" if axis in sizes]
        if wrong or "x" not in sizes or not all(shape) or len(sizes) != len(shape):
            raise ReadError(
                f"{self.path} holds an array of {' x '.join(map(str, shape))} with the axes '{names}'; needed are "
                "channels and up to three axes of space, none of them empty"
            )
        self._names = names
        self._order = [axis for axis in names if axis in ("c", *space)]
        self._space = space
        self.shape = (sizes.get("c", 1), *(sizes[axis] for axis in space))
        self.axes = "C" + "".join(space).upper()
        self.dtype = torch.from_numpy(np.empty(0, np.dtype(dtype).newbyteorder("="))).dtype

    def _cut(self, array: Any, box: Box) -> torch.Tensor:
        ranges = dict(zip(self._space, box, strict=True))
        at: Any = tuple(
            slice(*ranges[axis]) if axis in ranges else slice(None) if axis == "c" else 0 for axis in self._names
        )
        part = np.asarray(array[at])
        part = part.transpose([self._order.index(axis) for axis in ("c", *self._space) if axis in self._order])
        native = part.astype(part.dtype.newbyteorder("="), order="C", copy=True)
        return torch.from_numpy(native.reshape(self.shape[0], *(high - low for low, high in box)))


class NpyImage(_ArrayFile):
    """An array saved by `numpy.save` as a source; it is mapped, never loaded.

    Example::

        NpyImage("volume.npy").read(((0, 16), (0, 64), (0, 64)))

    Raises:
        FileNotFoundError: there is no such file.
        ReadError: it is no such array, or is shorter than its header says.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._handle = Handle(partial(_mapped, self.path))
        array = self._handle.get()
        self._lay_out(array.shape, array.dtype, None)

    def _pixels(self, box: Box) -> torch.Tensor:
        return self._cut(self._handle.get(), box)

    def close(self) -> None:
        self._handle.close()


class ZarrImage(_ArrayFile):
    """A zarr array (versions 2 and 3, in a local folder) or an OME-Zarr pyramid as a source.

    Example::

        ZarrImage("slide.ome.zarr", level=2).mpp         # from the metadata, where there is any

    Raises:
        FileNotFoundError: there is no such folder.
        ReadError: it is no zarr, or a part of it is missing.
        ValueError: there is no such level.
        ModuleNotFoundError: zarr is missing.
    """

    def __init__(self, path: str | Path, level: int = 0) -> None:
        super().__init__(path)
        require("zarr")
        found = _pyramid(self.path)
        if not -len(found) <= level < len(found):
            raise ValueError(f"{self.path} has no level {level}; it has {len(found)}, from 0")
        self.level = level % len(found)
        inside, names, _ = found[self.level]
        self._handle = Handle(partial(_array, self.path, inside))
        array = self._handle.get()
        self._lay_out(tuple(array.shape), array.dtype, names)
        first = _array(self.path, found[0][0])
        widths = [_array(self.path, each[0]).shape[self._names.index("x")] for each in found]
        self.levels = tuple(first.shape[self._names.index("x")] / width for width in widths)
        self.downsample = self.levels[self.level]
        scale = found[self.level][2]
        if scale and all(axis in scale for axis in self._space):
            self.stated_mpp = tuple(scale[axis] for axis in self._space)
            full = tuple(size / self.downsample for size in self.stated_mpp)
            self.mpp = self.stated_mpp if len(full) == 3 or plausible(full) else None

    def at_level(self, level: int) -> ZarrImage:
        return self if level == self.level else ZarrImage(self.path, level)

    def _pixels(self, box: Box) -> torch.Tensor:
        try:
            return self._cut(self._handle.get(), box)
        except (OSError, ValueError, RuntimeError) as error:
            raise ReadError(f"{self.path}: the region {box} cannot be read ({error}); the array is damaged") from error

    def close(self) -> None:
        self._handle.close()


def _names(shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
    """The axes of an array that does not say."""
    if len(shape) == 2:
        return "yx"
    if len(shape) >= 3 and shape[-1] in (3, 4) and dtype == np.uint8:
        return "zyx"[4 - len(shape) :] + "c" if len(shape) <= 4 else "?" * len(shape)
    return "c" + "zyx"[4 - len(shape) :] if len(shape) <= 4 else "?" * len(shape)


def _mapped(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"there is no array at {path.absolute()}")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ReadError(
            f"{path} is no array of numpy, or is damaged ({error}); copy it again or leave it out"
        ) from error


def _pyramid(path: Path) -> list[tuple[str, str | None, dict[str, float]]]:
    """The arrays of a folder, the finest first: path inside, names of the axes, micrometres per pixel by axis."""
    import zarr

    if not path.exists():
        raise FileNotFoundError(f"there is no zarr at {path.absolute()}")
    try:
        node: Any = zarr.open(path, mode="r")
    except Exception as error:
        raise ReadError(f"{path} is no zarr array or group ({error})") from error
    if isinstance(node, zarr.Array):
        attributes: dict[str, Any] = dict(node.attrs)
        dimensions = getattr(node.metadata, "dimension_names", None) or attributes.get("_ARRAY_DIMENSIONS")
        names = "".join(str(axis)[:1].lower() for axis in dimensions) if dimensions and all(dimensions) else None
        if names is not None and (len(set(names)) < len(names) or "x" not in names):
            names = None  # names of something else
        scale = {axis: float(size) for axis, size in attributes.get("um_per_pixel", {}).items()}
        return [("", names, scale)]
    attributes = dict(node.attrs)
    multiscales = attributes.get("ome", attributes).get("multiscales")
    if not multiscales:
        raise ReadError(f"{path} is a zarr group without an image; give the path of an array in it: {sorted(node)}")
    axes = [axis if isinstance(axis, dict) else {"name": axis} for axis in multiscales[0]["axes"]]
    names = "".join(str(axis["name"])[:1].lower() for axis in axes)
    found: list[tuple[str, str | None, dict[str, float]]] = []
    for one in multiscales[0]["datasets"]:
        steps = [t["scale"] for t in one.get("coordinateTransformations", ()) if t.get("type") == "scale"]
        sizes = zip(axes, steps[0] if steps else (), strict=False)
        scale = {
            str(axis["name"])[:1].lower(): float(step) * _UNITS[axis["unit"]]
            for axis, step in sizes
            if axis.get("unit") in _UNITS
        }
        found.append((str(one["path"]), names, scale))
    return found


def _array(path: Path, inside: str) -> Any:
    import zarr

    try:
        return zarr.open_array(path / inside if inside else path, mode="r")
    except Exception as error:
        raise ReadError(f"{path}: its array '{inside}' cannot be opened ({error})") from error
