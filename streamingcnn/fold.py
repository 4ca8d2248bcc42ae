"""A frozen batch norm becomes part of the convolution before it.

A batch norm in evaluation multiplies each channel by a constant and adds another; a convolution is linear in its
filters. So the constants can go into the filters:

    y = (conv(x, w) + b - mean) * scale + beta          scale = weight / sqrt(variance + eps)
      = conv(x, w * scale) + (b - mean) * scale + beta

A tile then does one operation in place of two and keeps one map less for its gradient. The new filters are made once
per stage, by ordinary autograd: the gradients of w, b, weight and beta come from the gradient of the filters, which
is summed over the tiles.

A graph is rewritten as a whole, after capture, since it must be known that nothing else reads the convolution's
own result. Half precision is left alone: there the rounding of the filters would not be plain PyTorch's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from .graph import Graph, Local, Node
from .ops.rule import Affine, Linear, Prepared, Rule, Value, values_in

#: The dtypes whose rounding does not show.
WIDE = (torch.float32, torch.float64)


def fold(graph: Graph) -> Graph:
    """The same network with every frozen batch norm folded into the convolution whose result it alone reads."""
    wanted = {value.name for value in values_in(graph.outputs)} | {value.name for _, value in graph.mutations}
    nodes: dict[str, Node] = dict(graph.nodes)
    for node in graph.locals.values():
        if node.rule.affine is None:
            continue
        before = graph.nodes[node.rule.reads[0].value.name]
        if (
            not isinstance(before, Local)
            or before.rule.linear is None
            or before.value.name in wanted
            or len(graph.readers[before.value.name]) > 1
            or not _one_wide_dtype(node.value, before.rule.linear, node.rule.affine)
        ):
            continue
        rule = folded(node.value.name, before.rule, before.rule.linear, node.rule.affine)
        nodes[node.value.name] = Local(node.value, rule, node.layer, before.op, (before.layer, *before.parts))
        del nodes[before.value.name]
    return replace(graph, nodes=nodes)


def _one_wide_dtype(result: Value, linear: Linear, affine: Affine) -> bool:
    dtypes = {value.dtype for value in (result, *values_in((tuple(linear[:2]), tuple(affine[:4]))))}
    return len(dtypes) == 1 and dtypes <= set(WIDE)


def folded(name: str, rule: Rule, linear: Linear, affine: Affine) -> Rule:
    """The rule of a convolution that multiplies and adds what the batch norm after it would."""
    weight = Value(f"{name}.filters", linear.weight.shape, linear.weight.dtype)
    bias = Value(f"{name}.offset", affine.mean.shape, linear.weight.dtype)
    scale = (affine.variance, affine.weight, affine.eps)
    prepared = (
        Prepared(weight, _filters(linear.spread), (linear.weight, *scale)),
        Prepared(bias, offset, (linear.bias, affine.mean, affine.bias, *scale)),
    )
    side = tuple(dict.fromkeys((*rule.side, *values_in(tuple(affine[:4])))))
    return replace(linear.remake(weight, bias), side=side, prepared=prepared)


def _filters(spread: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor | None, float], Tensor]:
    def filters(of: Tensor, variance: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        return of * spread(scale_of(variance, weight, eps))

    return filters


def offset(
    bias: Tensor | None,
    mean: Tensor,
    shift: Tensor | None,
    variance: Tensor,
    weight: Tensor | None,
    eps: float,
) -> Tensor:
    """What is added to each channel: ``(bias - mean) * scale + shift``."""
    centre = -mean if bias is None else bias - mean
    moved = centre * scale_of(variance, weight, eps)
    return moved if shift is None else moved + shift


def scale_of(variance: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """What each channel is multiplied with."""
    scale = torch.rsqrt(variance + eps)
    return scale if weight is None else scale * weight
