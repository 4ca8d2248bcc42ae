"""Tensors without numbers: of the meta device, quickly, and counted as a step's tensors are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..boxes import Box, full
from ..graph import Given, Graph
from ..memory import LiveBytes, allocated, storages
from ..ops.rule import Value


def without_numbers(graph: Graph, node: Given) -> Any:
    """A tensor that has the shape, strides and dtype of the given one, and asks for a gradient where that does."""
    value = node.value
    if node.source == "constant":
        return node.key.to("meta") if isinstance(node.key, Tensor) else node.key
    if prod(value.shape) == 1 and not value.dtype.is_floating_point:
        return torch.zeros(value.shape, dtype=value.dtype)  # a counter of batches, which plain nodes read
    strides = graph.strides.get(value.name)
    if strides is None:
        tensor = torch.empty(value.shape, dtype=value.dtype, device="meta")
    else:
        tensor = torch.empty_strided(value.shape, strides, dtype=value.dtype, device="meta")
    return tensor.requires_grad_(value.name in graph.trained)


#: Operations that name a device and make pixels; all others that rules call with one make indices, which have numbers.
_OF_PIXELS = {torch.ops.aten.full.default, torch.ops.aten._to_copy.default}

#: By graph, operation and arguments: what came out, as the type of the container and each tensor's metadata.
_KNOWN: WeakKeyDictionary[Graph, dict[Any, tuple[type | None, list[Any]]]] = WeakKeyDictionary()


class Remembering(LiveBytes):
    """Counts, and remembers what an operation gives: the same is asked over and over, and PyTorch takes its time.

    A third of PyTorch's operations find the shape of their result in Python, some in 500 microseconds.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__(fake=True)
        #: Whether a group of plain nodes is running, whose every result is without numbers.
        self.plain = False
        self._known = _KNOWN.setdefault(graph, {})

    def _counts(self, storage: torch.UntypedStorage) -> bool:
        # A few small tensors are made of numbers also here (where pixels come from when a map is resized, counters of
        # batches): they count as in a step.
        return storage.device.type == "meta" or allocated(storage)

    def _run(self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kwargs.get("device") is not None and (self.plain or func in _OF_PIXELS):
            kwargs = {**kwargs, "device": torch.device("meta")}
        try:
            key = func, _metadata(args), _metadata(tuple(kwargs.items())) if kwargs else None
            known = self._known.get(key)
        except TypeError:  # an argument that cannot be hashed: a generator, say
            return super()._run(func, args, kwargs)
        if known is not None:
            container, made = known
            if container is _Overwritten:
                return args[0]
            tensors = [one and _strided(*one) for one in made]
            for tensor in tensors:
                if tensor is not None:
                    self._count(tensor.untyped_storage())
            return tensors[0] if container is None else container(tensors)
        shape = _SHAPES.get(func)
        result = func(*args, **kwargs) if shape is None else shape(*args)
        self._see(func, args, kwargs, result)
        if args and result is args[0]:
            if _metadata(result) == key[1][0]:
                self._known[key] = _Overwritten, []
            return result
        several = type(result) in (tuple, list)
        results = list(result) if several else [result]
        given = {id(storage) for storage in storages((args, kwargs))}
        if all(one is None or _is_own(one, given) for one in results):
            made = [one if one is None else (tuple(one.shape), one.stride(), one.dtype) for one in results]
            self._known[key] = type(result) if several else None, made
        return result


def _gradient_of_pointwise(gradient: Tensor, read: Tensor, *_: Any) -> Tensor:
    """Whichever function it is of, it is laid out as any function of the two is; of this one PyTorch knows at once."""
    result: Tensor = torch.ops.aten.hardshrink_backward.default(read, gradient, 0.5)
    return result


def _overwriting(read: Tensor, *_: Any) -> Tensor:
    return read


def _batch_norm(read: Tensor, *rest: Any) -> list[Tensor]:
    return [torch.empty_like(read), *(read.new_empty(read.shape[1], dtype=_wide(read)) for _ in "ms")]


def _batch_norm_backward(gradient: Tensor, read: Tensor, *rest: Any) -> list[Tensor | None]:
    first, *others = rest[-1]
    given = [read.new_empty(read.shape[1], dtype=_wide(read)) if wanted else None for wanted in others]
    return [torch.empty_like(gradient) if first else None, *given]


def _wide(read: Tensor) -> torch.dtype:
    return torch.promote_types(read.dtype, torch.float32)


#: Operations that PyTorch takes long to find the shapes of, and steps have hundreds of.
_SHAPES: dict[torch._ops.OpOverload, Callable[..., Any]] = {
    torch.ops.aten.threshold_backward.default: _gradient_of_pointwise,
    torch.ops.aten.leaky_relu_backward.default: _gradient_of_pointwise,
    torch.ops.aten.leaky_relu_.default: _overwriting,
    torch.ops.aten.relu_.default: _overwriting,
    torch.ops.aten.native_batch_norm.default: _batch_norm,
    torch.ops.aten.native_batch_norm_backward.default: _batch_norm_backward,
}


class _Overwritten:
    """Stands for the container of a result that is the first argument, written over: without numbers, nothing to do."""


def shaped(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor of a shape, without numbers."""
    return torch.empty(tuple(shape), dtype=dtype, device="meta")


def _strided(shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty_strided(shape, stride, dtype=dtype, device="meta")


def _is_own(result: Any, given: set[int]) -> bool:
    """Whether a result is a tensor over bytes of its own, and over no more than it shows."""
    if not isinstance(result, Tensor) or not result.is_meta:
        return False
    storage, alike = result.untyped_storage(), _strided(result.shape, result.stride(), result.dtype)
    return id(storage) not in given and storage.nbytes() == alike.untyped_storage().nbytes()


def _metadata(argument: Any) -> Any:
    """All that the shape of a result can depend on."""
    if isinstance(argument, Tensor):
        return argument.shape, argument.stride(), argument.dtype, argument.device
    if isinstance(argument, (tuple, list)):
        if argument and type(argument[0]) is int:  # sizes, strides: no list mixes them with others
            return type(argument), *argument
        return tuple(map(_metadata, argument))
    return type(argument), argument


class Unread:
    """An input that is read from a source: each box of it takes bytes of its own."""

    device = torch.device("meta")

    def __init__(self, value: Value) -> None:
        self.value = value

    def read(self, box: Box) -> Tensor:
        return torch.empty(self.value.shape_at(box), dtype=self.value.dtype, device=self.device)

    @property
    def tensor(self) -> Tensor:
        return self.read(full(self.value.extents))
