"""redistribute: every rank gives what it owns of a map and gets what it needs of it, and autograd knows the way back.

    owned      rank 0 [0 5)    rank 1 [5 9)          needed     rank 0 [0 6)    rank 1 [4 9)
    forward    4 goes to rank 1, 5 to rank 0         backward   their gradients return, and are added

Halos, uneven and empty parts, halos wider than a part, corners, strides, gathering for a head: all are tables of
owned and needed boxes. The streamed module exchanges by the same maps, between its stages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..boxes import Box, hull, intersect, volume
from ..ops.rule import Value
from .link import Link
from .maps import PartGradient, PartMap
from .ownership import Message

__all__ = ["redistribute"]


def redistribute(local: Tensor, shape: Sequence[int], own: Sequence[Box], need: Sequence[Box], link: Link) -> Tensor:
    """The box that this rank needs of a map, from the boxes that the ranks own.

    ::

        wide = redistribute(mine, (1, 8, 9, 64), [((0, 5), (0, 64)), ((5, 9), (0, 64))],
                            [((0, 6), (0, 64)), ((4, 9), (0, 64))], partition.link)

    Args:
        local: the pixels of ``own[rank]``.
        shape: of the whole map, with batch and channels.
        own: by rank, disjoint boxes; empty ones own nothing.
        need: by rank.
        link: the ranks.
    """
    made: Tensor = _Redistribute.apply(local, tuple(shape), tuple(own), tuple(need), link)  # type: ignore[no-untyped-call]
    return made


def _messages(own: Sequence[Box], need: Sequence[Box]) -> Iterator[Message]:
    for sender, owned in enumerate(own):
        for receiver, needed in enumerate(need):
            box = intersect(owned, needed) if sender != receiver else None
            if box is not None:
                yield Message(sender, receiver, box)


def _held(own: Box, need: Box) -> Box:
    return hull([box for box in (own, need) if volume(box)] or [own])


class _Redistribute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor, shape: Any, own: Any, need: Any, link: Link) -> Tensor:
        value = Value("redistributed", shape, local.dtype, tuple(range(2, len(shape))))
        ctx.saved = value, own, need, link
        mine, wanted = own[link.rank], need[link.rank]
        held = PartMap(value, mine, _held(mine, wanted), local.device)
        if volume(mine):
            held.write(mine, local.detach())
        held.exchange(link, _messages(own, need))
        held.arrive()
        link.finish()
        return held.read(wanted).clone() if volume(wanted) else local.new_empty(value.shape_at(wanted))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        value, own, need, link = ctx.saved
        mine, wanted = own[link.rank], need[link.rank]
        part = PartGradient(value, mine, _held(mine, wanted), gradient.device)
        if volume(wanted):
            part.add(wanted, gradient)
        part.exchange(link, (Message(m.receiver, m.sender, m.box) for m in _messages(own, need)))
        made = part.part.clone()
        link.finish()
        return made, None, None, None, None
