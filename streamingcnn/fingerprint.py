"""When a capture is valid: for what key it may be used again.

Capture burns Python attributes in (a dropout's p, a batch norm's momentum, which branch a flag took). The key
therefore holds, beside shapes and dtypes, a fingerprint of every submodule's plain attributes and hooks.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

_PLAIN = (int, float, bool, str, bytes, type(None), torch.dtype, torch.device, complex)
_IGNORED = {"_parameters", "_buffers", "_modules", "_graphs", "_plans", "_runners", "last_seed", "last_run"}


def capture_key(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable:
    """A hashable key: two calls with equal keys have the same graph."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    return (
        str(spec),
        tuple(_of_leaf(leaf) for leaf in leaves),
        _autocast_state(),
        torch.is_grad_enabled(),
        tuple(
            (name, p.requires_grad, p.dtype, tuple(p.shape), p.stride(), p.device)
            for name, p in module.named_parameters(remove_duplicate=False)
        ),
        tuple(_of_module(m) for m in module.modules()),
    )


def _of_leaf(leaf: Any) -> Hashable:
    if isinstance(leaf, Tensor):
        layout = leaf.is_contiguous() or tuple(leaf.stride())
        return (tuple(leaf.shape), leaf.dtype, leaf.device, layout, leaf.requires_grad)
    return _plain(leaf)


def _autocast_state() -> Hashable:
    return tuple(
        (device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
        for device in ("cpu", "cuda")
        if torch.is_autocast_enabled(device)
    )


def _of_module(module: nn.Module) -> Hashable:
    attributes = tuple((name, _plain(value)) for name, value in module.__dict__.items() if name not in _IGNORED)
    return type(module), attributes, tuple(module._buffers), tuple(module._modules)


def _plain(value: Any) -> Hashable:
    """Plain data by value, containers by their items, hooks and functions by identity, all else by identity."""
    if isinstance(value, _PLAIN):
        return (type(value).__name__, value)
    if isinstance(value, (list, tuple, set, frozenset)):
        return (type(value).__name__, tuple(_plain(item) for item in value))
    if isinstance(value, dict):
        return tuple((str(key), _plain(item)) for key, item in value.items())
    return (type(value).__name__, id(value))
