"""Operations that change the scale: transposed convolution, interpolation, pixel shuffle."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..boxes import Interval, length
from ..graph import GraphBuilder
from .axes import AxisMap, Coarser, Finer, Looked, Same, Spread
from .convolution import globals_of, only_bias
from .registry import Lowered, lowers
from .rule import Call, Linear, Read, Rule, Tile, Value
from .windows import in_order, per_axis

aten = torch.ops.aten
CONV_TRANSPOSE: dict[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


@lowers(aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d)
def transposed_convolution(graph: GraphBuilder, call: Call) -> Lowered:
    """Run without padding on the pixels a tile needs, then cut out the tile.

    Stride 2, kernel 3, padding 1; the tile is [4, 7):

        input              1   2   3   4              needs [2, 4)
        reached by 2            [3 4 5]               2*2 - 1 = 3
        reached by 3                [5 6 7]
        computed               [3 4 5 6 7]            the tile starts at 4 - 3 = 1
    """
    x, weight, bias = call["input"], call["weight"], call["bias"]
    if not x.spatial or not in_order(x) or weight.spatial or len(weight.shape) != len(x.shape):
        return None
    count = len(x.extents)
    stride, padding = per_axis(call["stride"], count), per_axis(call["padding"], count)
    dilation = per_axis(call["dilation"], count)
    kernel, groups = weight.shape[2:], call["groups"]
    spreads = tuple(
        Spread(e, k, s, p, d) for e, k, s, p, d in zip(x.extents, kernel, stride, padding, dilation, strict=True)
    )
    conv = CONV_TRANSPOSE[count]

    def spread_factor(factor: Tensor) -> Tensor:
        # The weight is (in, out / groups, *kernel), the groups one after the other along its first dimension.
        each = factor.view(groups, 1, -1).expand(-1, x.shape[1] // groups, -1)
        return each.reshape(weight.shape[0], -1, *(1,) * count)

    def rule_of(weight: Value, bias: Value | None) -> Rule:
        return Rule(
            (Read(x, spreads),),
            partial(compute, weight, bias),
            x.axes or (),
            globals_of(weight, bias),
            work=weight.shape[0] / groups * prod(kernel) / prod(stride),
            cheap=False,
            shift_invariant=True,
            linear=Linear(weight, bias, spread_factor, rule_of),
        )

    def compute(weight: Value, bias: Value | None, tile: Tile) -> Tensor:
        tensor, w, b = tile.inputs[0], tile.get(weight), tile.get(bias)
        if tensor is None:
            return only_bias(x.shape[0], tile, w.shape[1] * groups, w, b)
        starts, gaps = [], False
        for spread, (low, high), region in zip(spreads, tile.box, tile.regions[0], strict=True):
            start = region[0][0] * spread.stride - spread.pad
            stop = (region[0][1] - 1) * spread.stride - spread.pad + spread.dilation * (spread.kernel - 1) + 1
            starts.append((low - start, stop - high))
            gaps = gaps or start > low or stop < high
        # Where a result pixel is reached by no input pixel the bias must still be there: add it after padding.
        result = conv(tensor, w, None if gaps else b, stride, 0, 0, groups, dilation)
        if gaps:
            result = F.pad(result, [max(0, -p) for pair in reversed(starts) for p in pair])
        for dim, ((skip, _), interval) in enumerate(zip(starts, tile.box, strict=True), start=2):
            if result.shape[dim] != length(interval):
                result = result.narrow(dim, max(0, skip), length(interval))
        if gaps and b is not None:
            result = result + b.view(1, -1, *(1,) * count)
        return result

    return graph.local(call, rule_of(weight, bias))


def _scales(call: Call, x: Value) -> list[float | None]:
    """The scale each axis was asked for, or None where a size was."""
    factors = call.arguments.get("scale_factors")
    if factors is not None:
        return list(factors)
    names = [name for name in ("scales_d", "scales_h", "scales_w", "scales") if name in call.arguments]
    if names:
        return [call[name] for name in names]
    return [None] * len(x.extents)


class Sampling:
    """Where the pixels of one axis of an interpolation come from, in ATen's own arithmetic.

    ATen computes source coordinates in float32 (float64 for float64 maps, except for the nearest modes), with
    the scale that the caller gave, not the ratio of sizes; recomputing it from the sizes errs by up to 6e-2,
    and the textbook formula picks another nearest pixel in a tenth of the cases. Source of the formulas:
    ``area_pixel_compute_source_index`` and its neighbours in ATen/native/UpSample.h.
    """

    def __init__(
        self,
        mode: str,
        extent: int,
        result: int,
        scale: float | None,
        align_corners: bool,
        dtype: torch.dtype,
    ) -> None:
        self.mode, self.extent, self.result, self.align_corners = mode, extent, result, align_corners
        wide = dtype == torch.float64 and not mode.startswith("nearest")
        self.dtype = torch.float64 if wide else torch.float32
        if align_corners:
            ratio = torch.tensor(extent - 1, dtype=self.dtype) / max(result - 1, 1) if result > 1 else 0.0
            self.ratio = torch.as_tensor(ratio, dtype=self.dtype)
        elif scale is not None and scale > 0:
            self.ratio = torch.tensor(1.0 / scale, dtype=self.dtype)
        else:
            self.ratio = torch.tensor(extent, dtype=self.dtype) / result
        # Of the whole axis at once: a plan asks for them tile by tile.
        self.all_taps, self.all_weights = self._taps()
        reach = torch.stack(self.all_taps)
        self.lowest, self.highest = reach.amin(0).numpy(), reach.amax(0).numpy()

    def taps(self, low: int, high: int) -> tuple[list[Tensor], list[Tensor]]:
        """Per tap of the kernel the source pixel and its weight, for each pixel of ``[low, high)``."""
        return [tap[low:high] for tap in self.all_taps], [weight[low:high] for weight in self.all_weights]

    def _taps(self) -> tuple[list[Tensor], list[Tensor]]:
        pixel = torch.arange(self.result, dtype=self.dtype)
        last = self.extent - 1
        if self.mode == "nearest":
            return [(pixel * self.ratio).floor().long().clamp(max=last)], []
        if self.mode == "nearest-exact":
            return [((pixel + 0.5) * self.ratio).floor().long().clamp(max=last)], []
        source = pixel * self.ratio if self.align_corners else (pixel + 0.5) * self.ratio - 0.5
        if self.mode == "linear":
            source = source.clamp(min=0)
            first = source.floor().long().clamp(max=last)
            fraction = (source - first).clamp(0, 1)
            return [first, (first + 1).clamp(max=last)], [1 - fraction, fraction]
        first = source.floor()
        return [(first.long() + k).clamp(0, last) for k in (-1, 0, 1, 2)], cubic_weights(source - first)

    def sources(self, low: int, high: int) -> Interval:
        """The hull of the source pixels of ``[low, high)``; both ends suffice, since coordinates only grow."""
        return int(self.lowest[low]), int(self.highest[high - 1]) + 1

    def related(self, low: int, high: int) -> Hashable:
        """Where the taps lie from the first pixel read, and their weights: all that :func:`_resample` works with."""
        taps, weights = self.taps(low, high)
        first = self.sources(low, high)[0]
        return (*((tap - first).numpy().tobytes() for tap in taps), *(w.numpy().tobytes() for w in weights))


def cubic_weights(t: Tensor) -> list[Tensor]:
    """The four weights of cubic convolution with a = -0.75 (Keys 1981, the constant torch uses)."""
    a = -0.75

    def near(x: Tensor) -> Tensor:
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def far(x: Tensor) -> Tensor:
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    return [far(t + 1), near(t), near(1 - t), far(2 - t)]


def _resample(tensor: Tensor, dim: int, taps: list[Tensor], weights: list[Tensor], origin: int) -> Tensor:
    """One axis of a separable interpolation."""
    pieces = [tensor.index_select(dim, (tap - origin).to(tensor.device)) for tap in taps]
    if not weights:
        return pieces[0]
    shape = [1] * tensor.dim()
    shape[dim] = -1
    scaled = [p * w.to(tensor).view(shape) for p, w in zip(pieces, weights, strict=True)]
    return sum(scaled[1:], scaled[0])


def _interpolation(mode: str) -> Callable[[GraphBuilder, Call], Lowered]:
    def lowering(graph: GraphBuilder, call: Call) -> Lowered:
        x = call.arguments.get("input", call.arguments.get("self"))
        if not isinstance(x, Value) or not in_order(x):
            return None
        align = bool(call.arguments.get("align_corners"))
        result = call.shape[2:]
        axes = [
            Sampling(mode, e, r, s, align, x.dtype) for e, r, s in zip(x.extents, result, _scales(call, x), strict=True)
        ]
        # Linear sampling leaves an axis that keeps its size alone, whatever the factor; on a GPU only if all do.
        alone = mode == "linear" and (graph.device.type == "cpu" or x.extents == tuple(result))
        maps: tuple[AxisMap, ...] = tuple(
            Same()
            if a.extent == a.result and a.mode != "cubic" and (alone or float(a.ratio) == 1.0)
            else Looked(a.sources, a.related)
            for a in axes
        )

        def compute(tile: Tile) -> Tensor:
            tensor = tile.inputs[0]
            assert tensor is not None
            dtype = tensor.dtype
            if mode != "nearest" and mode != "nearest-exact" and dtype in (torch.float16, torch.bfloat16):
                tensor = tensor.float()
            for k, (axis, (low, high)) in enumerate(zip(axes, tile.box, strict=True)):
                if isinstance(maps[k], Looked):
                    taps, weights = axis.taps(low, high)
                    tensor = _resample(tensor, k + 2, taps, weights, tile.regions[0][k][0][0])
            return tensor.to(dtype)

        work = {"nearest": 50.0, "nearest-exact": 50.0, "linear": 200.0, "cubic": 400.0}[mode]
        rule = Rule((Read(x, maps),), compute, x.axes or (), work=work, cheap=False, shift_invariant=True)
        return graph.local(call, rule)

    return lowering


def _modes() -> dict[str, list[Any]]:
    return {
        "nearest": [aten.upsample_nearest1d, aten.upsample_nearest2d, aten.upsample_nearest3d],
        "nearest-exact": [
            aten._upsample_nearest_exact1d,
            aten._upsample_nearest_exact2d,
            aten._upsample_nearest_exact3d,
        ],
        "linear": [aten.upsample_linear1d, aten.upsample_bilinear2d, aten.upsample_trilinear3d],
        "cubic": [aten.upsample_bicubic2d],
    }


for _mode, _targets in _modes().items():
    lowers(*_targets)(_interpolation(_mode))


def _shuffled(call: Call, factor_map: Callable[[int], AxisMap], factor: int) -> Rule | None:
    """Pixel shuffles act on the last two axes; axes before them (there are none in 2-D) stay."""
    x: Value = call["self"]
    if not in_order(x) or len(x.extents) != 2:
        return None
    target = call.target

    def compute(tile: Tile) -> Tensor:
        tensor = tile.inputs[0]
        assert tensor is not None
        result: Tensor = target(tensor, factor)
        for dim, ((low, high), region) in enumerate(zip(tile.box, tile.regions[0], strict=True), start=2):
            if result.shape[dim] != high - low:
                result = result.narrow(dim, low - region[0][0] * factor, high - low)
        return result

    return Rule((Read(x, (factor_map(factor),) * 2),), compute, x.axes or (), shift_invariant=True)


@lowers(aten.pixel_shuffle)
def pixel_shuffle(graph: GraphBuilder, call: Call) -> Lowered:
    rule = _shuffled(call, Finer, call["upscale_factor"])
    return None if rule is None else graph.local(call, rule)


@lowers(aten.pixel_unshuffle)
def pixel_unshuffle(graph: GraphBuilder, call: Call) -> Lowered:
    rule = _shuffled(call, Coarser, call["downscale_factor"])
    return None if rule is None else graph.local(call, rule)
