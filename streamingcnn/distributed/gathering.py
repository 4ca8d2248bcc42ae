"""Sums and gathers over ranks with the gradient of one process.

``torch.distributed.nn`` differentiates its collectives as if every rank had a loss of its own, and their sum were
meant. Here every rank computes the same loss, and it is meant once:

                 forward                             backward
    summed       the sum over the ranks              the gradient as it is
    gathered     the parts, put side by side         each rank's own part of the gradient
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..ops.rule import Value, along
from .maps import whole
from .partition import Partition

__all__ = ["gathered", "summed"]


def summed(tensor: Tensor, partition: Partition) -> Tensor:
    """The sum of every rank's tensor, the same on all; its gradient reaches every summand once.

    ::

        loss = summed(own_part.square().sum(), partition) / pixels     # with gather="none"
    """
    made: Tensor = _Summed.apply(tensor, partition)  # type: ignore[no-untyped-call]
    return made


def gathered(tensor: Tensor, shape: Sequence[int], partition: Partition) -> Tensor:
    """A whole map on every rank, from the box that each owns of it.

    Args:
        tensor: the own box.
        shape: of the whole map, with batch and channels.
        partition: who owns what.
    """
    made: Tensor = _Gathered.apply(tensor, tuple(shape), partition)  # type: ignore[no-untyped-call]
    return made


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, partition: Partition) -> Tensor:
        return partition.link.summed("sum a tensor", [tensor.detach().clone()])[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, shape: tuple[int, ...], partition: Partition) -> Tensor:
        ctx.value = value = Value("gathered", shape, tensor.dtype, tuple(range(2, len(shape))))
        boxes = partition._division(len(shape) - 2).boxes(value.extents)
        ctx.own = boxes[partition.rank]
        return whole(tensor.detach(), value, partition.link, boxes, tensor.device)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return along(gradient, ctx.value.axes, ctx.own).clone(), None, None
