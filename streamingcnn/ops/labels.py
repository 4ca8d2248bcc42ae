"""Maps of classes: one-hot maps, and what is looked up by class, box by box."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..graph import GraphBuilder, Plain
from .registry import Lowered, lowers
from .rule import Call, Rule, Tile, Value, replace_values, same_everywhere

aten = torch.ops.aten


@lowers(aten.one_hot)
def one_hot(graph: GraphBuilder, call: Call) -> Lowered:
    """Classes as a last dimension of zeros and ones."""
    (x,) = call.spatial
    classes = call["num_classes"]
    if classes < 1:  # as many as the largest class of the whole map says
        return None

    def compute(tile: Tile) -> Tensor:
        assert tile.inputs[0] is not None
        return torch.nn.functional.one_hot(tile.inputs[0], classes)

    return graph.local(call, Rule((same_everywhere(x),), compute, x.axes or (), work=classes, shift_invariant=True))


@lowers(aten.zeros_like, aten.ones_like, aten.full_like, aten.new_zeros, aten.new_ones, aten.new_full)
def filled_like(graph: GraphBuilder, call: Call) -> Lowered:
    """A map of one number needs nothing of the map whose shape it takes."""
    (x,) = call.spatial
    number = fill_of(call.target, call.arguments)
    if call.shape != x.shape or not isinstance(number, (int, float)):
        return None
    return filled(graph, call, x.axes or (), number)


#: What an operation that makes a constant tensor fills it with; None: its argument ``fill_value``.
FILLS = {
    aten.zeros: 0, aten.zeros_like: 0, aten.new_zeros: 0, aten.ones: 1, aten.ones_like: 1, aten.new_ones: 1,
    aten.full: None, aten.full_like: None, aten.new_full: None,
}  # fmt: skip


def fill_of(target: Any, arguments: dict[str, Any]) -> Any:
    """The number that a constant tensor is filled with."""
    number = FILLS.get(target.overloadpacket) if hasattr(target, "overloadpacket") else None
    return arguments.get("fill_value") if number is None else number


def filled(graph: GraphBuilder, call: Call, axes: tuple[int, ...], number: float) -> Value:
    """A map of one number, made tile by tile."""
    device = graph.device

    def compute(tile: Tile) -> Tensor:
        sizes = list(call.shape)
        for axis, (low, high) in zip(axes, tile.box, strict=True):
            sizes[axis] = high - low
        return torch.full(sizes, number, dtype=call.dtype, device=device)

    return graph.local(call, Rule((), compute, axes, work=1, shift_invariant=True))


@lowers(aten.gather, aten.scatter.value, aten.scatter.src, aten.scatter_add, aten.take_along_dim)
def along_channels(graph: GraphBuilder, call: Call) -> Lowered:
    """Reading or writing along a dimension that is not spatial, at places that an index map gives."""
    index: Value = call.arguments.get("index") or call["indices"]
    dim = call["dim"]
    if dim is None or not index.spatial or dim % len(index.shape) in (index.axes or ()):
        return None
    arguments = dict(call.arguments)
    whole = arguments["self"]
    if not whole.spatial:
        constant = _constant(graph, call, whole, index)
        if constant is None:
            return None
        arguments["self"] = constant
    values = [value for value in arguments.values() if isinstance(value, Value)]
    if any(value.axes != index.axes or value.extents != index.extents for value in values):
        return None
    held = tuple(dict.fromkeys(values))

    def compute(tile: Tile) -> Tensor:
        tensors = dict(zip((value.name for value in held), tile.inputs, strict=True))
        given = replace_values(arguments, lambda value: tensors[value.name])
        result: Tensor = call.target(**given)
        return result

    reads = tuple(same_everywhere(value) for value in held)
    return graph.local(call, Rule(reads, compute, index.axes or (), shift_invariant=True))


def _constant(graph: GraphBuilder, call: Call, whole: Value, index: Value) -> Value | None:
    """``torch.zeros(shape of the map)`` to scatter into: a map after all, since the index map is one."""
    node = graph.nodes[whole.name]
    shape = tuple(size for dim, size in enumerate(whole.shape) if dim in (index.axes or ()))
    if not isinstance(node, Plain) or len(whole.shape) != len(index.shape) or shape != index.extents:
        return None
    number = fill_of(node.run, {"fill_value": node.arguments[1] if len(node.arguments) > 1 else None})
    if not isinstance(number, (int, float)):
        return None
    made = Call(node.run, {}, whole.shape, whole.dtype, call.layer, call.name)
    return filled(graph, made, index.axes or (), number)


@lowers(aten.index.Tensor)
def looked_up(graph: GraphBuilder, call: Call) -> Lowered:
    """A row of a table for each pixel: ``table[classes]``; bool and uint8 indices are masks, not classes."""
    table, indices = call["self"], call["indices"]
    if len(indices) != 1 or table.spatial or indices[0].dtype in (torch.bool, torch.uint8):
        return None
    (classes,) = indices

    def compute(tile: Tile) -> Tensor:
        assert tile.inputs[0] is not None
        rows: Tensor = tile.get(table)[tile.inputs[0]]
        return rows

    rule = Rule((same_everywhere(classes),), compute, classes.axes or (), (table,), shift_invariant=True)
    return graph.local(call, rule)
