"""Who is where: each rank notes what it is about to do, and why it failed, where the others can look it up.

A rank that waits in vain knows from its own connections that somebody failed, and not who or why. So it looks at the
store that the ranks met at, which is alive as long as their launcher is:

    rank 0    17 agree on the step
    rank 1    16 gradient of conv1                         the silent one
    rank 2    17 agree on the step; failed: OSError: slide_4.svs cannot be read

A note takes some microseconds, and nobody waits for it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch.distributed as dist

__all__ = ["Roll"]


class Roll:
    """The notes of the ranks of a group.

    Args:
        group: the ranks.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        store: Any = group.get_group_store()
        below = store
        while isinstance(below, dist.PrefixStore):  # type: ignore[attr-defined]
            below = below.underlying_store
        # A store in a file only ever grows.
        self._store: Any = None if isinstance(below, dist.FileStore) else store  # type: ignore[attr-defined]
        #: What this rank was about to do last.
        self.at = "the start"
        self._count, self._failed = 0, False

    def note(self, what: str, with_all: bool = True) -> None:
        """This rank is about to do something, with all the others or with some of them."""
        self.at = what
        self._count += with_all
        self._set("at", f"{self._count} {what}")
        if self._failed:
            self._failed = False
            self._set("failed", "")

    def failed(self, why: str) -> None:
        """This rank failed."""
        self._failed = True
        self._set("failed", why)

    def missing(self, among: Collection[int] | None = None) -> str:
        """What is known of ranks that failed, that have not come as far as this one, or that are ``among`` some."""
        found = []
        for rank in range(self.size) if self._store is not None else ():
            why, at = self._get("failed", rank), self._get("at", rank)
            count, _, what = at.partition(" ")
            if rank == self.rank:
                continue
            if why:
                found.append(f"rank {rank} failed: {why}")
            elif not at:
                found.append(f"rank {rank} was not seen yet")
            elif int(count) < self._count:
                found.append(f"rank {rank} has not come to this, and was last seen at '{what}'")
            elif among is not None and rank in among:
                found.append(f"rank {rank} was last seen at '{what}'")
        return "; ".join(found)

    def _set(self, kind: str, text: str) -> None:
        if self._store is not None:
            try:
                self._store.set(f"{kind} {self.rank}", text)
            except RuntimeError:  # the store is gone, and with it whoever would look
                self._store = None

    def _get(self, kind: str, rank: int) -> str:
        """A note; "" where there is none."""
        key = f"{kind} {rank}"
        try:
            return str(self._store.get(key), "utf-8") if self._store.check([key]) else ""
        except RuntimeError:
            return ""
