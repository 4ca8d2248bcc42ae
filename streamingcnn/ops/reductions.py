"""Reductions: what sums over space and needs no stored map.

A reduction turns tiles into small states that are merged. Its gradient at a tile is a closed form of the tile
and of the gradient of the result, so backward needs nothing but the tile again.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor

from ..graph import GraphBuilder
from .registry import Lowered, lowers
from .rule import Call, Value

aten = torch.ops.aten
State = tuple[Any, ...]


class Reduction(Protocol):
    """Sums over the tiles of one map."""

    @property
    def value(self) -> Value:
        """The map."""
        ...

    def partial(self, tile: Tensor) -> State:
        """The state of one tile."""
        ...

    def merge(self, a: State, b: State) -> State:
        """The state of two tiles together."""
        ...

    def finish(self, state: State) -> Tensor:
        """The result from the state of all tiles."""
        ...

    def pull(self, tile: Tensor, result: Tensor, gradient: Tensor) -> Tensor:
        """The gradient at a tile, given the result and its gradient; it broadcasts to the tile."""
        ...


def repeated(reduction: Reduction, state: State, times: int) -> State:
    """The state of so many tiles of one state: the tile's state merged with itself, doubling."""
    total: State | None = None
    while times:
        if times % 2:
            total = state if total is None else reduction.merge(total, state)
        times //= 2
        if times:
            state = reduction.merge(state, state)
    assert total is not None
    return total


@dataclass(frozen=True, eq=False)
class Sum:
    """A sum (or, with ``count``, a mean) over dimensions that include every spatial one.

    A row of a tile is summed in float32 or wider, rows and tiles in float64: over 4,096 tiles a bfloat16 accumulator
    was off by 87 %. Integers and booleans are counted in int64.
    """

    value: Value
    dims: tuple[int, ...]
    keepdim: bool
    count: int
    dtype: torch.dtype

    def partial(self, tile: Tensor) -> State:
        if not tile.is_floating_point():
            return (tile.sum(self.dims, keepdim=self.keepdim),)
        wide = torch.float64 if tile.dtype == torch.float64 else torch.float32
        rows = tile.sum(self.dims[-1], keepdim=True, dtype=wide)
        return (rows.sum(self.dims, keepdim=self.keepdim, dtype=torch.float64),)

    def merge(self, a: State, b: State) -> State:
        return (a[0] + b[0],)

    def finish(self, state: State) -> Tensor:
        total: Tensor = state[0]
        return (total / self.count if self.count != 1 else total).to(self.dtype)

    def pull(self, tile: Tensor, result: Tensor, gradient: Tensor) -> Tensor:
        gradient = gradient / self.count
        if not self.keepdim:
            for dim in sorted(self.dims):
                gradient = gradient.unsqueeze(dim)
        return gradient.to(tile.dtype)


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and biased variance per channel, per image and channel, or per image and group of channels.

    The state is (count, mean, M2), merged as in Chan, Golub and LeVeque (1979), never ``E[x^2] - E[x]^2``. The
    result is ``stack([mean, variance])``, in float32 or wider.
    """

    value: Value
    over_batch: bool
    groups: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the result."""
        batch, channels = self.value.shape[:2]
        return (2, channels) if self.over_batch else (2, batch, channels if self.groups is None else self.groups)

    def _grouped(self, tile: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """The tile seen as (batch, groups, channels of a group, *space), and what is averaged over."""
        if self.groups is None:
            return tile, (0 if self.over_batch else 2, *range(2 if self.over_batch else 3, tile.dim()))
        return tile.unflatten(1, (self.groups, -1)), tuple(range(2, tile.dim() + 1))

    def partial(self, tile: Tensor) -> State:
        x = tile if tile.dtype == torch.float64 else tile.float()
        dims = (*(range(1) if self.over_batch else ()), *range(2, x.dim()))
        together = 1 if self.groups is None else x.shape[1] // self.groups
        count = together * prod(x.shape[d] for d in dims)
        # Two passes over a tile that is in the cache: seven times as fast on a CPU as torch.var_mean. Channels first,
        # then groups of them, and squares in place of a norm: in channels_last a norm, and sums over some channels, add
        # one number after the other, five times as slow and 1e-5 off.
        mean = x.mean(dims).unflatten(-1, (-1, together)).mean(-1)
        centres = mean.repeat_interleave(together, -1)
        squares = (x - centres[(..., *(None,) * (x.dim() - 2))]).square_().sum(dims)
        return count, mean.double(), squares.unflatten(-1, (-1, together)).double().sum(-1)

    def merge(self, a: State, b: State) -> State:
        (n, mean, m2), (k, other, other_m2) = a, b
        delta = other - mean
        return n + k, mean + delta * (k / (n + k)), m2 + other_m2 + delta.square() * (n * k / (n + k))

    def finish(self, state: State) -> Tensor:
        count, mean, m2 = state
        wide = torch.float64 if self.value.dtype == torch.float64 else torch.float32
        return torch.stack([mean, m2 / count]).to(wide)

    def pull(self, tile: Tensor, result: Tensor, gradient: Tensor) -> Tensor:
        """dmean / N + 2 dvar (x - mean) / N, N being the pixels of the whole map."""
        x, dims = self._grouped(tile)
        shape = [1 if d in dims else size for d, size in enumerate(x.shape)]
        extents = dict(zip(self.value.axes or (), self.value.extents, strict=True))
        shift = 0 if self.groups is None else 1
        count = prod(extents.get(d - shift, x.shape[d]) for d in dims)
        mean, of_mean, of_variance = (t.reshape(shape) for t in (result[0], gradient[0], gradient[1]))
        slope = of_variance * (2 / count)
        pulled = x * slope.to(x.dtype) + (of_mean / count - mean * slope).to(x.dtype)
        return pulled.reshape(tile.shape)


def _sum(graph: GraphBuilder, call: Call, dims: list[int], keepdim: bool, mean: bool) -> Lowered:
    (x,) = call.spatial
    rank = len(x.shape)
    over = tuple(sorted({d % rank for d in dims}))
    if not set(x.axes or ()) <= set(over) or x.dtype.is_complex:
        return None
    count = prod(x.shape[d] for d in over) if mean else 1
    return graph.reduce(call, Sum(x, over, keepdim, count, call.dtype), call.shape)


@lowers(aten.mean.default, aten.sum.default)
def over_everything(graph: GraphBuilder, call: Call) -> Lowered:
    (x,) = call.spatial
    return _sum(graph, call, list(range(len(x.shape))), False, call.target is aten.mean.default)


@lowers(aten.mean.dim, aten.sum.dim_IntList)
def over_dims(graph: GraphBuilder, call: Call) -> Lowered:
    from .pointwise import across_channels

    (x,) = call.spatial
    dims = call["dim"] or list(range(len(x.shape)))
    summed = _sum(graph, call, dims, call["keepdim"], call.target is aten.mean.dim)
    return summed if summed is not None else across_channels(graph, call)


@lowers(aten.linalg_vector_norm)
def vector_norm(graph: GraphBuilder, call: Call) -> Lowered:
    """Norms of order 1 and 2 are sums, of absolute values and of squares; MONAI's Dice takes them so."""
    from .pointwise import across_channels, apply_in_place

    (x,) = call.spatial
    order, dims = call["ord"], call["dim"] or list(range(len(x.shape)))
    if order not in (1, 2) or not set(x.axes or ()) <= {d % len(x.shape) for d in dims} or call["dtype"]:
        return across_channels(graph, call)
    target = aten.abs.default if order == 1 else aten.square.default
    each = apply_in_place(graph, Call(target, {"self": x}, x.shape, x.dtype, call.layer, call.name))
    assert isinstance(each, Value)
    over = tuple(sorted({d % len(x.shape) for d in dims}))
    total = graph.reduce(call, Sum(each, over, call["keepdim"], 1, call.dtype), call.shape)
    return total if order == 1 else graph.plain(call, _root, (total,))


def _root(squares: Tensor) -> Tensor:
    """The square root, whose gradient at 0 is taken as 0, as that of a norm is."""
    positive = squares > 0
    return torch.where(positive, squares, 1).sqrt() * positive


@lowers(aten.adaptive_avg_pool1d, aten.adaptive_avg_pool2d, aten.adaptive_avg_pool3d)
def adaptive_avg_pool(graph: GraphBuilder, call: Call) -> Lowered:
    """To one pixel it is a mean; to a ragged grid it runs plainly on the stored map."""
    if any(size != 1 for size in call["output_size"]):
        return None
    (x,) = call.spatial
    return _sum(graph, call, list(x.axes or ()), True, mean=True)
