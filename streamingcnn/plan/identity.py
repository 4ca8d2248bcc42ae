"""Which network at which size is this? One number for a graph, the same in every process and on every machine.

A plan names nodes and cuts their maps into tiles, so it fits one graph only. The number is a SHA-256 over what a plan
depends on: the nodes in their order, with operation, layer, shape, dtype and spatial axes, and what each reads. Weights
are no part of it, nor is anything that differs between two runs of one program (``id``, ``hash``, the device).

What a rule needs of an input is asked, and not looked up, since a rule's axis may hold a function:

    [0, 1)                  the low border: padding
    [m, m+1), [m, m+16)     the middle: kernel, dilation, stride
    [e-1, e)                the high border
"""

from __future__ import annotations

import hashlib
import json
from typing import Any
from weakref import WeakKeyDictionary

from ..graph import Given, Graph, Local, Node, Reduced, uses
from ..ops.rule import Read, Value

__all__ = ["graph_hash"]


_KNOWN: WeakKeyDictionary[Graph, str] = WeakKeyDictionary()


def graph_hash(graph: Graph) -> str:
    """64 hexadecimal digits that two captures share where a plan of one fits the other.

    ::

        graph_hash(net.plan((1, 3, 512, 512)).graph)    # '5d41402a...', again tomorrow and elsewhere
    """
    if graph in _KNOWN:
        return _KNOWN[graph]
    nodes = [_node(node) for node in graph.nodes.values()]
    outputs = [_of(output) for output in graph.outputs if isinstance(output, Value)]
    mutations = [[name, value.name] for name, value in graph.mutations]
    text = json.dumps([graph.space, nodes, outputs, mutations], separators=(",", ":"))
    _KNOWN[graph] = hashlib.sha256(text.encode()).hexdigest()
    return _KNOWN[graph]


def _node(node: Node) -> list[Any]:
    kind = type(node).__name__
    if isinstance(node, Given):
        # A constant's key is its tensor; the others are named by a position or a path.
        return [kind, _of(node.value), node.source, node.key if isinstance(node.key, (int, str)) else None]
    read = [_need(read, node.value) for read in node.rule.reads] if isinstance(node, Local) else []
    reduced = type(node.reduction).__name__ if isinstance(node, Reduced) else ""
    return [kind, _of(node.value), node.op, node.layer, reduced, [value.name for value in uses(node)], read]


def _of(value: Value) -> list[Any]:
    return [value.name, value.shape, str(value.dtype), value.axes]


def _need(read: Read, result: Value) -> list[Any]:
    asked = []
    for axis, extent in zip(read.maps, result.extents, strict=True):
        middle = extent // 2
        probes = [(0, 1), (middle, middle + 1), (middle, min(middle + 16, extent)), (extent - 1, extent)]
        asked.append([axis.need(low, high) for low, high in probes])
    return asked
