"""Flattened maps: ``logits.flatten(2)``, ``p.view(-1)``, ``x.permute(0, 2, 3, 1).reshape(-1, classes)``.

A flattened map has no boxes, but much of what is done to it can be done before: what is pointwise, what works along
a dimension that was not merged, sums over what was merged, and losses. So a flattening is put off:

    sum(view(a) * view(b))   is   sum(a * b)

The flattened tensor stays in the graph for whoever needs it whole; where nobody does, it is never made.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from ..graph import GraphBuilder
from . import losses
from .layout import permute
from .pointwise import across_channels, apply_in_place, is_pointwise
from .reductions import over_dims
from .registry import Lowered
from .rule import Call, Value, replace_values, values_in

aten = torch.ops.aten
VIEWS = {aten.view, aten.reshape, aten._unsafe_view, aten.flatten}
#: What needs no tag to be pointwise here: casts and copies.
SAME = {aten.to, aten._to_copy, aten.contiguous, aten.alias, aten.detach, aten.clone, aten.log_sigmoid}
OF_ELEMENTS = {
    aten.mse_loss, aten.l1_loss, aten.smooth_l1_loss, aten.huber_loss, aten.binary_cross_entropy,
    aten.binary_cross_entropy_with_logits, aten.kl_div, aten.soft_margin_loss,
}  # fmt: skip
OF_CLASSES = {aten.cross_entropy_loss, aten.nll_loss_nd, aten.nll_loss}
ALONG = {aten.softmax, aten._softmax, aten.log_softmax, aten._log_softmax}


@dataclass(frozen=True)
class Flat:
    """What a flattened value is made of: a map, and for each of its own dimensions those of the map it merges."""

    source: Value
    groups: tuple[tuple[int, ...], ...]


def flattened(graph: GraphBuilder, call: Call) -> Value | None:
    """A view that merges spatial axes: noted, and made plainly for whoever needs it."""
    if call.target.overloadpacket not in VIEWS:
        return None
    (x,) = call.spatial
    groups = merged(x.shape, call.shape)
    return None if groups is None else _view_of(graph, call, x, groups)


def merged(old: tuple[int, ...], new: tuple[int, ...]) -> tuple[tuple[int, ...], ...] | None:
    """Which old dimensions each new one holds; None where an old one is taken apart.

    >>> merged((2, 3, 8, 5), (2, 3, 40)), merged((2, 3, 8, 5), (2, 3, 4, 10))
    (((0,), (1,), (2, 3)), None)
    """
    groups, rest = [], list(range(len(old)))
    for size in new:
        group: list[int] = []
        while rest and (prod(old[d] for d in group) < size or (old[rest[0]] == 1 and size == 1 and not group)):
            group.append(rest.pop(0))
        if prod(old[d] for d in group) != size:
            return None
        groups.append(tuple(group))
    if groups and all(old[d] == 1 for d in rest):
        return (*groups[:-1], (*groups[-1], *rest))
    return None


def _view_of(graph: GraphBuilder, call: Call, source: Value, groups: tuple[tuple[int, ...], ...]) -> Value:
    shape = tuple(prod(source.shape[d] for d in group) for group in groups)
    value = graph.plain(call, torch.reshape, (source, shape), shape=shape, dtype=source.dtype)
    graph.flat[value.name] = Flat(source, groups)
    return value


def before_flattening(graph: GraphBuilder, call: Call) -> Lowered:
    """The call on the maps that its flattened arguments are made of; None where that is another thing."""
    flats = [graph.flat[value.name] for value in call.values if value.name in graph.flat]
    others = [value for value in call.values if value.name not in graph.flat]
    packet = call.target.overloadpacket
    if not flats or any(value.spatial for value in others):
        return None
    first = flats[0]
    if packet in OF_CLASSES:
        return _of_classes(graph, call)
    if any((f.source.shape, f.source.axes, f.groups) != (first.source.shape, first.source.axes, first.groups)
           for f in flats):  # fmt: skip
        return None
    if packet in (aten.sum, aten.mean):
        return _summed(graph, call, first)
    if packet in ALONG:
        (group,) = [first.groups[call["dim"] % len(first.groups)]]
        if len(group) != 1:
            return None
        made = across_channels(graph, _of_sources(graph, call, first.source.shape, dim=group[0]))
    elif any(prod(value.shape) != 1 for value in others):
        return None
    elif packet in OF_ELEMENTS:
        made = losses.of_elements(graph, _of_sources(graph, call, first.source.shape))
    elif is_pointwise(call.target) or packet in SAME:
        made = apply_in_place(graph, _of_sources(graph, call, first.source.shape))
    else:
        return None
    if not isinstance(made, Value) or not made.spatial:
        return made
    return _view_of(graph, call, made, first.groups)


def _of_sources(graph: GraphBuilder, call: Call, shape: tuple[int, ...], **changed: Any) -> Call:
    def source(value: Value) -> Value:
        return graph.flat[value.name].source if value.name in graph.flat else value

    arguments = {**replace_values(call.arguments, source), **changed}
    return Call(call.target, arguments, shape, call.dtype, call.layer, call.name)


def _summed(graph: GraphBuilder, call: Call, flat: Flat) -> Lowered:
    """A sum or mean over merged dimensions is one over all of theirs."""
    given = call.arguments.get("dim") or list(range(len(flat.groups)))
    dims = [d for one in given for d in flat.groups[one % len(flat.groups)]]
    left = tuple(size for d, size in enumerate(flat.source.shape) if d not in dims)
    target = aten.mean.dim if call.target.overloadpacket is aten.mean else aten.sum.dim_IntList
    arguments = {"self": flat.source, "dim": dims, "keepdim": False}
    if not set(flat.source.axes or ()) <= set(dims):
        return None
    made = over_dims(graph, Call(target, arguments, left, call.dtype, call.layer, call.name))
    if made is None or left == call.shape:
        return made
    return graph.plain(call, torch.reshape, (made, call.shape))


def _of_classes(graph: GraphBuilder, call: Call) -> Lowered:
    """Cross-entropy of (pixels, classes) or (N, classes, pixels): of the maps, with their classes as dimension 1."""
    x, target = graph.flat.get(call["self"].name), graph.flat.get(call["target"].name)
    if x is None or target is None or len(x.groups) < 2 or len(x.groups[1]) != 1:
        return None
    if call["reduction"] == losses.NONE or len(values_in(call["target"])) != 1 or target.source.dtype.is_floating_point:
        return None
    (classes,) = x.groups[1]
    order = [d for d in range(len(x.source.shape)) if d != classes]
    if target.groups != tuple(tuple(order.index(d) for d in g) for k, g in enumerate(x.groups) if k != 1):
        return None
    order.insert(1, classes)
    shape = tuple(x.source.shape[d] for d in order)
    logits: Any = x.source
    if order != sorted(order):
        logits = permute(graph, Call(aten.permute.default, {"self": x.source, "dims": order}, shape,
                                     x.source.dtype, call.layer, call.name))  # fmt: skip
    arguments = {**call.arguments, "self": logits, "target": target.source}
    return losses.of_classes(graph, Call(call.target, arguments, call.shape, call.dtype, call.layer, call.name))
