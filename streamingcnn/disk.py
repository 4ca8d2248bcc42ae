"""Stored maps in a file without a name: memory-mapped, reserved before anything is computed, gone with its last map.

A memory-mapped file has two traps. Where the disk is full, a write to the mapping is no error but a signal (SIGBUS)
that ends the process: so every byte is reserved first, and a full disk is an error before the step. And a process
that is killed cleans nothing up: so the file has no name from the start (Windows: it is deleted on close), and the
system frees it when the last map is dropped, however the process ends.

    file    | map 1 | map 2 | gradient of 2 | ....... reserved ....... |
                       ^ dropped: the next block of exactly this size goes here
"""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import sys
import tempfile
import threading
import weakref
from collections.abc import Sequence
from math import prod
from typing import IO

import torch
from torch import Tensor

from .errors import DiskFullError
from .memory import format_bytes

#: Blocks begin at multiples of this, the widest that a vector instruction wants.
ALIGNED = 64
#: What a system says when there is no room: on the disk, in the user's quota, or in the process's own limit.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) if sys.platform != "win32" else (errno.ENOSPC, errno.EFBIG)
#: What it says when the file system cannot reserve.
_CANNOT = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def aligned(count: int) -> int:
    """The bytes that a block of so many takes in the file."""
    return -(-count // ALIGNED) * ALIGNED


class MappedFile:
    """Tensors in a file of a directory.

    >>> file = MappedFile("/tmp", aligned(4 * 6))
    >>> m = file.empty((2, 3), torch.float32, (3, 1)).fill_(1)
    >>> m.sum().item()
    6.0

    Args:
        folder: an existing directory; the file is made in it and has no name.
        count: the bytes to reserve.

    Raises:
        DiskFullError: there is no room for them.
    """

    def __init__(self, folder: str, count: int) -> None:
        self.folder = folder
        self._lock = threading.RLock()  # a map may die in any thread, and in the middle of us
        self._free: dict[int, list[tuple[mmap.mmap, int]]] = {}
        self._map, self._used, self._count = _mapped(folder, count), 0, count

    def empty(self, shape: Sequence[int], dtype: torch.dtype, strides: Sequence[int]) -> Tensor:
        """An uninitialised tensor in the file; its place is used again when it is dropped."""
        count = prod(shape)
        size = aligned(count * dtype.itemsize)
        if count == 0:
            return torch.empty_strided(shape, strides, dtype=dtype)
        mapped, start = self._block(size)
        # The tensor holds the mapping, and the mapping the file.
        flat = torch.frombuffer(mapped, dtype=dtype, count=count, offset=start)
        weakref.finalize(flat.untyped_storage(), self._give_back, size, mapped, start).atexit = False
        return flat.as_strided(shape, strides)

    def _block(self, size: int) -> tuple[mmap.mmap, int]:
        with self._lock:
            if self._free.get(size):
                return self._free[size].pop()
            if self._used + size > self._count:
                return _mapped(self.folder, size), 0  # more than was foreseen: a file of its own
            self._used += size
            return self._map, self._used - size

    def _give_back(self, size: int, mapped: mmap.mmap, start: int) -> None:
        with self._lock:
            self._free.setdefault(size, []).append((mapped, start))


def _mapped(folder: str, count: int) -> mmap.mmap:
    """A new file of so many bytes, all of them reserved, in memory."""
    with tempfile.TemporaryFile(dir=folder, prefix="streamingcnn-") as file:
        try:
            _reserve(file, max(count, 1))
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise DiskFullError(
                error.errno,
                f"the stored maps of this step and their gradients take {format_bytes(count)} in '{folder}', which has "
                f"{format_bytes(shutil.disk_usage(folder).free)} free ({error.strerror}); give offload= a directory "
                "with more room, or smaller maps (memory=, or fewer stored=). Nothing was computed yet",
            ) from None
        return mmap.mmap(file.fileno(), max(count, 1))


def _reserve(file: IO[bytes], count: int) -> None:
    if sys.platform not in ("darwin", "win32"):
        try:
            os.posix_fallocate(file.fileno(), 0, count)
            return
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
    zeros = memoryview(bytes(1 << 20))
    while count > 0:
        count -= file.write(zeros[: min(count, len(zeros))])
    file.flush()
