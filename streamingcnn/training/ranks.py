"""Several processes that train one network, each on slides of its own.

A streamed network gives all its gradients at once, at the end of its backward, so there is nothing to overlap: each
process sums the gradients of its slides, and then all of them are summed, together with the number of slides that they
come from. A slide that cannot be read thereby is a slide less, and no process waits for a gradient that never comes,
as it would in DistributedDataParallel, whose every backward is a meeting.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Ranks", "joined"]


class Ranks:
    """The processes of a run, and this one among them; alone where nothing was started.

    >>> ranks = Ranks()
    >>> ranks.number, ranks.count, ranks.gathered("x")
    (0, 1, ['x'])
    """

    def __init__(self) -> None:
        self._together = dist.is_available() and dist.is_initialized()
        self.number = dist.get_rank() if self._together else 0
        self.count = dist.get_world_size() if self._together else 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.number == 0

    def sum(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""
        if self._together:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def from_first(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by that of the first process."""
        if self._together:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def gathered(self, item: Any) -> list[Any]:
        """The item of every process, in their order."""
        if not self._together:
            return [item]
        items: list[Any] = [None] * self.count
        dist.all_gather_object(items, item)
        return items


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """The processes that ``torchrun`` started, joined while the block runs; this one alone without it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield Ranks()
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks()
    finally:
        dist.destroy_process_group()
