"""Losses over maps: a local loss per pixel and a sum, so that the maps a loss compares are never stored.

    logits (N, C, *space) --\\
                             loss per pixel (N, *space) --sum--> total --\\
    target (N, *space) -----/                                            total / weight = the loss
                       \\---- weight per pixel (N, *space) --sum--> weight /

Each is ATen's own operation with ``reduction="none"``, run on a tile's boxes. A mean over classes with weights, or
with pixels to ignore, is a quotient of two sums; where nothing is left to count it is 0 / 0, a NaN as in plain
PyTorch.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from ..graph import GraphBuilder
from .pointwise import apply_in_place
from .reductions import Sum
from .registry import Lowered, lowers
from .rule import Call, Rule, Tile, Value, replace_values, same_everywhere

aten = torch.ops.aten
NONE, MEAN = 0, 1


def _total(graph: GraphBuilder, call: Call, each: Value, count: int, dtype: torch.dtype) -> Value:
    """The sum of a loss per pixel over everything, divided by a count."""
    return graph.reduce(call, Sum(each, tuple(range(len(each.shape))), False, count, dtype), (), dtype)


def _per_pixel(call: Call, shape: tuple[int, ...]) -> Call:
    """The same call with ``reduction="none"``."""
    arguments = {**call.arguments, "reduction": NONE}
    return Call(call.target, arguments, shape, call.dtype, call.layer, call.name)


@lowers(aten.mse_loss, aten.l1_loss, aten.smooth_l1_loss, aten.huber_loss, aten.binary_cross_entropy,
        aten.binary_cross_entropy_with_logits, aten.kl_div, aten.soft_margin_loss)  # fmt: skip
def of_elements(graph: GraphBuilder, call: Call) -> Lowered:
    """A loss of each element by itself, between two maps of one shape."""
    shape = tuple(torch.broadcast_shapes(*(value.shape for value in call.values)))
    each = apply_in_place(graph, _per_pixel(call, shape))
    if each is None or call["reduction"] == NONE:
        return each
    assert isinstance(each, Value)
    return _total(graph, call, each, prod(shape) if call["reduction"] == MEAN else 1, call.dtype)


@lowers(aten.cross_entropy_loss, aten.nll_loss_nd, aten.nll_loss2d, aten.nll_loss)
def of_classes(graph: GraphBuilder, call: Call) -> Lowered:
    """Cross-entropy and negative log-likelihood: one loss per pixel from all its classes."""
    x, target = call["self"], call["target"]
    if not x.spatial or not target.spatial or 1 in x.axes:
        return None
    shape = (x.shape[0], *x.shape[2:])
    probabilities = target.shape == x.shape
    axes = tuple(axis - (axis > 1) for axis in x.axes)
    if target.axes != (x.axes if probabilities else axes):
        return None
    side = tuple(value for value in call.values if not value.spatial)
    one = _per_pixel(call, shape)

    def compute(tile: Tile) -> Tensor:
        held = {x.name: tile.inputs[0], target.name: tile.inputs[1]}
        given = replace_values(one.arguments, lambda v: held[v.name] if v.spatial else tile.get(v))
        result: Tensor = one.target(**given)
        return result

    reads = (same_everywhere(x), same_everywhere(target))
    each = graph.local(one, Rule(reads, compute, axes, side, work=30 * x.shape[1], shift_invariant=True))
    if call["reduction"] == NONE:
        return each
    if call["reduction"] != MEAN:
        return _total(graph, call, each, 1, call.dtype)
    if probabilities:
        return _total(graph, call, each, prod(shape), call.dtype)
    total = _total(graph, call, each, 1, torch.float64)
    weight = _total(graph, call, _weights(graph, call, target), 1, torch.float64)
    return graph.plain(call, _quotient, (total, weight, call.dtype))


def _weights(graph: GraphBuilder, call: Call, target: Value) -> Value:
    """What each pixel counts: its class's weight, nothing where it is ignored."""
    weight: Any = call["weight"]
    dtype = call.dtype if call.dtype == torch.float64 else torch.float32

    def compute(tile: Tile) -> Tensor:
        classes = tile.inputs[0]
        assert classes is not None
        counted: Tensor = classes != call["ignore_index"]
        if weight is None:
            return counted.to(dtype)
        of_class: Tensor = tile.get(weight).detach().to(dtype)[torch.where(counted, classes, 0)]
        return of_class.mul(counted)

    side = () if weight is None else (weight,)
    rule = Rule((same_everywhere(target),), compute, target.axes or (), side, shift_invariant=True)
    return graph.local(call, rule, target.shape, dtype)


def _quotient(total: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    return (total / weight).to(dtype)
