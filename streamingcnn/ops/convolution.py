"""Convolution: its rule, and its gradient where PyTorch's own takes more memory or time than it needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..boxes import Interval, sizes
from ..graph import GraphBuilder
from .axes import Window
from .registry import Lowered, lowers
from .rule import Call, Linear, Read, Rule, Tile, Value
from .windows import in_order, missing, pad_by, per_axis

aten = torch.ops.aten
CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


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
    groups, on_cpu = call["groups"], graph.device.type == "cpu"
    slow = on_cpu and has_slow_tiles(x, weight, groups, (*stride, *dilation))
    even = weight.shape[0] % 2 == 0
    reference = partial(_slowness, x) if slow and not (even and count == 3) else None
    if on_cpu and has_slow_filters(x, weight):
        reference = partial(_slowness_of_filters, windows, x.shape[0] * weight.shape[0])
    apart = on_cpu and takes_filters_apart(x.dtype, weight.shape, groups)

    def rule_of(weight: Value, bias: Value | None) -> Rule:
        def run(tile: Tile, made: tuple[int, ...] | None) -> Tensor:
            tensor, w, b = tile.inputs[0], tile.get(weight), tile.get(bias)
            if tensor is None:
                return only_bias(x.shape[0], tile, w.shape[0], w, b)
            pads = missing(tile, windows)
            common = tuple(min(pair) for pair in pads)
            rest = tuple((lo - c, hi - c) for (lo, hi), c in zip(pads, common, strict=True))
            if slow and even and count == 3 and is_small(padded_shape(tensor, rest)):
                doubled = partial(convolve, made=made)
                return in_two_groups(doubled, pad_by(tensor, rest, 0.0), w, b, stride, common, dilation)
            return convolve(tensor, w, b, stride, common, dilation, groups, rest=rest, made=made, apart=apart)

        def compute(tile: Tile) -> Tensor:
            return run(tile, None)

        def ghost(tile: Tile) -> Tensor:
            return run(tile, (x.shape[0], weight.shape[0], *sizes(tile.box)))

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


# NOTE [A convolution's own gradient]
#
# Where plain PyTorch would do, it does. A tile takes its own autograd function in three cases:
#
# - The result is not wanted, only its gradient (a *ghost*): nothing is computed in forward.
#
# - The tile lies at one border of the map, so its window leaves the map at one side and not at the other. PyTorch
#   pads both sides or none, so the input is padded first, and autograd would keep the padded copy for the gradient,
#   beside the input that the operation before it keeps. Here the input is kept, and padded again in backward.
#
#       relu -> a -> pad -> a' -> convolution            autograd keeps a (for relu) and a' (for the convolution)
#       relu -> a ------> padded convolution             keeps a, for both
#
# - The gradient of the filters is taken apart from that of the input: see NOTE [The gradient of filters on AVX2].
#
# NOTE [The gradient of filters on AVX2]
#
# Where the channels come last, oneDNN's kernel for the filters' gradient walks with long strides on processors
# without AVX-512, and takes 2 to 6 times as long as on a contiguous image (3x3, 64 to 512 channels, maps of 64 to 512
# pixels a side, one thread or two). The result and the input's gradient are as fast or faster with channels last. So
# there, and for maps that are not in the cache as a whole, input and gradient are brought into the contiguous order
# for the filters alone. (Tiles run with channels last whatever the image; see streamingcnn.layout.)
#
# Another kernel of oneDNN's is no danger to tiles: that of 1x1 filters with a stride, which for fewer than 8 channels
# that come last writes beyond its scratch memory (https://github.com/uxlfoundation/oneDNN/issues/6035). It is taken for
# an input of n * stride pixels only, and n pixels of a tile read (n - 1) * stride + 1.


class How(NamedTuple):
    """What a convolution is made with: PyTorch's own arguments, and the padding that they cannot name."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    #: Per axis how much more the input is padded, low and high.
    rest: tuple[Interval, ...]


def convolve(
    tensor: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    rest: tuple[Interval, ...] = (),
    made: tuple[int, ...] | None = None,
    apart: bool = False,
) -> Tensor:
    """A convolution of a tile, padded by different amounts on its two sides.

    Args:
        tensor, weight, bias, stride, padding, dilation, groups: as PyTorch takes them.
        rest: per axis how much more the input is padded by zeros, low and high.
        made: the shape of the result where only its gradient is wanted; None: the result is.
        apart: whether the filters' gradient may be taken apart; see NOTE [The gradient of filters on AVX2].
    """
    one_sided = any(low or high for low, high in rest)
    apart = apart and is_large(tensor)
    if torch.is_grad_enabled() and (made is not None or one_sided or apart):
        how = How(stride, padding, dilation, groups, rest)
        result: Tensor = Convolution.apply(made, apart, how, tensor, weight, bias)  # type: ignore[no-untyped-call]
        return result
    return CONV[tensor.dim() - 2](pad_by(tensor, rest, 0.0), weight, bias, stride, padding, dilation, groups)


class Convolution(torch.autograd.Function):
    """A convolution that keeps its input as it was given; see NOTE [A convolution's own gradient]."""

    @staticmethod
    def forward(
        ctx: Any,
        made: tuple[int, ...] | None,
        apart: bool,
        how: How,
        tensor: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(tensor, weight)
        ctx.how, ctx.apart, ctx.bias = how, apart, None if bias is None else list(bias.shape)
        if made is not None:
            return tensor.new_empty(()).expand(made)
        *usual, rest = how
        return CONV[tensor.dim() - 2](pad_by(tensor, rest, 0.0), weight, bias, *usual)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        tensor, weight = ctx.saved_tensors
        of_input, of_weight, of_bias = ctx.needs_input_grad[3:]
        pull = partial(_pull, ctx.how, ctx.bias)
        if ctx.apart and of_weight:
            # Of what it is the gradient of, each wants to know the shape alone.
            blank = tensor.new_empty(())
            padded = blank.expand(padded_shape(tensor, ctx.how.rest))
            pulled = pull(gradient, padded, weight, [True, False, False])[0] if of_input else None
            image = padded_in_order(tensor, ctx.how.rest)
            of_both = [False, True, of_bias]
            gradient = padded_in_order(gradient, ())
            _, of_filters, of_offset = pull(gradient, image, blank.expand(weight.shape), of_both)
        else:
            image = pad_by(tensor, ctx.how.rest, 0.0)
            pulled, of_filters, of_offset = pull(gradient, image, weight, [of_input, of_weight, of_bias])
        if pulled is not None:
            for dim, ((low, _), size) in enumerate(zip(ctx.how.rest, tensor.shape[2:], strict=False), start=2):
                pulled = pulled.narrow(dim, low, size)
        return None, None, None, pulled, of_filters, of_offset


def _pull(
    how: How, bias: list[int] | None, gradient: Tensor, image: Tensor, weight: Tensor, wanted: list[bool]
) -> list[Tensor | None]:
    """The gradients of a padded image, the weight and the bias, as PyTorch computes them."""
    stride, padding, dilation, groups, _ = how
    pulled: list[Tensor | None] = aten.convolution_backward(
        gradient, image, weight, bias, stride, padding, dilation, False, [0], groups, wanted
    )
    return pulled


def padded_shape(tensor: Tensor, rest: Sequence[Interval]) -> tuple[int, ...]:
    """The shape of a tensor once its last axes are padded."""
    pads = [(0, 0)] * (tensor.dim() - len(rest)) + list(rest)
    return tuple(low + size + high for size, (low, high) in zip(tensor.shape, pads, strict=True))


def padded_in_order(tensor: Tensor, rest: Sequence[Interval]) -> Tensor:
    """A tensor padded by zeros and contiguous: always a copy, since a plan without numbers does not know the order."""
    if not any(low or high for low, high in rest):
        return tensor.clone(memory_format=torch.contiguous_format)
    padded = tensor.new_zeros(padded_shape(tensor, rest))
    inside = padded
    for dim, (low, _) in enumerate(rest, start=tensor.dim() - len(rest)):
        inside = inside.narrow(dim, low, tensor.shape[dim])
    inside.copy_(tensor)
    return padded


#: From so many numbers on a map is large: it does not stay in the cache that one core has for itself.
LARGE_MAP = 2**18


def is_large(tensor: Tensor) -> bool:
    """Whether a map has so many numbers that its filters' gradient is better taken apart."""
    return tensor.numel() >= LARGE_MAP


def takes_filters_apart(dtype: torch.dtype, filters: Sequence[int], groups: int) -> bool:
    """Whether oneDNN's gradient of such filters is slow with channels last; see NOTE [The gradient of filters on AVX2].

    Not so for 1x1 filters, for groups, for a first layer of few channels, and in 3-D.
    """
    return (
        torch.backends.cpu.get_cpu_capability() == "AVX2"
        and dtype == torch.float32
        and len(filters) == 4
        and groups == 1
        and min(filters[2:]) > 1
        and min(filters[:2]) >= 8
    )


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
