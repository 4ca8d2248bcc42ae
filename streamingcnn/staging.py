"""Tiles on their way between a device and maps beside it, while the device goes on computing.

A device copies at full speed and in the background only between itself and pinned memory without gaps; a box of a map
has gaps, and a mapped file is not pinned. So each tile goes through a pinned tensor of its own shape:

    device   ... computes tile k ...    | computes tile k + 1             (its own stream)
    copies          tile k-1 -> pinned  | tile k -> pinned                (a side stream)
    host     pinned k-2 -> map          | pinned k-1 -> map               (this file, a little later)

What is written is put into the map when its copy is done: before anybody reads that map, and at the latest two tiles
on. What is read needs no list of what comes next: the host runs ahead of the device, so the copy of a tile that is
asked for now runs while the device still computes the one before.

NOTE. On a device without streams every copy waits for itself, and the order is the same: that is how the tests run
this file. It was written for CUDA with care, and not yet run there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

#: So many tiles may be on their way to the host; each takes a pinned tensor.
UNDER_WAY = 2


class _Arriving(NamedTuple):
    """A tile in pinned memory, what to do with it, and when it is there."""

    view: Tensor
    staged: Tensor
    put: Callable[[Tensor, Tensor], object]
    event: torch.cuda.Event | None


class Staging:
    """The traffic of one step between a device and the host.

    >>> staging = Staging(torch.device("cpu"))
    >>> kept = torch.zeros(4)
    >>> staging.send(kept[1:3], torch.ones(2), Tensor.add_)
    >>> staging.fetch(kept).tolist()
    [0.0, 1.0, 1.0, 0.0]
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pinned = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._pinned else None
        self._arriving: deque[_Arriving] = deque()

    def send(self, view: Tensor, tile: Tensor, put: Callable[[Tensor, Tensor], object]) -> None:
        """Bring a tile to a view of host memory and ``put(view, tile)`` it there, some time before it is read."""
        staged = torch.empty_like(tile, device="cpu", pin_memory=self._pinned)
        if staged.stride() != tile.stride():
            tile = tile.clone()  # without gaps, as the pinned one is
        event = None
        if self._stream is None:
            staged.copy_(tile)
        else:
            event = torch.cuda.Event()
            self._stream.wait_stream(torch.cuda.current_stream(self.device))  # the tile must have been computed
            with self._side():
                staged.copy_(tile, non_blocking=True)
                event.record(self._stream)
            tile.record_stream(self._stream)  # its memory must not be given away before it was copied
        self._arriving.append(_Arriving(view, staged, put, event))
        while len(self._arriving) > UNDER_WAY:
            self._settle()

    def fetch(self, view: Tensor) -> Tensor:
        """A copy on the device of a view of host memory."""
        memory = view.untyped_storage().data_ptr()
        while any(arriving.view.untyped_storage().data_ptr() == memory for arriving in self._arriving):
            self._settle()
        staged = torch.empty_like(view, pin_memory=self._pinned).copy_(view)
        if self._stream is None:
            return staged.to(self.device)
        with self._side():
            tile = staged.to(self.device, non_blocking=True)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._stream)
        tile.record_stream(current)  # made on the side stream, used on this one
        return tile

    def _settle(self) -> None:
        """Put the oldest tile under way into its map."""
        oldest = self._arriving.popleft()
        if oldest.event is not None:
            oldest.event.synchronize()
        oldest.put(oldest.view, oldest.staged)

    def _side(self) -> AbstractContextManager[object]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
