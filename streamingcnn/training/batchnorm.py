"""Batch norms made into what a run wants: kept as they are, frozen, or replaced by group norms."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import nn

__all__ = ["convert_batchnorm"]

Module = TypeVar("Module", bound=nn.Module)
_GROUPS = 32


def convert_batchnorm(net: Module, to: str) -> Module:
    """Freeze the batch norms of a network, or replace them by group norms, in place.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    >>> convert_batchnorm(net, "frozen").train()[1].training
    False
    >>> convert_batchnorm(net, "group")[1]
    GroupNorm(8, 8, eps=1e-05, affine=True...)

    Args:
        net: a module that holds batch norms; convert it before it is streamed.
        to: "frozen" keeps them in eval mode whatever ``net.train()`` says: statistics are constants, weight and bias
            are still trained, names in ``state_dict`` stay. "group" puts group norms (32 groups, or as many as divide
            the channels) with the same weight and bias in their place; running statistics are dropped. "batch" changes
            nothing.

    Returns:
        The same network.
    """
    if to not in ("batch", "frozen", "group"):
        raise ValueError(f"to={to!r}; batch norms can become 'frozen' or 'group', or stay 'batch'")
    if to == "batch":
        return net
    if isinstance(net, nn.modules.batchnorm._BatchNorm):
        raise ValueError("the network is itself a batch norm; convert the module that holds it")
    for parent in list(net.modules()):
        for name, norm in list(parent.named_children()):
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                setattr(parent, name, _frozen(norm) if to == "frozen" else _group(norm))
    return net


def _frozen(norm: nn.Module) -> nn.Module:
    kinds = {nn.BatchNorm1d: FrozenBatchNorm1d, nn.BatchNorm2d: FrozenBatchNorm2d, nn.BatchNorm3d: FrozenBatchNorm3d}
    kind = next((frozen for plain, frozen in kinds.items() if isinstance(norm, plain)), None)
    if kind is None:
        raise ValueError(f"a {type(norm).__name__} cannot be frozen; known are BatchNorm1d, 2d and 3d")
    if norm.running_mean is None:
        raise ValueError("a batch norm without running statistics (track_running_stats=False) cannot be frozen")
    made: nn.Module = kind.__new__(kind)
    made.__dict__.update(norm.__dict__)
    return made.train(False)


class _Frozen:
    """Train mode is refused, quietly: the statistics are constants."""

    def train(self, mode: bool = True) -> _Frozen:
        """Stay in eval mode."""
        super().train(False)  # type: ignore[misc]
        return self


class FrozenBatchNorm1d(_Frozen, nn.BatchNorm1d):  # type: ignore[misc]
    """A BatchNorm1d that is always in eval mode."""


class FrozenBatchNorm2d(_Frozen, nn.BatchNorm2d):  # type: ignore[misc]
    """A BatchNorm2d that is always in eval mode."""


class FrozenBatchNorm3d(_Frozen, nn.BatchNorm3d):  # type: ignore[misc]
    """A BatchNorm3d that is always in eval mode."""


def _group(norm: nn.modules.batchnorm._BatchNorm) -> nn.GroupNorm:
    channels = norm.num_features
    made = nn.GroupNorm(math.gcd(_GROUPS, channels), channels, norm.eps, norm.affine)
    if norm.affine:
        with torch.no_grad():
            made.weight.copy_(norm.weight)
            made.bias.copy_(norm.bias)
        made.to(norm.weight.device, norm.weight.dtype)
    return made.train(norm.training)
