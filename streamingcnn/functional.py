"""A captured program without writes: each operation in place becomes one that gives a new value.

``run_decompositions`` does so for any program, by tracing it again, and that is most of capture's time. What networks
write is little: an activation over a convolution's result, a sum over one branch, the statistics of a batch norm.
Those are rewritten here, to what torch makes of them; a program with anything else (a write through a view, a region
without gradient, an operation known by its parts alone) is left to torch.

    x = conv(...)                     x = conv(...)
    relu_(x)             ->           y = relu(x)
    pool(x)                           pool(y)
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.export.graph_signature import InputKind, OutputKind, OutputSpec, TensorArgument
from torch.fx import Graph, Node

from .ops.pointwise import is_pointwise
from .ops.registry import lowering_of

__all__ = ["made_functional"]

aten = torch.ops.aten

#: Composite operations whose result is always memory of its own; a dropout, say, gives its input back in evaluation.
FRESH = {
    aten.conv1d, aten.conv2d, aten.conv3d, aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d,
    aten.linear, aten.batch_norm, aten.instance_norm, aten.group_norm, aten.layer_norm,
}  # fmt: skip


def made_functional(program: Any) -> bool:
    """Rewrite the writes of an exported program; False, and nothing changed, where only torch can follow them.

    >>> from torch.nn import Linear, ReLU, Sequential
    >>> x = (torch.zeros(1),)
    >>> made_functional(torch.export.export(Sequential(Linear(1, 1), ReLU(inplace=True)), x))
    True
    >>> made_functional(torch.export.export(ReLU(inplace=True), x))  # writes over the caller's tensor
    False
    """
    signature, graph = program.graph_signature, program.graph
    buffers = {s.arg.name: s.target for s in signature.input_specs if s.kind is InputKind.BUFFER}
    calls = [node for node in graph.nodes if node.op == "call_function" and node.target is not operator.getitem]
    if not all(_is_known(node) and (not _writes(node) or _is_simple(node, buffers)) for node in calls):
        return False
    updated: dict[str, Node] = {}  # by the placeholder of a buffer, its newest value
    behind: dict[Node, str] = {}  # of such a value, the placeholder

    def update(old: Node, new: Node) -> None:
        name = behind.get(old, old.name)
        if name in buffers:
            updated[name], behind[new] = new, name

    for node in calls:
        if _trains(node):
            for old, new in _training_norm(graph, node):
                update(old, new)
        elif _writes(node):
            written = node.args[0]
            node.target = _out_of_place(node.target)
            _from_here(node, written, node)
            update(written, node)
    output = next(node for node in graph.nodes if node.op == "output")
    output.args = ((*updated.values(), *output.args[0]),)
    kind = OutputKind.BUFFER_MUTATION
    signature.output_specs[:0] = [
        OutputSpec(kind, TensorArgument(node.name), buffers[name]) for name, node in updated.items()
    ]
    return True


def _is_known(node: Node) -> bool:
    """Whether the operation can stay as it is: it is no region, and not known by its parts alone."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    return not target._can_decompose() or lowering_of(target) is not None or is_pointwise(target)


def _writes(node: Node) -> bool:
    return bool(node.target._schema.is_mutable)  # type: ignore[union-attr]


def _out_of_place(target: Any) -> Any:
    """``aten.relu_.default`` as ``aten.relu.default``; None where there is no such operation."""
    name = target._schema.name.removeprefix("aten::")
    packet = getattr(aten, name[:-1], None) if name.endswith("_") else None
    found = getattr(packet, target._overloadname, None)
    return None if found is None or found._schema.is_mutable else found


def _is_simple(node: Node, buffers: dict[str, str]) -> bool:
    """Whether nobody else holds the memory that an operation writes to, and the result is of the same kind."""
    written = node.args[0] if node.args else None
    if not isinstance(written, Node) or _out_of_place(node.target) is None:
        return False
    before, after = written.meta.get("val"), node.meta.get("val")
    if not (isinstance(before, Tensor) and isinstance(after, Tensor)):
        return False
    if (before.dtype, before.shape) != (after.dtype, after.shape):
        return False
    if written.op == "placeholder":
        own = written.name in buffers
    else:
        own = written.op == "call_function" and (_writes(written) if _is_op(written) else False)
        own = own or not _may_alias(written)
    earlier = [user for user in written.users if user < node]
    return own and not any(_may_alias(user) for user in earlier if not (_is_op(user) and _writes(user)))


def _is_op(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload)


def _may_alias(node: Node) -> bool:
    """Whether a result may be the memory of an argument."""
    if not _is_op(node):
        return True
    target: Any = node.target
    if any(result.alias_info for result in target._schema.returns):
        return True
    return bool(target._can_decompose()) and target.overloadpacket not in FRESH


def _from_here(node: Node, old: Node, new: Node) -> None:
    """Let what comes after `node` read `new` where it read `old`."""
    old.replace_all_uses_with(new, delete_user_cb=lambda user: user > node)


def _argument(node: Node, name: str) -> Any:
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}.get(name)


def _trains(node: Node) -> bool:
    """A batch norm that updates its statistics, which its schema does not say."""
    return (
        node.target is aten.batch_norm.default
        and bool(_argument(node, "training"))
        and isinstance(_argument(node, "running_mean"), Node)
    )


def _training_norm(graph: Graph, node: Node) -> list[tuple[Node, Node]]:
    """As the operation that returns the new statistics, beside the old ones: (old, new) of mean and variance."""
    old = [_argument(node, name) for name in ("running_mean", "running_var")]
    with graph.inserting_before(node):
        norm = graph.call_function(aten._native_batch_norm_legit_functional.default, node.args[:8])
        norm.meta = {**node.meta, "val": (node.meta["val"], None, None, *(each.meta["val"] for each in old))}
        parts = [graph.call_function(operator.getitem, (norm, k)) for k in (0, 3, 4)]
        for part, value in zip(parts, (node, *old), strict=True):
            part.meta = {**node.meta, "val": value.meta["val"]}
    node.replace_all_uses_with(parts[0])
    graph.erase_node(node)
    for each, new in zip(old, parts[1:], strict=True):
        _from_here(norm, each, new)
    return list(zip(old, parts[1:], strict=True))
