"""Convolution and pooling: operations with a window, padded only where the window leaves the map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..boxes import Interval, sizes
from ..graph import GraphBuilder
from .axes import Window
from .registry import Lowered, lowers
from .rule import Call, Linear, Read, Rule, Tile, Value

aten = torch.ops.aten
#: Pooling does no multiply-adds; this is what one element of its window costs, in multiply-adds of a convolution.
POOL_WORK = 30.0
CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
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


@lowers(aten.conv1d, aten.conv2d, aten.conv3d, aten.convolution)
def convolution(graph: GraphBuilder, call: Call) -> Lowered:
    x, weight, bias = call["input"], call["weight"], call["bias"]
    if not x.spatial or not in_order(x) or weight.spatial or call.arguments.get("transposed"):
        return None
    count = len(x.extents)
    if len(weight.shape) != count + 2:
        return None
    stride, dilation = per_axis(call["stride"], count), per_axis(call["dilation"], count)
    kernel = weight.shape[2:]
    padding = call["padding"]
    if padding == "valid":
        low_pads: tuple[int, ...] = (0,) * count
    elif padding == "same":
        # The odd pixel of an even window goes to the high side, as in torch.
        low_pads = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
    else:
        low_pads = per_axis(padding, count)
    windows = tuple(
        Window(e, k, s, p, d) for e, k, s, p, d in zip(x.extents, kernel, stride, low_pads, dilation, strict=True)
    )
    conv, groups = CONV[count], call["groups"]
    slow = graph.device.type == "cpu" and has_slow_tiles(x, weight, groups, (*stride, *dilation))
    even = weight.shape[0] % 2 == 0
    reference = partial(_slowness, x) if slow and not (even and count == 3) else None
    if graph.device.type == "cpu" and has_slow_filters(x, weight):
        reference = partial(_slowness_of_filters, windows, x.shape[0] * weight.shape[0])

    def rule_of(weight: Value, bias: Value | None) -> Rule:
        def run(tile: Tile, convolve: Callable[..., Tensor]) -> Tensor:
            tensor, w, b = tile.inputs[0], tile.get(weight), tile.get(bias)
            if tensor is None:
                return only_bias(x.shape[0], tile, w.shape[0], w, b)
            pads = missing(tile, windows)
            common = [min(pair) for pair in pads]
            tensor = pad_by(tensor, [(lo - c, hi - c) for (lo, hi), c in zip(pads, common, strict=True)], 0.0)
            if slow and even and count == 3 and is_small(tensor.shape):
                return in_two_groups(convolve, tensor, w, b, stride, common, dilation)
            return convolve(tensor, w, b, stride, common, dilation, groups)

        def compute(tile: Tile) -> Tensor:
            return run(tile, conv)

        def ghost(tile: Tile) -> Tensor:
            shape = (x.shape[0], weight.shape[0], *sizes(tile.box))
            return run(tile, lambda *given: GhostConvolution.apply(shape, *given))  # type: ignore[no-untyped-call]

        return Rule(
            (Read(x, windows),),
            compute,
            x.axes or (),
            globals_of(weight, bias),
            work=prod(weight.shape[1:]),
            cheap=False,
            slowness=reference,
            ghost=ghost,
            shift_invariant=True,
            fresh=True,
            linear=Linear(weight, bias, lambda factor: factor.view(-1, *(1,) * (count + 1)), rule_of),
        )

    return graph.local(call, rule_of(weight, bias))


class GhostConvolution(torch.autograd.Function):
    """A convolution with a gradient and no result: its gradient needs the input and the weight alone."""

    @staticmethod
    def forward(
        ctx: Any,
        shape: tuple[int, ...],
        tensor: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *how: Any,
    ) -> Tensor:
        ctx.save_for_backward(tensor, weight)
        ctx.how, ctx.bias_sizes = how, None if bias is None else list(bias.shape)
        return tensor.new_empty(()).expand(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        tensor, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.how
        needed = list(ctx.needs_input_grad[1:4])
        pulled = aten.convolution_backward(
            gradient, tensor, weight, ctx.bias_sizes, stride, padding, dilation, False, [0], groups, needed
        )
        return (None, *pulled, None, None, None, None)


# NOTE [Small images on the CPU]
#
# For one small image in float32 ATen takes its own reference kernel in place of oneDNN's, 3 to 12 times as slow,
# forward and backward (`ConvParams::use_mkldnn` in ATen/native/Convolution.cpp). It asks how small from the first
# four dimensions only, so that nearly every 3-D tile of few channels counts as small, and so does every volume
# whose one channel is below 143 x 143. A convolution in groups is never sent there. So the same arithmetic is
# written in two groups: each half of the filters gets the input for itself.
#
#     groups=1    x ----> filters 0 .. O-1            groups=2    x ----> filters 0 .. O/2-1
#                                                                 x ----> filters O/2 .. O-1
#
# The weight and the result are the very same tensors; the input, which is small, is there twice.

#: So many numbers in its first four dimensions make an image small.
SMALL = 20480
#: How much slower ATen's own convolution is than oneDNN's, by spatial axes, where two groups cannot be made.
REFERENCE_SLOWNESS = {1: 2.0, 2: 3.0, 3: 12.0}


def has_slow_tiles(x: Value, weight: Value, groups: int, steps: tuple[int, ...]) -> bool:
    """Whether ATen takes its reference kernel for a small tile; ``steps`` are the strides and dilations."""
    if x.dtype != torch.float32 or x.shape[0] > 1 or groups > 1:
        return False
    kernel = (1, *weight.shape[2:])[-2:]
    if min(kernel) > 3:
        return False
    # One thread runs a 1x1 kernel by a matrix product, which is fast.
    return max(kernel) > 1 or any(step > 1 for step in steps) or torch.get_num_threads() > 1


def is_small(shape: Sequence[int]) -> bool:
    """Whether an image of this shape, batch and channels included, is small."""
    return prod(shape[:4]) <= SMALL


def in_two_groups(
    convolve: Callable[..., Tensor], tensor: Tensor, weight: Tensor, bias: Tensor | None, *how: Any
) -> Tensor:
    """A convolution of two groups that equals the one of one group; see NOTE [Small images on the CPU].

    >>> x, w = torch.rand(1, 3, 5, 5), torch.rand(4, 3, 3, 3)
    >>> torch.allclose(in_two_groups(F.conv2d, x, w, None, 1, 0, 1), F.conv2d(x, w))
    True
    """
    return convolve(torch.cat((tensor, tensor), 1), weight, bias, *how, 2)


# NOTE [Large first layers on the CPU]
#
# The gradient of the filters of a 7x7 convolution of three channels, the first layer of a ResNet, takes 0.8 s where the
# result has just under 2^27 numbers and minutes where it has more: oneDNN then falls back to its reference kernel. It
# does not with 3x3 filters. (3 to 64 channels, stride 2, channels_last: 2880 x 2880 pixels against 2912 x 2912.)

#: From so many numbers of its result on, a first layer's gradient is slow, and how much.
LARGE, LARGE_SLOWNESS = 2**27, 100.0


def has_slow_filters(x: Value, weight: Value) -> bool:
    """Whether the filters' gradient is slow on large tiles; see NOTE [Large first layers on the CPU]."""
    return x.dtype == torch.float32 and len(x.extents) == 2 and weight.shape[1] <= 4 and min(weight.shape[2:]) > 3


def _slowness_of_filters(windows: Sequence[Window], depth: int, lengths: Sequence[Any]) -> Any:
    """How many times slower than usual the convolution is on so many pixels of its input, per axis."""
    made = prod(length / window.stride for length, window in zip(lengths, windows, strict=True)) * depth
    return 1.0 + (LARGE_SLOWNESS - 1.0) * (made >= LARGE)


def _slowness(x: Value, lengths: Sequence[Any]) -> Any:
    """How many times slower than oneDNN the convolution is on so many pixels of its input, per axis."""
    small = prod((*x.shape[:2], *lengths)[:4]) <= SMALL
    return 1.0 + (REFERENCE_SLOWNESS[len(lengths)] - 1.0) * small


def globals_of(*arguments: Any) -> tuple[Value, ...]:
    """The values among optional arguments."""
    return tuple(argument for argument in arguments if isinstance(argument, Value))


def only_bias(batch: int, tile: Tile, channels: int, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The result of a convolution that sees padding alone."""
    shape = (batch, channels, *sizes(tile.box))
    if bias is None:
        return weight.new_zeros(shape)
    # Memory of its own, never the bias itself: the next operation may write over it.
    return bias.view(1, -1, *(1,) * len(tile.box)).expand(shape).clone(memory_format=torch.contiguous_format)


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
