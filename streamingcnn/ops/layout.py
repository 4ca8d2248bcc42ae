"""Operations that only move pixels: concatenation, slices, padding, permutation, reshaping of other dimensions."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from ..graph import GraphBuilder
from .axes import AxisMap, Looked, Piece, Same, Strided, Window, Wrapped
from .registry import Lowered, lowers
from .rule import Call, Read, Rule, Tile, Value, same_everywhere
from .windows import missing, pad_by

aten = torch.ops.aten


@lowers(aten.cat)
def cat(graph: GraphBuilder, call: Call) -> Lowered:
    parts: list[Value] = list(call["tensors"])
    rank = len(call.shape)
    dim = call["dim"] % rank
    axes = next(part.axes for part in parts if part.spatial) or ()
    if any(part.axes != axes for part in parts):
        return _cat_with_globals(graph, call, parts, axes, dim)
    reads, start = [], 0
    for part in parts:
        maps: list[AxisMap] = [Same()] * len(axes)
        if dim in axes:
            maps[axes.index(dim)] = Piece(start, part.shape[dim])
            start += part.shape[dim]
        reads.append(Read(part, tuple(maps)))

    def compute(tile: Tile) -> Tensor:
        present = [tensor for tensor in tile.inputs if tensor is not None]
        return torch.cat(present, dim) if len(present) > 1 else present[0]

    fresh = dim not in axes and len(parts) > 1
    return graph.local(call, Rule(tuple(reads), compute, axes, shift_invariant=True, fresh=fresh))


def _cat_with_globals(graph: GraphBuilder, call: Call, parts: list[Value], axes: tuple[int, ...], dim: int) -> Lowered:
    """Concatenation along channels where some parts are global (coordinates, a broadcast descriptor)."""
    from .pointwise import cut_to, spans

    if dim in axes or any(part.spatial and part.axes != axes for part in parts):
        return None
    reads = tuple(same_everywhere(part) for part in parts if part.spatial)
    extents = [call.shape[axis] for axis in axes]

    def compute(tile: Tile) -> Tensor:
        given = iter(tile.inputs)
        pieces = [
            next(given) if part.spatial else cut_to(tile.get(part), tile, axes, extents, len(call.shape))
            for part in parts
        ]
        return torch.cat(pieces, dim)  # type: ignore[arg-type]

    side = tuple(part for part in parts if not part.spatial)
    invariant = not any(spans(part, axes, extents, len(call.shape)) for part in side)
    return graph.local(call, Rule(reads, compute, axes, side, shift_invariant=invariant))


@lowers(aten.stack)
def stack(graph: GraphBuilder, call: Call) -> Lowered:
    parts: list[Value] = list(call["tensors"])
    dim = call["dim"] % len(call.shape)
    if any(part.axes != parts[0].axes for part in parts) or not parts[0].axes:
        return None
    axes = tuple(axis + (axis >= dim) for axis in parts[0].axes)

    def compute(tile: Tile) -> Tensor:
        return torch.stack(list(tile.inputs), dim)  # type: ignore[arg-type]

    reads = tuple(same_everywhere(part) for part in parts)
    return graph.local(call, Rule(reads, compute, axes, shift_invariant=True))


def _moved(graph: GraphBuilder, call: Call, order: list[int]) -> Lowered:
    """A permutation: dimension i of the result is dimension ``order[i]`` of the input."""
    (x,) = call.spatial
    axes = tuple(order.index(axis) for axis in x.axes or ())

    def compute(tile: Tile) -> Tensor:
        assert tile.inputs[0] is not None
        return tile.inputs[0].permute(order)

    return graph.local(call, Rule((same_everywhere(x),), compute, axes, work=0, shift_invariant=True))


@lowers(aten.permute)
def permute(graph: GraphBuilder, call: Call) -> Lowered:
    return _moved(graph, call, [d % len(call.shape) for d in call["dims"]])


@lowers(aten.transpose.int)
def transpose(graph: GraphBuilder, call: Call) -> Lowered:
    order = list(range(len(call.shape)))
    a, b = call["dim0"] % len(order), call["dim1"] % len(order)
    order[a], order[b] = order[b], order[a]
    return _moved(graph, call, order)


@lowers(aten.movedim.intlist, aten.movedim.int)
def movedim(graph: GraphBuilder, call: Call) -> Lowered:
    rank = len(call.shape)
    source, target = call["source"], call["destination"]
    source = [source] if isinstance(source, int) else source
    target = [target] if isinstance(target, int) else target
    order = [-1] * rank
    for s, t in zip(source, target, strict=True):
        order[t % rank] = s % rank
    rest = iter(d for d in range(rank) if d not in [s % rank for s in source])
    return _moved(graph, call, [d if d >= 0 else next(rest) for d in order])


def matching_dims(old: tuple[int, ...], new: tuple[int, ...]) -> dict[int, int]:
    """Which dimensions a reshape leaves whole: ``{old dimension: new dimension}``.

    Both shapes are cut into the shortest runs of equal product; a run of one dimension on each side is a
    dimension that stays.

        old   N   C      H   W             N    C*r*r   H  W
        new   N   G  C/G H   W             N C  r   r   H  W
              |   \\__/   |   |             |    ...     |  |
    """
    kept: dict[int, int] = {}
    i = j = 0
    while i < len(old) and j < len(new):
        if (old[i] == 1) != (new[j] == 1):  # a dimension of size 1 comes or goes by itself
            i, j = i + (old[i] == 1), j + (new[j] == 1)
            continue
        first_i, first_j = i, j
        left, right = old[i], new[j]
        i, j = i + 1, j + 1
        while left != right:
            if left < right and i < len(old):
                left *= old[i]
                i += 1
            elif j < len(new):
                right *= new[j]
                j += 1
            else:
                return kept
        if i - first_i == 1 and j - first_j == 1:
            kept[first_i] = first_j
    return kept


@lowers(aten.view, aten.reshape, aten._unsafe_view, aten.unsqueeze, aten.squeeze, aten.flatten, aten.unflatten)
def reshape(graph: GraphBuilder, call: Call) -> Lowered:
    """The sizes in the call are those of the whole map; a tile's own sizes stand in their place."""
    (x,) = call.spatial
    kept = matching_dims(x.shape, call.shape)
    if any(axis not in kept for axis in x.axes or ()):
        return None
    axes = tuple(kept[axis] for axis in x.axes or ())
    shape = list(call.shape)

    def compute(tile: Tile) -> Tensor:
        assert tile.inputs[0] is not None
        return tile.inputs[0].reshape(_with_sizes(shape, axes, tile))

    return graph.local(call, Rule((same_everywhere(x),), compute, axes, work=0, shift_invariant=True))


def _with_sizes(shape: list[int], axes: tuple[int, ...], tile: Tile) -> list[int]:
    sizes = list(shape)
    for axis, (low, high) in zip(axes, tile.box, strict=True):
        sizes[axis] = high - low
    return sizes


@lowers(aten.copy)
def copy(graph: GraphBuilder, call: Call) -> Lowered:
    """What ``copy_`` leaves: the other tensor, where shape and dtype are the same."""
    source = call["src"]
    return source if source.shape == call.shape and source.dtype == call.dtype else None


@lowers(aten.broadcast_tensors)
def broadcast_tensors(graph: GraphBuilder, call: Call) -> Lowered:
    def broadcast(value: Value) -> Lowered:
        if value.shape == call.shape:
            return value
        arguments = {"self": value, "size": list(call.shape), "implicit": False}
        one = Call(aten.expand.default, arguments, call.shape, value.dtype, call.layer, call.name)
        return expand(graph, one) if value.spatial else graph.plain(one, torch.broadcast_to, (value, call.shape))

    results = tuple(broadcast(value) for value in call["tensors"])
    return None if None in results else results


@lowers(aten.expand)
def expand(graph: GraphBuilder, call: Call) -> Lowered:
    (x,) = call.spatial
    shift = len(call.shape) - len(x.shape)
    axes = tuple(axis + shift for axis in x.axes or ())
    if any(call.shape[axis] != extent for axis, extent in zip(axes, x.extents, strict=True)):
        return None
    shape = list(call.shape)

    def compute(tile: Tile) -> Tensor:
        assert tile.inputs[0] is not None
        return tile.inputs[0].expand(_with_sizes(shape, axes, tile))

    return graph.local(call, Rule((same_everywhere(x),), compute, axes, work=0, shift_invariant=True))


@lowers(aten.repeat)
def repeat(graph: GraphBuilder, call: Call) -> Lowered:
    (x,) = call.spatial
    times = list(call["repeats"])
    shift = len(times) - len(x.shape)
    axes = tuple(axis + shift for axis in x.axes or ())
    if any(times[axis] != 1 for axis in axes):
        return None

    def compute(tile: Tile) -> Tensor:
        assert tile.inputs[0] is not None
        return tile.inputs[0].repeat(times)

    return graph.local(call, Rule((same_everywhere(x),), compute, axes, work=0, shift_invariant=True))


def sliced(graph: GraphBuilder, call: Call, x: Value, dim: int, start: int, stop: int, step: int = 1) -> Value:
    """``x[..., start:stop:step, ...]`` along any dimension, spatial or not."""
    axes = x.axes or ()
    maps: list[AxisMap] = [Same()] * len(axes)
    if dim in axes:
        maps[axes.index(dim)] = Strided(start, step)
    index: list[Any] = [slice(None)] * len(x.shape)
    index[dim] = slice(None, None, step) if dim in axes else slice(start, stop, step)

    def compute(tile: Tile) -> Tensor:
        assert tile.inputs[0] is not None
        return tile.inputs[0][tuple(index)]

    shape = list(x.shape)
    shape[dim] = -(-(stop - start) // step)
    rule = Rule((Read(x, tuple(maps)),), compute, axes, work=0, shift_invariant=True)
    return graph.local(call, rule, shape=tuple(shape))


@lowers(aten.slice, aten.narrow)
def slice_(graph: GraphBuilder, call: Call) -> Lowered:
    (x,) = call.spatial
    dim = call["dim"] % len(x.shape)
    extent = x.shape[dim]
    start = call["start"] or 0
    end = start + call["length"] if "length" in call.arguments else call["end"]
    start, stop, step = slice(start, end, call.arguments.get("step", 1)).indices(extent)
    return sliced(graph, call, x, dim, start, max(start, stop), step)


@lowers(aten.select.int)
def select(graph: GraphBuilder, call: Call) -> Lowered:
    (x,) = call.spatial
    dim = call["dim"] % len(x.shape)
    if dim in (x.axes or ()):
        return None
    index = call["index"]
    axes = tuple(axis - (axis > dim) for axis in x.axes or ())

    def compute(tile: Tile) -> Tensor:
        assert tile.inputs[0] is not None
        return tile.inputs[0].select(dim, index)

    return graph.local(call, Rule((same_everywhere(x),), compute, axes, work=0, shift_invariant=True))


@lowers(aten.split, aten.chunk, aten.split_with_sizes)
def split(graph: GraphBuilder, call: Call) -> Lowered:
    (x,) = call.spatial
    dim = call["dim"] % len(x.shape)
    extent = x.shape[dim]
    if "chunks" in call.arguments:
        size: Any = -(-extent // call["chunks"])
    else:
        size = call.arguments.get("split_size", call.arguments.get("split_sizes"))
    lengths = size if isinstance(size, list) else [size] * (extent // size) + [extent % size] * (extent % size > 0)
    stops = [sum(lengths[: k + 1]) for k in range(len(lengths))]
    return tuple(sliced(graph, call, x, dim, stop - n, stop) for stop, n in zip(stops, lengths, strict=True))


@lowers(aten.unbind.int)
def unbind(graph: GraphBuilder, call: Call) -> Lowered:
    (x,) = call.spatial
    dim = call["dim"] % len(x.shape)
    if dim in (x.axes or ()):
        return None
    axes = tuple(axis - (axis > dim) for axis in x.axes or ())
    shape = x.shape[:dim] + x.shape[dim + 1 :]

    def taken(index: int) -> Value:
        def compute(tile: Tile) -> Tensor:
            assert tile.inputs[0] is not None
            return tile.inputs[0].select(dim, index)

        return graph.local(call, Rule((same_everywhere(x),), compute, axes, shift_invariant=True), shape=shape)

    return tuple(taken(index) for index in range(x.shape[dim]))


def _sources(mode: str, extent: int, low: int, high: int) -> list[int]:
    """The source pixel of each pixel of ``[low, high)``, coordinates as in the map before padding."""
    if mode == "replicate":
        return [min(max(c, 0), extent - 1) for c in range(low, high)]
    if mode == "circular":
        return [c % extent for c in range(low, high)]
    mirrored = (abs(c) for c in range(low, high))
    return [2 * (extent - 1) - c if c >= extent else c for c in mirrored]


@lowers(aten.pad, aten.constant_pad_nd, aten.reflection_pad1d, aten.reflection_pad2d, aten.reflection_pad3d,
        aten.replication_pad1d, aten.replication_pad2d, aten.replication_pad3d)  # fmt: skip
def pad(graph: GraphBuilder, call: Call) -> Lowered:
    x: Value = call["self"]
    name = str(call.target.overloadpacket.__name__)
    named = "reflect" if "reflection" in name else "replicate" if "replication" in name else "constant"
    mode = call.arguments.get("mode") or named
    amounts = list(call.arguments.get("pad") or call.arguments.get("padding") or ())
    rank = len(x.shape)
    by_dim = {rank - 1 - k: (amounts[2 * k], amounts[2 * k + 1]) for k in range(len(amounts) // 2)}
    if mode == "constant":
        return _pad_constant(graph, call, x, by_dim, call.arguments.get("value") or 0.0)
    if any(dim not in (x.axes or ()) and pair != (0, 0) for dim, pair in by_dim.items()):
        return None
    return _pad_indexed(graph, call, x, by_dim, mode)


def _pad_constant(
    graph: GraphBuilder, call: Call, x: Value, by_dim: dict[int, tuple[int, int]], fill: float
) -> Lowered:
    """Padding by a constant, of spatial axes and of others (channels, say); negative amounts cut."""
    axes, rank = x.axes or (), len(x.shape)
    windows = tuple(
        Window(extent, 1, 1, by_dim.get(axis, (0, 0))[0]) for axis, extent in zip(axes, x.extents, strict=True)
    )
    others = {dim: pair for dim, pair in by_dim.items() if dim not in axes}
    device = graph.device

    def compute(tile: Tile) -> Tensor:
        tensor = tile.inputs[0]
        if tensor is None:
            return torch.full(_with_sizes(list(call.shape), axes, tile), fill, dtype=call.dtype, device=device)
        pairs = others | dict(zip(axes, missing(tile, windows), strict=True))
        return pad_by(tensor, [pairs.get(dim, (0, 0)) for dim in range(rank)], fill)

    return graph.local(call, Rule((Read(x, windows),), compute, axes, shift_invariant=True))


def _pad_indexed(graph: GraphBuilder, call: Call, x: Value, by_dim: dict[int, tuple[int, int]], mode: str) -> Lowered:
    """Padding by the map's own pixels: mirrored, repeated, or from the other end."""
    axes = x.axes or ()
    lows = [by_dim.get(axis, (0, 0))[0] for axis in axes]

    def map_of(extent: int, low: int) -> AxisMap:
        if mode == "circular":
            return Wrapped(extent, low)

        def hull(first: int, last: int) -> tuple[int, int]:
            pixels = _sources(mode, extent, first - low, last - low)
            return min(pixels), max(pixels) + 1

        def related(first: int, last: int) -> Hashable:
            if low <= first and last - low <= extent:
                return None
            pixels = _sources(mode, extent, first - low, last - low)
            return tuple(pixel - min(pixels) for pixel in pixels)

        return Looked(hull, related)

    maps = tuple(map_of(extent, low) for extent, low in zip(x.extents, lows, strict=True))

    def compute(tile: Tile) -> Tensor:
        tensor = tile.inputs[0]
        assert tensor is not None
        for axis, extent, low, (first, last), held in zip(
            axes, x.extents, lows, tile.box, tile.regions[0], strict=True
        ):
            pixels = _sources(mode, extent, first - low, last - low)
            there = [pixel for start, stop in held for pixel in range(start, stop)]
            if pixels != there:
                place = {pixel: k for k, pixel in enumerate(there)}
                index = torch.tensor([place[pixel] for pixel in pixels]).to(tensor.device)
                tensor = tensor.index_select(axis, index)
        return tensor

    return graph.local(call, Rule((Read(x, maps),), compute, axes, shift_invariant=True))
