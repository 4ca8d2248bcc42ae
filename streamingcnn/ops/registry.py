"""Which lowering serves which ATen operation.

A *lowering* turns one captured call into nodes: usually one local node with a rule; for a normalisation a
reduction, a few global nodes and one local node. It answers None where the call is not local after all (a
softmax over space, say); the call then runs plainly on stored maps.

Users bring rules for operations of their own with :func:`register_rule`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .rule import Call, Rule, Value

if TYPE_CHECKING:
    from ..graph import GraphBuilder

#: A lowering's answer: a value, or several for an operation with several results; None: not local.
Lowered = Value | tuple[Any, ...] | None
Lowering = Callable[["GraphBuilder", Call], Lowered]

LOWERINGS: dict[Any, Lowering] = {}


def lowers(*targets: Any) -> Callable[[Lowering], Lowering]:
    """Register a lowering for ATen operations, given as overloads or as packets (every overload)."""

    def register(lowering: Lowering) -> Lowering:
        for target in targets:
            LOWERINGS[target] = lowering
        return lowering

    return register


def lowering_of(target: Any) -> Lowering | None:
    """The lowering of an operation, or None."""
    return LOWERINGS.get(target) or LOWERINGS.get(getattr(target, "overloadpacket", None))


def register_rule(target: Any) -> Callable[[Callable[[Call], Rule | None]], Callable[[Call], Rule | None]]:
    """Tell streamingcnn how an operation of your own runs on boxes.

    ::

        @torch.library.custom_op("mylib::blur", mutates_args=())
        def blur(x: Tensor) -> Tensor: ...           # a 3x3 window without padding

        @register_rule(torch.ops.mylib.blur.default)
        def blur_rule(call):
            x = call["x"]
            reads = (Read(x, tuple(Window(extent, kernel=3) for extent in x.extents)),)
            return Rule(reads, lambda tile: torch.ops.mylib.blur(tile.inputs[0]), axes=x.axes, cheap=False)

    The function gets a :class:`~streamingcnn.ops.rule.Call` and returns a :class:`~streamingcnn.ops.rule.Rule`,
    or None where the call cannot be run by box (it then runs plainly on a stored map). A later registration of
    the same operation replaces the earlier one. The operation needs a fake kernel (``register_fake``) and a
    gradient (``register_autograd``), as ``torch.export`` and autograd ask of any custom operation.
    """

    def register(rule_of: Callable[[Call], Rule | None]) -> Callable[[Call], Rule | None]:
        def lowering(graph: GraphBuilder, call: Call) -> Lowered:
            rule = rule_of(call)
            return None if rule is None else graph.local(call, rule)

        LOWERINGS[target] = lowering
        return rule_of

    return register
