"""Where stored maps live: on the device, in the host's memory, or in a file.

A map asks its place for memory and goes through it to read, write and add; it knows nothing else of where it is.

    place      memory                    a box that is read             what it counts for
    device     the device's own          a view                         the budget
    host       pinned, beside a GPU      a copy on the device           nothing
    disk       a mapped file             CPU: a view; GPU: a copy       nothing

On a CPU, host and device are one. Results of the network and its inputs are always on the device.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from .disk import MappedFile, aligned
from .staging import Staging

#: Memory for a tensor of a shape, a dtype and strides.
Allocate = Callable[[Sequence[int], torch.dtype, Sequence[int]], Tensor]


class Place:
    """The device itself: a map is a tensor there, and a box is a view of it."""

    #: Whether a tile that covers a whole map may be the map.
    takes_tiles = True

    def empty(
        self, shape: Sequence[int], dtype: torch.dtype, memory_format: torch.memory_format, device: torch.device
    ) -> Tensor:
        """Uninitialised memory for a map of tiles on a device."""
        return torch.empty(shape, dtype=dtype, device=device, memory_format=memory_format)

    def read(self, view: Tensor) -> Tensor:
        """The view's values on the device."""
        return view

    def write(self, view: Tensor, tile: Tensor) -> None:
        """Set a view of a map to a tile's values."""
        view.copy_(tile)

    def add(self, view: Tensor, tile: Tensor) -> None:
        """Add a tile's values to a view of a map."""
        view.add_(tile)


#: Where maps live unless a plan says otherwise.
DEVICE = Place()


class Outside(Place):
    """Memory that is not the device's; with ``staging`` the device cannot work on it and gets copies."""

    takes_tiles = False

    def __init__(self, allocate: Allocate, staging: Staging | None = None) -> None:
        self.allocate, self.staging = allocate, staging

    def empty(
        self, shape: Sequence[int], dtype: torch.dtype, memory_format: torch.memory_format, device: torch.device
    ) -> Tensor:
        with _disable_current_modes():
            strides = torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format).stride()
        return self.allocate(shape, dtype, strides)

    def read(self, view: Tensor) -> Tensor:
        return view if self.staging is None else self.staging.fetch(view)

    def write(self, view: Tensor, tile: Tensor) -> None:
        if self.staging is None:
            view.copy_(tile)
        else:
            self.staging.send(view, tile, Tensor.copy_)

    def add(self, view: Tensor, tile: Tensor) -> None:
        if self.staging is None:
            view.add_(tile)
        else:
            self.staging.send(view, tile, Tensor.add_)


class Nowhere(Place):
    """Outside, for a rehearsal on tensors without numbers: its maps count for nothing, what is read from it does."""

    takes_tiles = False

    def __init__(self, copies: bool) -> None:
        self.copies = copies

    def empty(
        self, shape: Sequence[int], dtype: torch.dtype, memory_format: torch.memory_format, device: torch.device
    ) -> Tensor:
        with _disable_current_modes():  # unseen by the counter of bytes
            return torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format)

    def read(self, view: Tensor) -> Tensor:
        return torch.empty_like(view) if self.copies else view


class Offload(NamedTuple):
    """What a user says of where stored maps may live: ``where`` is auto, device, host or disk."""

    where: str
    folder: str | None = None

    def __str__(self) -> str:
        return self.where if self.folder is None else f"{self.where}:{self.folder}"

    def on(self, device: torch.device) -> str:
        """The same for a device: a CPU has no other memory than the host's."""
        return "device" if device.type == "cpu" and self.where in ("auto", "host") else self.where


def parse_offload(offload: str) -> Offload:
    """``"auto"``, ``"device"``, ``"host"`` or ``"disk:/path"``, checked.

    >>> parse_offload("disk:/tmp")
    Offload(where='disk', folder='/tmp')

    Raises:
        ValueError: it is none of these.
        NotADirectoryError, PermissionError: the path is no directory, or must not be written to.
    """
    if offload in ("auto", "device", "host"):
        return Offload(offload)
    where, _, path = str(offload).partition(":")
    if where != "disk" or not path:
        raise ValueError(
            f"offload={offload!r}; needed is 'auto', 'device', 'host', or 'disk:' and a directory ('disk:/scratch')"
        )
    folder = os.path.abspath(os.path.expanduser(path))
    if not os.path.isdir(folder):
        raise NotADirectoryError(f"offload={offload!r}: {folder} is no directory; make it first, on a disk with room")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"offload={offload!r}: {folder} must not be written to by this user")
    return Offload("disk", folder)


class Wanted(NamedTuple):
    """What one stored map asks for: a place, and the bytes of the map and of its gradient."""

    place: str
    blocks: tuple[int, ...]


def open_places(wanted: Mapping[str, Wanted], device: torch.device, folder: str | None) -> dict[str, Place]:
    """The places of one step's maps, by name; what they need is reserved now.

    Raises:
        DiskFullError: the directory has no room for the maps on disk.
    """
    staging = None if device.type == "cpu" else Staging(device)
    places: dict[str, Place] = {}
    if any(one.place == "host" for one in wanted.values()):
        places["host"] = DEVICE if staging is None else Outside(_pinned, staging)
    on_disk = [aligned(count) for one in wanted.values() if one.place == "disk" for count in one.blocks]
    if on_disk:
        assert folder is not None, "a plan with maps on disk needs a directory"
        places["disk"] = Outside(MappedFile(folder, sum(on_disk)).empty, staging)
    return {name: places[one.place] for name, one in wanted.items()}


def _pinned(shape: Sequence[int], dtype: torch.dtype, strides: Sequence[int]) -> Tensor:
    return torch.empty_strided(shape, strides, dtype=dtype, pin_memory=True)
