"""Operations that keep every pixel in its place: activations, arithmetic, and work across channels.

Which ATen operations are pointwise is read off their tag (``torch.Tag.pointwise``), not listed here; only those
that carry no tag are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..graph import GraphBuilder
from .axes import AxisMap, Constant, Same
from .registry import Lowered, lowers
from .rule import Call, Read, Rule, Tile, Value, along, replace_values, values_in

aten = torch.ops.aten


def is_pointwise(target: object) -> bool:
    """Whether torch itself says that an operation is pointwise, and draws no random numbers."""
    tags = getattr(target, "tags", ())
    return torch.Tag.pointwise in tags and torch.Tag.nondeterministic_seeded not in tags


def apply_in_place(graph: GraphBuilder, call: Call, keep_whole: tuple[str, ...] = ()) -> Lowered:
    """Run the call itself on the tile's tensors; ``keep_whole`` names arguments that do not broadcast.

    Operands are aligned at their last dimension, as broadcasting does:

        result   (N, C, H, W)      axes (2, 3)
        operand     (C, H, W)      its spatial axes are 1 and 2: one dimension fewer
        operand     (C, 1, 1)      global: nothing to cut
        operand        (H, W)      global, spatial extent: cut to the tile's box
    """
    rank = len(call.shape)
    spatial = call.spatial
    if any(len(value.shape) > rank for value in spatial):
        return None
    aligned = {tuple(axis + rank - len(value.shape) for axis in value.axes or ()) for value in spatial}
    if len(aligned) != 1:
        return None
    axes = aligned.pop()
    extents = [call.shape[axis] for axis in axes]
    reads = []
    for value in dict.fromkeys(spatial):
        maps: list[AxisMap] = []
        for own, extent in zip(value.extents, extents, strict=True):
            if own != extent and own != 1:
                return None
            maps.append(Same() if own == extent else Constant())
        reads.append(Read(value, tuple(maps)))
    target = call.target
    positional = tuple(call.arguments.items())
    index = {read.value.name: k for k, read in enumerate(reads)}

    def arguments_at(tile: Tile) -> dict[str, Any]:
        def whole(value: Value) -> object:
            return tile.inputs[index[value.name]] if value.spatial else tile.get(value)

        def cut(value: Value) -> object:
            tensor = whole(value)
            if not value.spatial and isinstance(tensor, Tensor) and tensor.dim():
                return cut_to(tensor, tile, axes, extents, rank)
            return tensor

        return {name: replace_values(given, whole if name in keep_whole else cut) for name, given in positional}

    def compute(tile: Tile) -> Tensor:
        result: Tensor = target(**arguments_at(tile))
        return result

    def over(argument: str) -> Callable[[Tile], Tensor]:
        in_place = OVER[target]

        def write_over(tile: Tile) -> Tensor:
            arguments = arguments_at(tile)
            if argument == "other":  # a sum does not mind which of its terms takes the other
                arguments["self"], arguments["other"] = arguments["other"], arguments["self"]
            result: Tensor = in_place(**arguments)
            return result

        return write_over

    places = {call.arguments[argument]: argument for argument in reversed(_may_overwrite(call))}
    side = tuple(value for value in values_in(tuple(call.arguments.values())) if not value.spatial)
    # An operand that is cut to the tile's box (coordinates, say) gives each place pixels of its own.
    invariant = not any(spans(value, axes, extents, rank) for value in side)
    return graph.local(
        call,
        Rule(
            tuple(reads),
            compute,
            axes,
            side,
            shift_invariant=invariant,
            fresh=target in FRESH,
            over=tuple(over(places[read.value]) if read.value in places else None for read in reads),
        ),
    )


#: Operations whose gradient needs the result at most, by their forms that write it over ``self``.
OVER = {
    aten.relu.default: aten.relu_.default,
    aten.leaky_relu.default: aten.leaky_relu_.default,
    aten.hardtanh.default: aten.hardtanh_.default,
    aten.elu.default: aten.elu_.default,
    aten.sigmoid.default: aten.sigmoid_.default,
    aten.tanh.default: aten.tanh_.default,
    aten.add.Tensor: aten.add_.Tensor,
    aten.sub.Tensor: aten.sub_.Tensor,
}
#: Operations with a result of its own that their gradient does not need.
FRESH = {aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.mul.Scalar}


def _may_overwrite(call: Call) -> list[str]:
    """The arguments that an operation may write its result over."""
    if call.target not in OVER:
        return []
    slope = call.arguments.get("negative_slope", call.arguments.get("alpha", 1))
    if call.target is aten.add.Tensor:
        names = ["self", "other"] if slope == 1 else ["self"]
    elif call.target is aten.sub.Tensor or slope > 0:
        names = ["self"]
    else:
        names = []  # below zero the sign of the result does not tell that of the input
    return [name for name in names if isinstance(call[name], Value) and call[name].spatial]


def spans(value: Value, axes: tuple[int, ...], extents: list[int], rank: int) -> bool:
    """Whether a global operand has spatial extent, so that :func:`cut_to` cuts it."""
    offset = rank - len(value.shape)
    return any(
        axis >= offset and value.shape[axis - offset] == extent != 1 for axis, extent in zip(axes, extents, strict=True)
    )


def cut_to(tensor: Tensor, tile: Tile, axes: tuple[int, ...], extents: list[int], rank: int) -> Tensor:
    """The part of a global operand that lies over a tile, where it has spatial extent at all."""
    offset = rank - tensor.dim()
    for axis, extent, interval in zip(axes, extents, tile.box, strict=True):
        dim = axis - offset
        if dim >= 0 and tensor.shape[dim] == extent and extent != 1:
            tensor = along(tensor, (dim,), (interval,))
    return tensor


@lowers(aten.hardswish, aten.glu, aten.log_sigmoid, aten.to, aten._to_copy, aten.type_as, aten.detach,
        aten.contiguous, aten.alias, aten.lift_fresh_copy, aten.log_sigmoid_forward, aten.rsub)  # fmt: skip
def untagged(graph: GraphBuilder, call: Call) -> Lowered:
    if call.target.overloadpacket is aten.glu and not _off_space(call, [call["dim"]]):
        return None
    return apply_in_place(graph, call)


@lowers(aten.prelu)
def prelu(graph: GraphBuilder, call: Call) -> Lowered:
    # The weight lies along the channels, dimension 1, not where broadcasting would put it.
    return apply_in_place(graph, call, keep_whole=("weight",))


def _off_space(call: Call, dims: list[int]) -> bool:
    """Whether none of the dimensions carries a spatial axis."""
    (x,) = call.spatial
    rank = len(x.shape)
    return not {d % rank for d in dims} & set(x.axes or ())


#: Operations along dimensions given by ``dim``: local wherever those are not spatial.
ALONG_DIM = (
    aten.softmax, aten._softmax, aten.log_softmax, aten._log_softmax, aten.cumsum, aten.cumprod, aten.flip,
    aten.sort, aten.index_select,
)  # fmt: skip
#: The same for operations that also remove the dimension unless ``keepdim``.
OVER_DIM = (
    aten.amax, aten.amin, aten.var.correction, aten.std.correction,
    aten.norm.ScalarOpt_dim, aten.logsumexp, aten.argmax, aten.argmin, aten.prod.dim_int,
)  # fmt: skip


def _dims(call: Call) -> list[int] | None:
    given = call.arguments.get("dim", call.arguments.get("dims"))
    if given is None or given == []:
        return None
    return [given] if isinstance(given, int) else list(given)


@lowers(*ALONG_DIM, *OVER_DIM)
def across_channels(graph: GraphBuilder, call: Call) -> Lowered:
    dims = _dims(call)
    if dims is None or len(call.spatial) != 1 or not _off_space(call, dims):
        return None
    (x,) = call.spatial
    rank = len(x.shape)
    gone = {d % rank for d in dims} if len(call.shape) < rank else set()
    axes = tuple(axis - sum(d < axis for d in gone) for axis in x.axes or ())
    side = tuple(value for value in call.values if not value.spatial)
    target, arguments = call.target, call.arguments

    def compute(tile: Tile) -> Tensor:
        given = replace_values(arguments, lambda v: tile.inputs[0] if v is x else tile.get(v))
        result: Tensor = target(**given)
        return result

    return graph.local(call, Rule((Read(x, (Same(),) * len(axes)),), compute, axes, side, shift_invariant=True))


@lowers(aten.linear)
def linear(graph: GraphBuilder, call: Call) -> Lowered:
    x, weight = call["input"], call["weight"]
    if not x.spatial or weight.spatial or len(x.shape) - 1 in (x.axes or ()):
        return None
    arguments = (x, weight, call["bias"])

    def compute(tile: Tile) -> Tensor:
        result: Tensor = aten.linear.default(tile.inputs[0], *(tile.get(a) for a in arguments[1:]))
        return result

    side = tuple(v for v in arguments[1:] if isinstance(v, Value))
    reads = (Read(x, (Same(),) * len(x.axes)),)
    rule = Rule(reads, compute, x.axes, side, work=x.shape[-1], cheap=False, shift_invariant=True)
    return graph.local(call, rule)


@lowers(aten.layer_norm)
def layer_norm(graph: GraphBuilder, call: Call) -> Lowered:
    (x,) = call.spatial
    rank = len(x.shape)
    if not _off_space(call, list(range(rank - len(call["normalized_shape"]), rank))):
        return None
    target, arguments = call.target, call.arguments
    side = tuple(value for value in call.values if not value.spatial)

    def compute(tile: Tile) -> Tensor:
        given = replace_values(arguments, lambda v: tile.inputs[0] if v is x else tile.get(v))
        result: Tensor = target(**given)
        return result

    reads = (Read(x, (Same(),) * len(x.axes or ())),)
    return graph.local(call, Rule(reads, compute, x.axes or (), side, shift_invariant=True))
