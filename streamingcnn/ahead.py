"""Reading ahead: while a tile is computed, threads read the boxes of the next ones.

The run knows which boxes it will ask for, and in which order. A few of them, bounded in bytes, are always under way:

    computing    | tile 0      | tile 1      | tile 2      |
    reading      | box 1 box 2 | box 3       | box 4       |      at most so many bytes beside the tile's own

A box that was not foreseen is read on the spot. What a thread could not read is an error where the box is asked for.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from .boxes import Box, volume

__all__ = ["LIMIT", "Ahead", "Reading"]

#: Bytes of boxes that are read ahead of their tiles.
LIMIT = 64 << 20
#: Threads that read, at most.
THREADS = 4


@dataclass
class Reading:
    """What reading pixels took, over a forward and its backward.

    Attributes:
        boxes: how many boxes were read.
        waited: the seconds that computing stood still for them.
    """

    boxes: int = 0
    waited: float = 0.0


class Ahead:
    """Reads boxes in threads, in the order in which they will be asked for.

    >>> ahead = Ahead(lambda box: torch.tensor(box), iter([((0, 1),), ((1, 2),)]), pixel_bytes=4, threads=1)
    >>> ahead.take(((0, 1),)).tolist(), ahead.take(((1, 2),)).tolist()
    ([[0, 1]], [[1, 2]])
    >>> ahead.close()

    Args:
        read: reads one box; it is called from threads.
        boxes: the boxes to come; looked at no further than is read ahead.
        pixel_bytes: the bytes of one pixel with all its channels.
        threads: how many may call ``read`` at the same time.
        limit: the bytes that may wait to be taken; one box at least.
    """

    def __init__(
        self,
        read: Callable[[Box], Tensor],
        boxes: Iterator[Box],
        pixel_bytes: int,
        threads: int,
        limit: int = LIMIT,
    ) -> None:
        self._read, self._boxes, self._pixel_bytes, self._limit = read, boxes, pixel_bytes, limit
        self._pool = ThreadPoolExecutor(max(1, min(threads, THREADS, os.cpu_count() or 1)), "streamingcnn-reader")
        self._coming: deque[tuple[Box, Future[Tensor]]] = deque()
        self._held = 0
        self._next: Box | None = next(boxes, None)
        self._fill()

    def take(self, box: Box) -> Tensor:
        """The pixels of a box."""
        if not any(coming == box for coming, _ in self._coming):
            # Through the pool as well: a source that allows one thread must not meet two.
            return _seen(self._pool.submit(self._read, box).result())
        while True:
            coming, future = self._coming.popleft()
            self._held -= volume(coming) * self._pixel_bytes
            if coming == box:
                self._fill()
                return _seen(future.result())
            future.cancel()

    def _fill(self) -> None:
        while self._next is not None:
            size = volume(self._next) * self._pixel_bytes
            if self._coming and self._held + size > self._limit:
                return
            self._held += size
            self._coming.append((self._next, self._pool.submit(self._read, self._next)))
            self._next = next(self._boxes, None)

    def close(self) -> None:
        """Let go of what is under way and of the threads."""
        self._coming.clear()
        self._pool.shutdown(cancel_futures=True)


def _seen(pixels: Tensor) -> Tensor:
    """The same tensor, shown to a counter of bytes (:mod:`streamingcnn.memory`), which sees one thread only."""
    if pixels.untyped_storage().nbytes() > pixels.numel() * pixels.element_size():
        return pixels  # a view of what was there before
    shown: Tensor = torch.ops.aten.lift_fresh.default(pixels)
    return shown


class Clock:
    """Adds the time of a block to what was waited.

    >>> reading = Reading()
    >>> with Clock(reading):
    ...     time.sleep(0.01)
    >>> reading.boxes, reading.waited > 0.009
    (1, True)
    """

    def __init__(self, reading: Reading) -> None:
        self.reading = reading

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.reading.boxes += 1
        self.reading.waited += time.perf_counter() - self._start
