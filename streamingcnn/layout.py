"""The memory format that tiles run in.

    contiguous       c c c c ...    all pixels of one channel, then all of the next
    channels_last    p p p p ...    all channels of one pixel, then those of the next

On a CPU PyTorch's kernels want channels last: oneDNN brings a contiguous image into an order of its own and back at
every convolution, and pooling and interpolation take some ten times as long. A convolution whose filters have their
channels last gives a result that has, whatever the image. So filters are brought into that order, once per stage, and
everything that follows keeps it, stored maps too. What the caller gets, and what runs plainly, is as contiguous as
plain PyTorch's.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from .graph import Graph, Local
from .ops.axes import Window

MEMORY_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
#: What oneDNN computes; other dtypes take kernels that want contiguous tensors.
_COMPUTED_BY_ONEDNN = {torch.float32, torch.bfloat16}
#: Known answers; every stage of every step asks.
_BROUGHT: WeakKeyDictionary[Graph, bool] = WeakKeyDictionary()


def given_in_channels_last(graph: Graph) -> bool:
    """Whether the image or a filter came in channels_last, so that convolutions run so in plain PyTorch, too."""
    values = (graph.nodes[name].value for name in graph.strides)
    images = [v for v in values if len(v.shape) in MEMORY_FORMATS and prod(v.shape[2:]) > 1]
    return any(graph.strides[v.name][1] == 1 for v in images)


def brought_to_channels_last(graph: Graph) -> bool:
    """Whether tiles run in channels_last though the image came otherwise."""
    if graph not in _BROUGHT:
        _BROUGHT[graph] = graph.device.type == "cpu" and not given_in_channels_last(graph) and _convolves(graph)
    return _BROUGHT[graph]


def _convolves(graph: Graph) -> bool:
    """Whether the network has a convolution of channels whose kernels want them last."""
    return any(
        node.rule.linear is not None
        and node.value.dtype in _COMPUTED_BY_ONEDNN
        and len(node.value.shape) in MEMORY_FORMATS
        and _slides(node)
        for node in graph.locals.values()
    )


def _slides(node: Local) -> bool:
    """Whether a node's window slides over what it reads: a convolution, and no transposed one."""
    return any(isinstance(each, Window) for read in node.rule.reads for each in read.maps)


def layout_of(graph: Graph) -> str:
    """What a graph's convolutions run in: "contiguous" or "channels_last"."""
    last = given_in_channels_last(graph) or brought_to_channels_last(graph)
    return "channels_last" if last else "contiguous"


def filters_of(nodes: Iterable[Local]) -> frozenset[str]:
    """The names of the filters of convolutions, as tiles ask for them."""
    return frozenset(node.rule.linear.weight.name for node in nodes if node.rule.linear is not None and _slides(node))


def in_channels_last(filters: Tensor) -> Tensor:
    """Filters with their channels last, whatever is ambiguous about that.

    >>> in_channels_last(torch.empty(8, 1, 3, 3)).stride(), in_channels_last(torch.empty(8, 4, 1, 1)).stride()
    ((9, 1, 3, 1), (4, 1, 4, 4))

    One channel is first and last at once, and so are the channels of a single pixel: PyTorch takes these for contiguous
    unless their strides say otherwise.
    """
    wanted = MEMORY_FORMATS[filters.dim()]
    strides = torch.empty(filters.shape, device="meta", memory_format=wanted).stride()
    return filters.contiguous(memory_format=wanted).as_strided(filters.shape, strides)
