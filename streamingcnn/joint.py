"""Sums that come from the same maps are taken together, so that these maps are computed once and not stored.

A loss often is made of several sums. Dice has three, of p * g, of p and of g; cross-entropy is one more:

    ... conv --> logits --> softmax --> p --> p * g --> sum --\\
                    |                   +-----------> sum ----- arithmetic on numbers --> loss
                    +--> cross-entropy per pixel ---> sum --/

A stage makes one target. Three stages would run the network three times, or ask for the logits to be stored. So
the maps under the sums are first stacked along a dimension of their own, and one sum over space gives all:

    [p * g, p, cross-entropy]  (rows, *space) --sum--> (rows,) --cut--> the sums as they were

What is summed beside space (batch, channels) is summed before stacking, so rows are few.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any

import torch
from torch import Tensor

from .graph import Local, Node, Plain, Reduced, uses
from .ops.reductions import Sum
from .ops.rule import Rule, Tile, Value, same_everywhere


def joined(nodes: dict[str, Node]) -> dict[str, Node]:
    """The same nodes, with sums that share costly values replaced by one sum and cuts of it."""
    together = _families(nodes)
    if not together:
        return nodes
    result = dict(nodes)
    for k, family in enumerate(together):
        for node in _as_one(f"sums_{k}", family):
            result[node.value.name] = node
    return _in_order(result)


def _families(nodes: dict[str, Node]) -> list[list[Reduced]]:
    """Sums over at least two maps of one size, made from one costly value, none of which needs another's result."""
    depth: dict[str, int] = {}
    families: list[tuple[set[str], tuple[Any, ...], list[Reduced]]] = []
    for name, node in nodes.items():
        deepest = max((depth[value.name] for value in uses(node)), default=0)
        depth[name] = deepest + isinstance(node, Reduced)
        if not isinstance(node, Reduced) or not _can_join(node):
            continue
        roots, kind = _costly(nodes, node.reduction.value), (deepest, node.reduction.value.extents)
        members = [node]
        for family in [f for f in families if f[1] == kind and f[0] & roots]:
            families.remove(family)
            roots, members = roots | family[0], family[2] + members
        families.append((roots, kind, members))
    return [members for _, _, members in families if len({m.reduction.value.name for m in members}) > 1]


def _can_join(node: Reduced) -> bool:
    dtype = node.reduction.value.dtype
    return type(node.reduction) is Sum and (dtype.is_floating_point or dtype == torch.bool)


def _costly(nodes: dict[str, Node], value: Value) -> set[str]:
    """The values under a map that cost work to compute: back over cheap operations to the first costly ones."""
    found: set[str] = set()
    todo, seen = [value.name], set()
    while todo:
        name = todo.pop()
        node = nodes[name]
        if name in seen or not isinstance(node, Local):
            continue
        seen.add(name)
        if node.rule.cheap:
            todo += [read.value.name for read in node.rule.reads]
        else:
            found.add(name)
    return found


def _as_one(name: str, family: list[Reduced]) -> Iterable[Node]:
    """The stacked map, its sum, and for each old sum its cut of that."""
    sums = [node.reduction for node in family]
    values = list(dict.fromkeys(s.value for s in sums))
    dtype = torch.float32
    for value in values:
        dtype = torch.promote_types(dtype, value.dtype) if value.dtype.is_floating_point else dtype
    extents = values[0].extents
    kept = [tuple(d for d in range(len(s.value.shape)) if d not in s.dims) for s in sums]  # type: ignore[attr-defined]
    heights = [prod(s.value.shape[d] for d in dims) for s, dims in zip(sums, kept, strict=True)]
    index = {value.name: k for k, value in enumerate(values)}

    def compute(tile: Tile) -> Tensor:
        rows = []
        for s, dims in zip(sums, kept, strict=True):
            tensor, axes = tile.inputs[index[s.value.name]], s.value.axes or ()
            assert tensor is not None
            beside = [d for d in range(tensor.dim()) if d not in dims and d not in axes]
            summed = tensor.sum(beside, keepdim=True, dtype=dtype) if beside else tensor.to(dtype)
            rows.append(summed.permute(*dims, *beside, *axes).reshape(-1, *(tensor.shape[a] for a in axes)))
        return torch.cat(rows)

    axes = tuple(range(1, len(extents) + 1))
    reads = tuple(same_everywhere(value) for value in values)
    rule = Rule(reads, compute, axes, work=sum(heights), shift_invariant=True)
    stacked = Value(f"{name}.maps", (sum(heights), *extents), dtype, axes)
    first = family[0]
    yield Local(stacked, rule, first.layer, "stack")
    total = Value(name, (sum(heights),), torch.float64)
    yield Reduced(total, Sum(stacked, axes, False, 1, torch.float64), first.layer, "sum")
    start = 0
    for node, height in zip(family, heights, strict=True):
        assert isinstance(node.reduction, Sum)
        cut = (total, start, height, node.reduction.count, node.value.shape, node.value.dtype)
        yield Plain(node.value, _cut, cut, {}, node.layer, node.op)
        start += height


def _cut(total: Tensor, start: int, height: int, count: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return (total[start : start + height] / count).reshape(shape).to(dtype)


def _in_order(nodes: dict[str, Node]) -> dict[str, Node]:
    """Each node after what it reads, and otherwise as they were."""
    ordered: dict[str, Node] = {}
    for name in nodes:
        todo = [name]
        while todo:
            before = [v.name for v in uses(nodes[todo[-1]]) if v.name not in ordered]
            if before:
                todo += before
            else:
                last = todo.pop()
                ordered.setdefault(last, nodes[last])
    return ordered
