"""The vocabulary of rules: values, calls, tiles, and the rule itself.

A rule is plain data (which input boxes a result box needs) and one function that runs the operation on tensors
of exactly those boxes. Planning uses the data and touches no tensor; running uses the function and does no
planning. The function sees global coordinates (:class:`Tile`), since borders are decided by them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..boxes import Box, Region, boxes_of
from .axes import AxisMap, Same


@dataclass(frozen=True, eq=False)
class Value:
    """The result of a node: a name, a full shape, and where its spatial axes lie.

    ``axes[k]`` is the tensor dimension that carries spatial axis k; None says the value is *global*: it has no
    box, is computed once and enters tiles whole.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    axes: tuple[int, ...] | None = None

    @cached_property
    def extents(self) -> tuple[int, ...]:
        """The full size along each spatial axis."""
        assert self.axes is not None, self.name
        return tuple(self.shape[dim] for dim in self.axes)

    @cached_property
    def depth(self) -> int:
        """How many numbers one pixel holds: images times channels."""
        return prod(size for dim, size in enumerate(self.shape) if dim not in (self.axes or ()))

    @property
    def spatial(self) -> bool:
        return self.axes is not None

    def shape_at(self, box: Box) -> tuple[int, ...]:
        """The shape of the tensor of one box."""
        shape = list(self.shape)
        for dim, (low, high) in zip(self.axes or (), box, strict=True):
            shape[dim] = high - low
        return tuple(shape)

    def __repr__(self) -> str:
        return self.name


class Call:
    """One call of an ATen operation in the captured graph, its arguments bound to the names of its schema.

    Args:
        target: the operation.
        arguments: by schema name, defaults filled in; tensors stand as :class:`Value`.
        shape: the full shape of the (first) result.
        dtype: its dtype.
        layer: the path of the module that made the call.
    """

    def __init__(
        self,
        target: Any,
        arguments: dict[str, Any],
        shape: tuple[int, ...],
        dtype: torch.dtype,
        layer: str,
        name: str,
    ) -> None:
        self.target, self.arguments, self.shape, self.dtype = target, arguments, shape, dtype
        self.layer, self.name = layer, name

    def __getitem__(self, argument: str) -> Any:
        return self.arguments[argument]

    @property
    def values(self) -> list[Value]:
        """Every value among the arguments, in order."""
        return values_in(tuple(self.arguments.values()))

    @property
    def spatial(self) -> list[Value]:
        """The spatial values among the arguments."""
        return [value for value in self.values if value.spatial]


def values_in(tree: Any) -> list[Value]:
    """Every :class:`Value` in nested tuples, lists and dicts."""
    if isinstance(tree, Value):
        return [tree]
    if isinstance(tree, (tuple, list)):
        return [value for item in tree for value in values_in(item)]
    if isinstance(tree, dict):
        return values_in(tuple(tree.values()))
    return []


def replace_values(tree: Any, get: Callable[[Value], Any]) -> Any:
    """The same nested structure with every :class:`Value` replaced."""
    if isinstance(tree, Value):
        return get(tree)
    if isinstance(tree, (tuple, list)):
        items = [replace_values(item, get) for item in tree]
        return items if isinstance(tree, list) else tuple(items)
    if isinstance(tree, dict):
        return {key: replace_values(item, get) for key, item in tree.items()}
    return tree


class Tile(NamedTuple):
    """What a rule is given to compute one box of its result."""

    #: The box of the result.
    box: Box
    #: Per read of the rule the tensor of exactly the needed region; None where nothing is needed.
    inputs: tuple[Tensor | None, ...]
    #: Per read of the rule the region that its tensor covers.
    regions: tuple[Region, ...]
    #: The tensor of a global value (a parameter, a buffer, a side input); anything else is given back as it is.
    get: Callable[[Any], Any]


class Read(NamedTuple):
    """One spatial input of a rule, with one axis record per spatial axis."""

    value: Value
    maps: tuple[AxisMap, ...]

    def need(self, box: Box) -> Region:
        return tuple(m.need(low, high) for m, (low, high) in zip(self.maps, box, strict=True))

    def needed_boxes(self, box: Box) -> list[Box]:
        return boxes_of(self.need(box))


class Prepared(NamedTuple):
    """A global value that a rule makes from others, once per stage and not once per tile."""

    value: Value
    run: Callable[..., Tensor]
    #: Values, and anything else that ``run`` takes.
    arguments: tuple[Any, ...]


class Affine(NamedTuple):
    """A frozen normalisation, ``(x - mean) / sqrt(variance + eps) * weight + bias`` per channel of dimension 1."""

    mean: Value
    variance: Value
    weight: Value | None
    bias: Value | None
    eps: float


class Linear(NamedTuple):
    """An operation that is linear in a weight and adds a bias per channel: how it is made with others."""

    weight: Value
    bias: Value | None
    #: Gives one factor per channel of the result the shape in which it multiplies the weight.
    spread: Callable[[Tensor], Tensor]
    remake: Callable[[Value, Value | None], Rule]


@dataclass(frozen=True, eq=False)
class Rule:
    """A local operation.

    Args:
        reads: its spatial inputs.
        compute: runs it on one :class:`Tile` and returns the tensor of exactly ``tile.box``.
        axes: the dimensions of the result that carry the spatial axes.
        side: the global values it uses.
        work: multiply-adds per element of the result, or what costs as much time as so many of them.
        cheap: whether computing it again costs next to nothing (pointwise, layout).
    """

    reads: tuple[Read, ...]
    compute: Callable[[Tile], Tensor]
    axes: tuple[int, ...]
    side: tuple[Value, ...] = ()
    work: float = 30.0
    cheap: bool = field(default=True)
    #: How many times slower than usual the operation runs on so many pixels of its first read per axis, where that
    #: depends on their number; lengths may be arrays, for many boxes at once.
    slowness: Callable[[Sequence[Any]], Any] | None = None
    #: The same as ``compute``, but only differentiable: its result has the right shape and no values. For an
    #: operation whose gradient does not need its result, so that backward need not compute it again.
    ghost: Callable[[Tile], Tensor] | None = None
    #: Global values made from the side values once per stage; ``compute`` asks for them as for any other.
    prepared: tuple[Prepared, ...] = ()
    #: Whether the result is memory of its own that the operation's gradient does not read, so that the next
    #: operation may write over it.
    fresh: bool = False
    #: Per read the same operation written over the tensor of that read; None where its gradient needs that tensor.
    #: Nothing is given where the operation has no such form.
    over: tuple[Callable[[Tile], Tensor] | None, ...] = ()
    #: What :mod:`streamingcnn.fold` needs to know of a convolution, and of the normalisation after it.
    linear: Linear | None = None
    affine: Affine | None = None
    #: Whether a box's result is the same wherever the box lies, given equal pixels and an equal ``relation`` of each
    #: axis (:func:`~streamingcnn.ops.axes.relation`). Tiles that read equal pixels are then run once. What looks at
    #: coordinates (``tile.box``) in another way, as dropout's hash does, must leave it False.
    shift_invariant: bool = False


def same_everywhere(value: Value) -> Read:
    """The read of an operation that keeps every pixel in its place."""
    assert value.axes is not None
    return Read(value, (Same(),) * len(value.axes))


def along(tensor: Tensor, axes: tuple[int, ...], box: Box) -> Tensor:
    """The view of a tensor at a box; ``axes`` says which dimensions the box is about."""
    for dim, (low, high) in zip(axes, box, strict=True):
        if low != 0 or high != tensor.shape[dim]:
            tensor = tensor.narrow(dim, low, high - low)
    return tensor
