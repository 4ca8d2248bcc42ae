"""What a call of a streamed module gives: tensors, sources, parts of images; and what stands for them in a plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .ahead import Reading
from .constant import constant_blocks_in
from .graph import Given, Graph
from .maps import SourceMap
from .ops.rule import Value
from .part import Part
from .signature import Content
from .sources.source import ConstantBlocks, Source, constant_blocks_of

__all__ = ["content_of", "device_of", "stood_in", "values_given"]


def _stand_in(source: Source) -> Tensor:
    """A tensor of the shape and dtype of a source, without pixels."""
    shape = tuple(source.shape) if source.axes.startswith("N") else (1, *source.shape)
    return torch.empty(shape, dtype=source.dtype, device="meta")


def _of_part(part: Part) -> Tensor:
    """A tensor of the shape of a whole image, without pixels."""
    return torch.empty(part.shape, dtype=part.tensor.dtype, device="meta", requires_grad=part.tensor.requires_grad)


def stood_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The arguments of a call with a tensor without pixels in place of each source and part."""
    return pytree.tree_map_only(Part, _of_part, pytree.tree_map_only(Source, _stand_in, (args, kwargs)))


def content_of(graph: Graph, leaves: Sequence[Any]) -> Content:
    """What is known of the images of a call; where an image's own gradient is wanted, each of its pixels is its own."""
    constants: dict[str, ConstantBlocks] = {}
    spatial = [(leaves[position], value) for position, value in graph.inputs.items() if value.spatial]
    for leaf, value in spatial:
        if value.name in graph.trained:
            continue
        if isinstance(leaf, Part):
            continue
        if isinstance(leaf, Tensor):
            blocks = None if leaf.is_meta else constant_blocks_in(leaf, value.axes or ())
        else:
            blocks = constant_blocks_of(leaf)
        if blocks is not None and blocks.share > 0:
            blocks.check(value.extents)
            constants[value.name] = blocks
    return Content(constants, frozenset(value.name for leaf, value in spatial if not isinstance(leaf, (Tensor, Part))))


def values_given(
    module: nn.Module, graph: Graph, leaves: Sequence[Any], reading: Reading | None = None
) -> tuple[dict[Value, Tensor], dict[str, Any]]:
    """The tensors behind the graph's given values: those autograd saves, and the rest."""
    mutated = {name for name, _ in graph.mutations}
    tensors: dict[Value, Tensor] = {}
    fixed: dict[str, Any] = {}
    for node in graph.nodes.values():
        if not isinstance(node, Given) or node.source == "seed":
            continue
        if node.source == "input" and isinstance(leaves[node.key], Tensor):
            tensors[node.value] = leaves[node.key]
        elif node.source == "input" and isinstance(leaves[node.key], Part):
            tensors[node.value] = leaves[node.key].tensor
        elif node.source == "input":
            fixed[node.value.name] = SourceMap(node.value, leaves[node.key], device_of(module), reading)
        elif node.source == "parameter":
            tensors[node.value] = module.get_parameter(node.key)
        elif node.source == "buffer" and node.key not in mutated:
            tensors[node.value] = module.get_buffer(node.key)
        elif node.source == "buffer":
            fixed[node.value.name] = module.get_buffer(node.key)
        else:
            fixed[node.value.name] = node.key
    return tensors, fixed


def device_of(module: nn.Module) -> torch.device:
    """Where tiles of a source run: where the parameters are."""
    return next((p.device for p in module.parameters()), torch.device("cpu"))
