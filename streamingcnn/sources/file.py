"""What all images in files have in common: a path, a handle per process, boxes that are checked.

A handle of a library in C must not cross a fork, and none can be pickled. So each process opens its own, at its first
read; a process that finds another one's handle leaves it alone.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from streamingcnn.boxes import Box, full

__all__ = ["FileImage", "Handle"]

T = TypeVar("T")


class Handle(Generic[T]):
    """Something opened once per process, at its first use.

    >>> handle = Handle(list)
    >>> handle.get() is handle.get()
    True

    Args:
        open_it: opens it; a function that can be pickled.
        close_it: closes it.
    """

    def __init__(self, open_it: Callable[[], T], close_it: Callable[[T], object] | None = None) -> None:
        self._open, self._close = open_it, close_it
        self._mine: _Mine[T] | None = None

    def get(self) -> T:
        """This process' own."""
        mine = self._mine
        if mine is None or mine.process != os.getpid():
            mine = self._mine = _Mine()  # with a lock of its own: the parent's may be held by a thread that is not here
        with mine.lock:
            if mine.handle is None:
                mine.handle = self._open()
            return mine.handle

    def close(self) -> None:
        """Let go of it; the next use opens it again."""
        mine, self._mine = self._mine, None
        if mine is not None and mine.handle is not None and mine.process == os.getpid() and self._close is not None:
            self._close(mine.handle)

    def forget(self) -> None:
        """Let go of it without closing it, as other threads may be reading; the next use opens it again."""
        self._mine = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mine": None}

    def __del__(self) -> None:
        self.close()


class _Mine(Generic[T]):
    """A handle and the process that opened it."""

    def __init__(self) -> None:
        self.process, self.lock = os.getpid(), threading.Lock()
        self.handle: T | None = None


class FileImage:
    """An image in a file, as a source; what can be read says the subclass.

    Attributes:
        path: the file.
        shape: (channels, *space) in pixels.
        mpp: micrometres per pixel along each spatial axis; None where the file does not say, or says what cannot be.
        stated_mpp: what the file says, whether it can be or not.
        downsample: pixels of the full image per pixel of this one.
        levels: the downsamples of the levels that the file has, 1 first.
        level: the one that is read.
    """

    dtype = torch.uint8
    axes = "CYX"
    #: So many threads may read at the same time.
    threads = 4

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.shape: tuple[int, ...] = ()
        self.mpp: tuple[float, ...] | None = None
        self.stated_mpp: tuple[float, ...] | None = None
        self.levels: tuple[float, ...] = (1.0,)
        self.level, self.downsample = 0, 1.0

    def read(self, box: Box) -> torch.Tensor:
        """The pixels of a box, with all channels.

        Raises:
            ValueError: the box is not inside the image.
            ReadError: the file is damaged there; the message names file and box.
        """
        extents = self.shape[1:]
        if len(box) != len(extents) or any(
            not 0 <= low <= high <= extent for (low, high), extent in zip(box, extents, strict=True)
        ):
            raise ValueError(f"{self.path}: the box {box} is not inside level {self.level}, which is {full(extents)}")
        if any(low == high for low, high in box):
            return torch.empty(self.shape[0], *(high - low for low, high in box), dtype=self.dtype)
        return self._pixels(box)

    def _pixels(self, box: Box) -> torch.Tensor:
        raise NotImplementedError

    def read_all(self) -> torch.Tensor:
        """All pixels; for images and levels that fit into memory."""
        return self.read(full(self.shape[1:]))

    def at_level(self, level: int) -> FileImage:
        """The same image at another level.

        Raises:
            ValueError: there is no such level.
        """
        if level in (0, -1):
            return self
        raise ValueError(f"{self.path} has no level {level}; it has no pyramid: {self._size} pixels are all there is")

    @property
    def _size(self) -> str:
        return " x ".join(map(str, self.shape[1:]))

    def close(self) -> None:
        """Let go of the file; a later read opens it again."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, level={self.level}, shape={self.shape}, mpp={self.mpp})"
