"""A result on disk while it is made: its tiles one after another in a file, and a list of those that are there.

    .pred.tif.partial/
      about.json      what is made here, of what, in which tiles
      blocks.bin      | tile 0 | tile 1 | tile 2 |  ...          each in a place of its own, all of one size
      done.bin        0 2 1                                      the tiles that are there

A tile's number comes into the list when the tile is on the disk (fsync), once a second. Whatever moment a process is
killed at, what the list names is whole; what came after the last second is computed again. Tiles that are the same
computation (:mod:`streamingcnn.signature`) are kept once.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from streamingcnn.boxes import Box, full, sizes, tiles_in
from streamingcnn.files import explained, whole_file
from streamingcnn.pages import Table

__all__ = ["Blocks"]

#: Seconds between two times that the disk is waited for.
EVERY = 1.0
#: Bytes of a result that are in memory while it is put into its format.
BAND = 32 << 20


class Blocks:
    """The tiles of a map (channels, *space) in a folder; a sink of the runner.

    Args:
        folder: it is made where missing; what is in it is taken over where ``about`` is the same.
        about: what is made: equal only where the same tiles come out.
        channels: numbers per pixel.
        table: which tile shows which page; pages of its own for each where tiles are not shared.
        axes: where the spatial axes of a tile lie.
        dtype: of the numbers, as they are kept.
    """

    def __init__(
        self,
        folder: Path,
        about: dict[str, Any],
        channels: int,
        table: Table,
        axes: tuple[int, ...],
        dtype: torch.dtype,
    ) -> None:
        self.folder, self.channels, self.table, self.axes = folder, channels, table, axes
        self.extents, self.steps = table.extents, table.steps
        self.dtype: np.dtype[Any] = torch.empty(0, dtype=dtype).numpy().dtype
        _, inverse = np.unique(table.pages, return_inverse=True)
        self._numbers = inverse.reshape(table.pages.shape)
        self._size = channels * prod(self.steps) * self.dtype.itemsize
        self._taken_over = self._take_over(about)
        self._file = (folder / "blocks.bin").open("r+b")
        self._list = (folder / "done.bin").open("ab")
        self._waiting: list[int] = []
        self._last = time.monotonic()

    def _take_over(self, about: dict[str, Any]) -> int:
        """Go on with what is there, if it is of the same; say how many tiles that are."""
        described = self.folder / "about.json"
        try:
            same = json.loads(described.read_text()) == json.loads(json.dumps(about))
        except (OSError, ValueError):
            same = False
        self._done: set[int] = set()
        if same:
            listed = (self.folder / "done.bin").read_bytes()
            whole = len(listed) // 8 * 8  # the last number may be torn
            self._done = set(np.frombuffer(listed[:whole], "<i8").tolist())
            with (self.folder / "done.bin").open("r+b") as file:
                file.truncate(whole)
            return len(self._done)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        for name in ("blocks.bin", "done.bin"):
            (self.folder / name).touch()
        with whole_file(described) as partial:
            partial.write_text(json.dumps(about, indent=1))
        return 0

    @property
    def taken_over(self) -> int:
        """How many tiles were there already."""
        return self._taken_over

    def _place(self, box: Box) -> tuple[int, ...]:
        return tuple(low // step for (low, _), step in zip(box, self.steps, strict=True))

    def has(self, box: Box) -> bool:
        return int(self._numbers[self._place(box)]) in self._done

    def write(self, box: Box, tile: Tensor) -> None:
        number = int(self._numbers[self._place(box)])
        leading = [dim for dim in range(tile.dim()) if dim not in self.axes]
        pixels = tile.detach().permute(*leading, *self.axes).contiguous().cpu()
        pixels = pixels.to(torch.from_numpy(np.empty(0, self.dtype)).dtype)
        try:
            self._file.seek(number * self._size)
            self._file.write(pixels.numpy().tobytes())
            self._waiting.append(number)
            if time.monotonic() - self._last > EVERY:
                self.settle()
        except OSError as error:
            raise explained(error, self.folder) from error

    def settle(self) -> None:
        """Wait until all that was written is on the disk, and list it."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._list.write(np.array(self._waiting, "<i8").tobytes())
        self._list.flush()
        os.fsync(self._list.fileno())
        self._done.update(self._waiting)
        self._waiting, self._last = [], time.monotonic()

    @property
    def missing(self) -> int:
        """How many tiles are not there yet."""
        return int(self._numbers.max()) + 1 - len(self._done)

    def read(self, box: Box, channels: tuple[int, int] | None = None) -> npt.NDArray[Any]:
        """The numbers of a box, (channels, *box)."""
        first, last = (0, self.channels) if channels is None else channels
        made = np.empty((last - first, *sizes(box)), self.dtype)
        ranges = (range(low // s, -(-high // s)) for (low, high), s in zip(box, self.steps, strict=True))
        for place in product(*ranges):
            block = self.table.block(place)
            part = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(box, block, strict=True))
            for channel in range(first, last):
                there: Any = tuple(slice(low - a, high - a) for (low, high), (a, _) in zip(part, box, strict=True))
                made[(channel - first, *there)] = self._rows(place, block, part, channel)
        return made

    def _rows(self, place: tuple[int, ...], block: Box, part: Box, channel: int) -> npt.NDArray[Any]:
        """A part of one channel of a tile; only the rows that it lies in are read."""
        lengths = sizes(block)
        row = prod(lengths[1:])
        low, high = part[0][0] - block[0][0], part[0][1] - block[0][0]
        start = int(self._numbers[place]) * self._size
        self._file.seek(start + (channel * prod(lengths) + low * row) * self.dtype.itemsize)
        rows = np.frombuffer(self._file.read((high - low) * row * self.dtype.itemsize), self.dtype)
        inside = tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(part[1:], block[1:], strict=True))
        return rows.reshape(high - low, *lengths[1:])[(slice(None), *inside)]

    def bands(self, most: int | None = None) -> Iterator[npt.NDArray[Any]]:
        """The whole map in the order of its numbers: of one channel after another, a few rows at a time."""
        row = prod(self.extents[1:]) * self.dtype.itemsize
        high = max(1, min(self.steps[0], BAND // max(row, 1))) if most is None else most
        rest = full(self.extents[1:])
        for channel in range(self.channels):
            for low in range(0, self.extents[0], high):
                box = ((low, min(low + high, self.extents[0])), *rest)
                yield self.read(box, (channel, channel + 1))[0]

    def close(self) -> None:
        """Close the files; what was written since the last second is listed."""
        try:
            if self._waiting:
                self.settle()
        finally:
            self._file.close()
            self._list.close()


def own_pages(extents: tuple[int, ...], steps: tuple[int, ...]) -> Table:
    """A table in which every tile is a page of its own."""
    counts = tuple(-(-extent // step) for extent, step in zip(extents, steps, strict=True))
    return Table(extents, steps, np.arange(tiles_in(extents, steps), dtype=np.int64).reshape(counts))
