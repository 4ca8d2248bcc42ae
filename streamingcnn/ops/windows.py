"""Window operations: pooling, and what convolution shares with it: padding only where a window leaves the map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..boxes import Interval
from ..graph import GraphBuilder
from .axes import Window
from .registry import Lowered, lowers
from .rule import Call, Read, Rule, Tile, Value

aten = torch.ops.aten
#: Pooling does no multiply-adds; this is what one element of its window costs, in multiply-adds of a convolution.
POOL_WORK = 30.0
MAX_POOL: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def per_axis(given: Any, count: int) -> tuple[int, ...]:
    """One integer per axis, from an int or from a list of one or ``count``."""
    values = [given] if isinstance(given, int) else list(given)
    return tuple(values * count if len(values) == 1 else values)


def in_order(value: Value) -> bool:
    """Whether a value is (N, C, *space), as windows want it."""
    return value.axes == tuple(range(2, len(value.shape)))


def missing(tile: Tile, windows: Sequence[Window]) -> list[Interval]:
    """Per axis how many pixels of padding the windows of a tile see, low and high.

    window hull     [ . . . - - - - - - . )
    needed, clipped       [ - - - - - - )
    missing           3                 1
    """
    pads = []
    for window, (low, high), region in zip(windows, tile.box, tile.regions[0], strict=True):
        start, stop = window.span(low, high)
        pads.append((region[0][0] - start, stop - region[0][1]))
    return pads


def pad_by(tensor: Tensor, pads: Sequence[Interval], value: float) -> Tensor:
    """Pad the last axes by a constant; nothing is copied where nothing is missing."""
    if not any(low or high for low, high in pads):
        return tensor
    return F.pad(tensor, [p for pair in reversed(pads) for p in pair], value=value)


def _pool_windows(x: Value, call: Call) -> tuple[Window, ...]:
    count = len(x.extents)
    kernel = per_axis(call["kernel_size"], count)
    stride = per_axis(call["stride"], count) if call["stride"] else kernel
    dilation = per_axis(call.arguments.get("dilation", 1), count)
    return tuple(
        Window(e, k, s, p, d)
        for e, k, s, p, d in zip(x.extents, kernel, stride, per_axis(call["padding"], count), dilation, strict=True)
    )


@lowers(aten.max_pool1d, aten.max_pool2d, aten.max_pool3d)
def max_pool(graph: GraphBuilder, call: Call) -> Lowered:
    x = call["self"]
    if not in_order(x):
        return None
    windows = _pool_windows(x, call)
    kernel, stride = [w.kernel for w in windows], [w.stride for w in windows]
    dilation = [w.dilation for w in windows]
    pool = MAX_POOL[len(windows)]

    def compute(tile: Tile) -> Tensor:
        tensor = tile.inputs[0]
        assert tensor is not None  # torch allows padding of at most half the kernel: a window always sees a pixel
        pads = missing(tile, windows)
        # Torch takes no more padding by itself than it took for the whole map.
        common = [min(low, high, w.pad) for (low, high), w in zip(pads, windows, strict=True)]
        rest = [(lo - c, hi - c) for (lo, hi), c in zip(pads, common, strict=True)]
        return pool(pad_by(tensor, rest, -torch.inf), kernel, stride, common, dilation)

    work = POOL_WORK * prod(kernel)
    return graph.local(call, Rule((Read(x, windows),), compute, x.axes, work=work, cheap=False, shift_invariant=True))


@lowers(aten.max_pool1d_with_indices, aten.max_pool2d_with_indices, aten.max_pool3d_with_indices)
def max_pool_with_indices(graph: GraphBuilder, call: Call) -> Lowered:
    pooled = max_pool(graph, call)
    refusal = graph.refusal(
        call,
        "the indices of a max-pool are positions in the whole map",
        "use F.interpolate or a transposed convolution in place of max-unpooling",
    )
    return None if pooled is None else (pooled, refusal)


@lowers(aten.avg_pool1d, aten.avg_pool2d, aten.avg_pool3d)
def avg_pool(graph: GraphBuilder, call: Call) -> Lowered:
    x = call["self"]
    if not in_order(x):
        return None
    windows = _pool_windows(x, call)
    include_pad, divisor = call["count_include_pad"], call.arguments.get("divisor_override")
    kernel, stride = [w.kernel for w in windows], [w.stride for w in windows]

    def counts(window: Window, low: int, high: int, like: Tensor) -> Tensor:
        """How many pixels each window of an axis counts; the padding of ceil_mode never counts."""
        start = torch.arange(low, high) * window.stride - window.pad
        stop = (start + window.kernel).clamp(max=window.extent + (window.pad if include_pad else 0))
        start = start if include_pad else start.clamp(min=0)
        counted: Tensor = (stop - start).to(like)
        return counted

    def sums(tensor: Tensor) -> Tensor:
        # avg_pool1d has no divisor, so one axis borrows the second one of avg_pool2d.
        if len(windows) == 1:
            summed = F.avg_pool2d(tensor.unsqueeze(2), [1, *kernel], [1, *stride], divisor_override=1)
            return summed.squeeze(2)
        pool = F.avg_pool2d if len(windows) == 2 else F.avg_pool3d
        pooled: Tensor = pool(tensor, kernel, stride, divisor_override=1)
        return pooled

    def compute(tile: Tile) -> Tensor:
        tensor = tile.inputs[0]
        assert tensor is not None
        result = sums(pad_by(tensor, missing(tile, windows), 0.0))
        if divisor:
            return result.div(divisor)
        for axis, (window, (low, high)) in enumerate(zip(windows, tile.box, strict=True)):
            shape = [1] * len(windows)
            shape[axis] = -1
            result = result.div(counts(window, low, high, result).view(shape))
        return result

    work = POOL_WORK * prod(kernel)
    return graph.local(call, Rule((Read(x, windows),), compute, x.axes, work=work, cheap=False, shift_invariant=True))
