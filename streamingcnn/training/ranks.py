"""Several processes that train one network: each on slides of its own, or some of them on parts of the same slide.

    processes    0   1   2   3          with spatial=2
    number       0   0   1   1          which slides; gradients are summed over those of different slides,
    part         0   1   0   1          and over those of one slide inside the streamed network

A streamed network gives all its gradients at once, at the end of its backward, so there is nothing to overlap: each
process sums the gradients of its slides, and then all of them are summed, together with the number of slides that they
come from. A slide that cannot be read thereby is a slide less, and no process waits for a gradient that never comes,
as it would in DistributedDataParallel, whose every backward is a meeting.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from streamingcnn.distributed import Partition

__all__ = ["Ranks", "joined"]


class Ranks:
    """The processes of a run, and this one among them; alone where nothing was started.

    >>> ranks = Ranks()
    >>> ranks.number, ranks.count, ranks.gathered("x")
    (0, 1, ['x'])

    Args:
        spatial: how many processes share a slide, each a stripe of it.
        timeout: seconds after which one of them that does not answer is given up.

    Attributes:
        process: this one's number, of ``processes``.
        number: which of ``count`` shares of the slides it trains on.
        partition: how it shares them, for the StreamingModule; None where it does not.

    Raises:
        ValueError: the processes cannot be dealt out so.
    """

    def __init__(self, spatial: int = 1, timeout: float = 120.0) -> None:
        self._together = dist.is_available() and dist.is_initialized()
        self.process = dist.get_rank() if self._together else 0
        self.processes = dist.get_world_size() if self._together else 1
        if self.processes % spatial:
            raise ValueError(
                f"spatial is {spatial}, and {self.processes} process(es) are no groups of {spatial}; start them by "
                f"torchrun --nproc-per-node {spatial} -m streamingcnn.cli.main train ..., or a multiple of it"
            )
        self.number, self.count = self.process // spatial, self.processes // spatial
        self.partition: Partition | None = None
        self._across: Any = None
        if spatial > 1:
            kind = "cuda" if dist.get_backend() == "nccl" else "cpu"
            mesh = init_device_mesh(kind, (self.count, spatial), mesh_dim_names=("dp", "spatial"))
            self.partition = Partition(mesh["spatial"], dims=("H",), timeout=timeout)
            self._across = mesh["dp"].get_group()

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.process == 0

    def sum(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over the shares of the slides."""
        if self.count > 1:
            for tensor in tensors:
                dist.all_reduce(tensor, group=self._across)

    def from_first(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by that of the first share."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor, group=self._across, group_src=0)

    def gathered(self, item: Any) -> list[Any]:
        """The item of every process, in their order."""
        if not self._together:
            return [item]
        items: list[Any] = [None] * self.processes
        dist.all_gather_object(items, item)
        return items

    def sharing(self, item: Any) -> list[Any]:
        """The item of every process that has a part of the same slide."""
        return [item] if self.partition is None else self.partition.link.all_of("agree on a slide", item)


@contextmanager
def joined(device: torch.device, spatial: int = 1, timeout: float = 120.0) -> Iterator[Ranks]:
    """The processes that ``torchrun`` started, joined while the block runs; this one alone without it.

    Those that share a slide meet at every stage of it, and one that is silent for ``timeout`` seconds is given up.
    Those on other slides meet after each, which may take long: they wait half an hour, or ``timeout`` if that is more.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield Ranks(spatial, timeout)
        return
    store, process, processes = next(rendezvous("env://"))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # torchrun keeps it over a restart, with the addresses of the processes that are dead.
        store = PrefixStore(f"life {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    backend = "nccl" if device.type == "cuda" else "gloo"
    patience = timedelta(seconds=max(timeout, 1800.0))
    dist.init_process_group(backend, store=store, rank=process, world_size=processes, timeout=patience)
    try:
        yield Ranks(spatial, timeout)
        dist.barrier()  # whoever leaves while others still talk to it ends them
    finally:
        dist.destroy_process_group()
