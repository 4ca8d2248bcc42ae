"""Normalisation: exact through statistics.

A normalisation that computes its own statistics is three things: a reduction of the map to (mean, variance), a
few global operations that make a scale and a shift from them, and a local ``x * scale + shift``. The gradient
of the statistics flows back through the global part by ordinary autograd.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from ..graph import GraphBuilder
from .axes import Same
from .reductions import Moments
from .registry import Lowered, lowers
from .rule import Affine, Call, Read, Rule, Tile, Value

aten = torch.ops.aten


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def scale_and_shift(
    mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, shape: list[int]
) -> tuple[Tensor, Tensor]:
    """``(x - mean) / sqrt(variance + eps) * weight + bias`` as ``x * scale + shift``, both of ``shape``.

    ``mean`` and ``variance`` are (..., channels or groups); a group's statistics serve each of its channels.
    """
    scale = torch.rsqrt(variance + eps)
    shift = -mean * scale
    if weight is not None or bias is not None:
        channels = shape[1]
        repeats = channels // mean.shape[-1]
        scale, shift = scale.repeat_interleave(repeats, -1), shift.repeat_interleave(repeats, -1)
        if weight is not None:
            scale, shift = scale * _wide(weight), shift * _wide(weight)
        if bias is not None:
            shift = shift + _wide(bias)
    elif mean.shape[-1] != shape[1]:
        repeats = shape[1] // mean.shape[-1]
        scale, shift = scale.repeat_interleave(repeats, -1), shift.repeat_interleave(repeats, -1)
    return scale.reshape(shape), shift.reshape(shape)


def affine(graph: GraphBuilder, call: Call, x: Value, scale: Value, shift: Value) -> Value:
    """The local part, ``x * scale + shift``, in the wide dtype of the statistics, given back as ``x`` came."""

    def compute(tile: Tile) -> Tensor:
        tensor = tile.inputs[0]
        assert tensor is not None
        factor, offset = tile.get(scale), tile.get(shift)
        if tensor.dtype == factor.dtype:
            return torch.addcmul(offset, tensor, factor)
        scaled: Tensor = tensor * factor + offset
        return scaled.to(tensor.dtype)

    reads = (Read(x, (Same(),) * len(x.extents)),)
    rule = Rule(reads, compute, x.axes or (), (scale, shift), work=60, shift_invariant=True, fresh=True)
    return graph.local(call, rule, shape=x.shape)


def _normalised(
    graph: GraphBuilder, call: Call, x: Value, moments: Moments, weight: Any, bias: Any, eps: float
) -> tuple[Value, Value]:
    """The normalised map and the statistics, stacked as [mean, variance]."""
    stats = graph.reduce(call, moments, moments.shape)
    batch = 1 if moments.over_batch else x.shape[0]
    shape = [batch, x.shape[1], *[1] * len(x.extents)]

    def make(stats: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        return scale_and_shift(stats[0], stats[1], weight, bias, eps, shape)

    pair = graph.plain(call, make, (stats, weight, bias), shape=tuple(shape))
    scale, shift = (graph.item(call, pair, k, tuple(shape)) for k in (0, 1))
    return affine(graph, call, x, scale, shift), stats


def _update_running(
    graph: GraphBuilder, call: Call, stats: Value, count: int, mean: Any, variance: Any, momentum: float
) -> None:
    """Blend the running statistics, once per forward, with the unbiased variance, as torch does."""
    if not isinstance(mean, Value):
        return
    live = graph.averaging_counter(call)

    def blend(stats: Tensor, old: Tensor, which: int, counter: Tensor | None) -> Tensor:
        new = stats[which].detach()
        if new.dim() > 1:
            new = new.mean(0)
        if which == 1:
            new = new * (count / max(count - 1, 1))
        rate = momentum if counter is None else 1.0 / (int(counter) + 1)
        return (old + rate * (new - old)).to(old.dtype)

    for which, old in enumerate((mean, variance)):
        graph.mutate(old, graph.plain(call, blend, (stats, old, which, live), shape=old.shape))


def _is_channel_map(x: Value) -> bool:
    return x.axes == tuple(range(2, len(x.shape)))


@lowers(aten.batch_norm, aten._native_batch_norm_legit_functional, aten._native_batch_norm_legit,
        aten._native_batch_norm_legit_no_training, aten.cudnn_batch_norm)  # fmt: skip
def batch_norm(graph: GraphBuilder, call: Call) -> Lowered:
    x = call["input"]
    if not _is_channel_map(x):
        return None
    weight, bias = call["weight"], call["bias"]
    mean, variance = call.arguments.get("running_mean"), call.arguments.get("running_var")
    several = call.target.overloadpacket is not aten.batch_norm
    training = call.arguments.get("training", call.arguments.get("train", False))
    if training or mean is None:
        count = x.shape[0] * prod(x.extents)
        result, stats = _normalised(graph, call, x, Moments(x, over_batch=True), weight, bias, call["eps"])
        if training:
            _update_running(graph, call, stats, count, mean, variance, call["momentum"])
        # The functional overload also returns new running statistics; the graph's own mutations stand for them.
        return (result, None, None, graph.ignored, graph.ignored) if several else result
    assert isinstance(mean, Value) and isinstance(variance, Value)
    parameters = (mean, variance, weight, bias)

    def compute(tile: Tile) -> Tensor:
        tensor = tile.inputs[0]
        assert tensor is not None
        m, v, w, b = (tile.get(p) for p in parameters)
        return torch.nn.functional.batch_norm(tensor, m, v, w, b, False, 0.0, call["eps"])

    side = tuple(p for p in parameters if isinstance(p, Value))
    constants = Affine(mean, variance, weight, bias, call["eps"])
    reads = (Read(x, (Same(),) * len(x.extents)),)
    rule = Rule(reads, compute, x.axes or (), side, work=30, shift_invariant=True, fresh=True, affine=constants)
    result = graph.local(call, rule)
    return (result, None, None, graph.ignored, graph.ignored) if several else result


@lowers(aten.instance_norm)
def instance_norm(graph: GraphBuilder, call: Call) -> Lowered:
    x = call["input"]
    if not _is_channel_map(x):
        return None
    mean, variance = call["running_mean"], call["running_var"]
    if not call["use_input_stats"]:
        arguments = {**call.arguments, "training": False}
        frozen = Call(aten.batch_norm.default, arguments, call.shape, call.dtype, call.layer, call.name)
        return batch_norm(graph, frozen)
    moments = Moments(x, over_batch=False)
    result, stats = _normalised(graph, call, x, moments, call["weight"], call["bias"], call["eps"])
    _update_running(graph, call, stats, prod(x.extents), mean, variance, call["momentum"])
    return result


@lowers(aten.group_norm, aten.native_group_norm)
def group_norm(graph: GraphBuilder, call: Call) -> Lowered:
    x = call["input"]
    if not _is_channel_map(x):
        return None
    groups = call.arguments.get("num_groups", call.arguments.get("group"))
    result, _ = _normalised(
        graph, call, x, Moments(x, over_batch=False, groups=groups), call["weight"], call["bias"], call["eps"]
    )
    return (result, None, None) if call.target.overloadpacket is aten.native_group_norm else result
