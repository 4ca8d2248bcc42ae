"""Messages between the ranks of a partition.

Messages have a process group of their own: mixed with collectives on one NCCL communicator they were seen to corrupt
each other. Nothing is believed to arrive as it should that gloo does not check: a message that is too short is
accepted there, so sizes come from the plan, which all ranks have agreed on; buffers are contiguous, and held until
their message is done.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from ..boxes import Box
from ..memory import format_bytes
from .ended import last_words
from .roll import Roll

__all__ = ["Link", "Parcel", "PartitionError", "Pending"]

#: As many messages are posted at once; NCCL was seen to hang with more.
AT_ONCE = 200
#: So many ranks can all be named in a line.
FEW = 8
#: From how many bytes on a tensor is summed over the ranks by itself.
LARGE = 1 << 20


logger = logging.getLogger("streamingcnn")

_LINKS: WeakKeyDictionary[dist.ProcessGroup, dict[timedelta, Link]] = WeakKeyDictionary()


class PartitionError(RuntimeError):
    """A step over several ranks failed; the message names the rank, the stage and the cause."""


@dataclass(frozen=True)
class Parcel:
    """A box of a map on its way, to or from a peer (a rank of the partition)."""

    peer: int
    box: Box
    tensor: Tensor


class Pending:
    """Messages under way."""

    def __init__(self, link: Link, what: str, sent: Sequence[Parcel], received: Sequence[Parcel]) -> None:
        self._link, self._what, self._sent, self.received = link, what, sent, received
        self._works: list[Any] = []

    def wait(self) -> Sequence[Parcel]:
        """What was received, once all of it is there."""
        start = time.perf_counter()
        try:
            with last_words(self._link.last_words):
                for work in self._works:
                    work.wait()
        except RuntimeError as error:
            raise self._link.lost(self._explained(error, time.perf_counter() - start)) from error
        finally:
            self._link.waited += time.perf_counter() - start
            self._works, self._sent = [], ()
            self._link.forget(self)
        return self.received

    def _explained(self, error: RuntimeError, seconds: float) -> str:
        link, peers = self._link, {parcel.peer for parcel in self.parcels}
        size = sum(parcel.tensor.nbytes for parcel in self.received)
        return (
            f"rank {link.rank} of {link.size} waited {seconds:.1f} s for {format_bytes(size)} of '{self._what}' from "
            f"rank(s) {_listed(peers)}: {link.blamed(error, peers)}"
        )

    @property
    def parcels(self) -> tuple[Parcel, ...]:
        """What is sent and what is received."""
        return (*self._sent, *self.received)


class Link:
    """The connection of one rank to the others of its partition.

    Args:
        group: the ranks, in the order of the partition. Of it are made one group for collectives and one for messages.
        timeout: after how long a silent peer is given up.
    """

    def __init__(self, group: dist.ProcessGroup, timeout: timedelta) -> None:
        self.timeout = timeout
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.group, self.messages = _beside(group, timeout), _beside(group, timeout)
        self.roll = Roll(self.group)
        #: Bytes sent so far as pixels and as summands, and seconds spent waiting.
        self.sent, self.summed_bytes, self.waited = 0, 0, 0.0
        self._under_way: list[Pending] = []

    @staticmethod
    def to(group: dist.ProcessGroup, timeout: timedelta) -> Link:
        """The link of a group: the same for all its partitions, as each has threads and connections of its own."""
        links = _LINKS.setdefault(group, {})
        if timeout not in links:
            links[timeout] = Link(group, timeout)
        return links[timeout]

    def start(self, what: str, sent: Sequence[Parcel], received: Sequence[Parcel]) -> Pending:
        """Send and receive; every rank calls this for the same map in the same order."""
        self.finish()
        self.roll.note(what, with_all=False)
        pending = Pending(self, what, sent, received)
        self._under_way.append(pending)
        operations = [dist.P2POp(dist.irecv, p.tensor, group=self.messages, group_peer=p.peer) for p in received]
        operations += [dist.P2POp(dist.isend, p.tensor, group=self.messages, group_peer=p.peer) for p in sent]
        self.sent += sum(parcel.tensor.nbytes for parcel in sent)
        try:
            for k in range(0, len(operations), AT_ONCE):
                pending._works += dist.batch_isend_irecv(operations[k : k + AT_ONCE])
        except RuntimeError as error:
            raise self.lost(pending._explained(error, 0.0)) from error
        return pending

    def finish(self) -> None:
        """Wait for every message: a buffer of one that is not done must not be let go."""
        for pending in list(self._under_way):
            pending.wait()

    def forget(self, pending: Pending) -> None:
        """It is done."""
        if pending in self._under_way:
            self._under_way.remove(pending)

    def all_of(self, what: str, mine: Any) -> list[Any]:
        """One small object of every rank, in their order."""
        gathered: list[Any] = [None] * self.size
        self._collective(what, lambda: dist.all_gather_object(gathered, mine, group=self.group))
        return gathered

    def summed(self, what: str, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The sums over all ranks, of tensors that every rank has in the same shapes.

        Large contiguous ones are written over; small ones go together, in one message per dtype.
        """
        sums = list(tensors)
        small = [k for k, tensor in enumerate(tensors) if tensor.nbytes < LARGE or not tensor.is_contiguous()]
        for dtype in dict.fromkeys(tensors[k].dtype for k in small):
            places = [k for k in small if tensors[k].dtype == dtype]
            flat = torch.cat([tensors[k].reshape(-1) for k in places])
            self.add_up(what, flat)
            parts = flat.split([tensors[k].numel() for k in places])
            for k, part in zip(places, parts, strict=True):
                sums[k] = part.view(tensors[k].shape)
        for k in sorted(set(range(len(tensors))) - set(small)):
            self.add_up(what, sums[k])
        return sums

    def add_up(self, what: str, tensor: Tensor) -> None:
        """Put the sum over all ranks into a tensor."""
        self.summed_bytes += tensor.nbytes
        self._collective(what, lambda: dist.all_reduce(tensor, group=self.group))

    def broadcast(self, what: str, tensor: Tensor) -> None:
        """Put the first rank's numbers into every rank's tensor."""
        self._collective(what, lambda: dist.broadcast(tensor, group=self.group, group_src=0))

    def _collective(self, what: str, run: Any) -> None:
        start = time.perf_counter()
        self.roll.note(what)
        try:
            with last_words(self.last_words):
                run()
        except RuntimeError as error:
            raise self.lost(
                f"rank {self.rank} of {self.size} could not {what} with the others: {self.blamed(error)}"
            ) from error
        finally:
            self.waited += time.perf_counter() - start

    def failed(self, why: str) -> None:
        """Let the others know why this rank failed, and say it while this process can."""
        self.roll.failed(why)
        logger.error("rank %d of %d failed: %s", self.rank, self.size, why)

    def lost(self, why: str) -> PartitionError:
        """The error of a rank that lost others. It is said at once: before it has come to the top, torchrun may have
        ended this process as well."""
        logger.error(why)
        return PartitionError(why)

    def last_words(self, doing: str = "between two steps") -> Iterator[str]:
        """What this rank has to say when it is ended from outside."""
        yield (
            f"rank {self.rank} of {self.size} is ended by SIGTERM, as torchrun does when another rank has ended; it "
            f"was at '{self.roll.at}' ({doing})"
        )
        peers = {parcel.peer for pending in self._under_way for parcel in pending.parcels}
        if peers:
            yield f", with messages under way from or to rank(s) {_listed(peers)}"
        seen = self.roll.missing(peers or (range(self.size) if self.size <= FEW else None))
        if seen:
            yield f": {seen}"

    def blamed(self, error: RuntimeError, peers: Collection[int] | None = None) -> str:
        """What this rank saw of a failure, and who failed as far as is known."""
        said = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        who = self.roll.missing(peers)
        return (
            f"a peer has failed, or did not answer within {self.timeout.total_seconds():.0f} s ({said})"
            + (f": {who}" if who else "")
            + ". Look at the first error of the other ranks"
        )


def _listed(ranks: Collection[int]) -> str:
    return ", ".join(map(str, sorted(ranks)))


def _beside(group: dist.ProcessGroup, timeout: timedelta) -> Any:
    """A group of the same ranks, for messages alone; its first use is a collective, as NCCL wants it."""
    _even(group)
    ranks = dist.get_process_group_ranks(group)
    made = dist.new_group(ranks, timeout=timeout, use_local_synchronization=True, sort_ranks=False)
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend(made) == "nccl" else "cpu"
    dist.all_reduce(torch.zeros(1, device=device), group=made)
    return made


def _even(group: dist.ProcessGroup) -> None:
    """Let every rank of a group know equally many groups.

    torch names a group that only its members make by how many each of them knows: where one has made a group of its
    own before, for its log say, they wait for each other under different names.
    """
    known = dist.distributed_c10d._world.pg_names
    counts: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(counts, len(known), group=group)
    while len(known) < max(counts):
        dist.new_group([dist.get_rank()], backend="gloo", use_local_synchronization=True)
