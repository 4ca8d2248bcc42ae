"""Measuring how long operations take on a device: the constants that plans are made with.

Each kind of operation runs alone, forward and backward, at four sizes from inside the cache to far outside it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ..files import whole_file
from ..ops.convolution import convolve, in_two_groups, is_small, takes_filters_apart
from ..ops.reductions import Moments
from ..ops.rule import Value
from .rates import BUILT_IN_RATES, FEW, SIZES, Rate
from .times import Times, cache_file, forget, lanes_of, times_of


def calibrate(device: torch.device | str = "cpu", seconds: float = 0.1) -> Times:
    """Measure a device's constants and keep them for every later plan; two minutes on a quiet machine.

    ::

        from streamingcnn.plan.calibrate import calibrate
        calibrate("cpu")

    Plans are made from these constants, so they may change afterwards: save a plan (``plan.save``) where every
    machine has to run the same one.

    Args:
        device: what to measure, with the number of threads that torch has now.
        seconds: how long each of some 450 measurements may take, at least.
    """
    device = torch.device(device)
    rates: dict[str, dict[str, Rate]] = {}
    for layout in BUILT_IN_RATES:
        rates[layout] = {}
        for kind, case in CASES.items():
            measured = [_measured(case, size, device, layout, seconds) for size in SIZES]
            rates[layout][kind] = Rate(tuple(f for f, _ in measured), tuple(b for _, b in measured))
    x = torch.zeros(1, 4, 8, 8, device=device)
    call = _best(lambda: torch.relu(x), device, seconds)
    path = cache_file(device)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        stored = {layout: {kind: asdict(rate) for kind, rate in kinds.items()} for layout, kinds in rates.items()}
        partial.write_text(json.dumps({"call": 3 * call, "tile": Times({}).tile, "rates": stored}, indent=1))
    forget()
    return times_of(device)


@dataclass(frozen=True)
class Case:
    """One operation to measure: how to make it, on how many channels, and what its units are."""

    make: Callable[[int, int, int], tuple[Callable[..., Tensor], list[Tensor]]]
    space: int
    channels: int
    made: int
    #: Pixels of the result for a pixel of the input.
    scale: float
    units: Callable[[Tensor, Tensor], float]
    of_input: bool = True


_CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


def _measured(case: Case, size: int, device: torch.device, layout: str, seconds: float) -> tuple[float, float]:
    """Nanoseconds a unit, forward and backward."""
    side = int((size / 4 / (case.channels + case.made * case.scale)) ** (1 / case.space))
    side = max(4, side - side % 2)
    memory_format = _CHANNELS_LAST[case.space] if layout == "channels_last" else torch.contiguous_format

    def placed(tensor: Tensor) -> Tensor:
        fitting = memory_format if tensor.dim() == case.space + 2 else torch.contiguous_format
        return tensor.to(device).contiguous(memory_format=fitting)

    x = placed(torch.randn(1, case.channels, *[side] * case.space)).requires_grad_(case.of_input)
    run, parameters = case.make(case.space, case.channels, case.made)
    parameters = [placed(p).requires_grad_() for p in parameters]
    y = run(x, *parameters)
    gradient = torch.randn_like(y)
    leaves = ([x] if case.of_input else []) + parameters
    with torch.no_grad():
        forward = _best(lambda: run(x, *parameters), device, seconds)
    both = _best(lambda: torch.autograd.grad(run(x, *parameters), leaves, gradient), device, seconds)
    nanoseconds = 1e9 / (case.units(x, y) * Times({}, lanes=lanes_of(device)).padded(case.made))
    return round(forward * nanoseconds, 5), round(max(both - forward, 0.05 * forward) * nanoseconds, 5)


def _best(run: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """The fastest of several runs."""
    # What other programs take of the processor is no time of ours; several threads have no such clock.
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter

    def once() -> float:
        start = clock()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock() - start

    once()
    start, found = time.perf_counter(), [once(), once()]
    while time.perf_counter() - start < seconds and len(found) < 30:
        found.append(once())
    return min(found)


def _convolution(kernel: int, stride: int = 1, depthwise: bool = False) -> Any:
    def make(space: int, channels: int, made: int) -> Any:
        weight = torch.randn(made, 1 if depthwise else channels, *[kernel] * space)
        groups = channels if depthwise else 1
        strides, padding, ones = (stride,) * space, (kernel // 2,) * space, (1,) * space

        def run(x: Tensor, w: Tensor) -> Tensor:
            # As a tile runs it.
            on_cpu = x.device.type == "cpu"
            if space == 3 and groups == 1 and on_cpu and is_small(x.shape):
                return in_two_groups(convolve, x, w, None, strides, padding, ones)
            apart = on_cpu and takes_filters_apart(x.dtype, w.shape, groups)
            return convolve(x, w, None, strides, padding, ones, groups, apart=apart)

        return run, [weight]

    return make


def _transposed(space: int, channels: int, made: int) -> Any:
    weight = torch.randn(channels, made, *[2] * space)
    convolve = F.conv_transpose2d if space == 2 else F.conv_transpose3d
    return (lambda x, w: convolve(x, w, None, 2)), [weight]


def _frozen_norm(space: int, channels: int, made: int) -> Any:
    mean, variance = torch.zeros(channels), torch.ones(channels)

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.batch_norm(x, mean.to(x.device), variance.to(x.device), weight, bias, False)

    return run, [torch.ones(channels), torch.zeros(channels)]


def _plain(run: Callable[[Tensor], Tensor]) -> Any:
    return lambda space, channels, made: (run, [])


def _over_channels(x: Tensor) -> Tensor:
    normed: Tensor = F.layer_norm(x.movedim(1, -1), (x.shape[1],)).movedim(-1, 1)
    return normed


def _scale_and_shift(space: int, channels: int, made: int) -> Any:
    shape = (1, channels, *[1] * space)
    return (lambda x, scale, shift: torch.addcmul(shift, x, scale)), [torch.ones(shape), torch.zeros(shape)]


class _Statistics(torch.autograd.Function):
    """The moments of a tile, and their gradient at it, as a stage with a reduction takes them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.moments = Moments(Value("x", tuple(x.shape), x.dtype, tuple(range(2, x.dim()))), over_batch=False)
        result: Tensor = ctx.moments.finish(ctx.moments.partial(x))
        ctx.save_for_backward(x, result)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x, result = ctx.saved_tensors
        pulled: Tensor = x + ctx.moments.pull(x, result, gradient)
        return pulled


def _macs(kernel: int, depthwise: bool = False) -> Callable[[Tensor, Tensor], float]:
    return lambda x, y: float(y.numel() * (1 if depthwise else x.shape[1]) * kernel ** (x.dim() - 2))


def _moved(x: Tensor, y: Tensor) -> float:
    return 4.0 * (x.numel() + y.numel())


CASES: dict[str, Case] = {
    "convolution 2d": Case(_convolution(3), 2, 64, 64, 1, _macs(3)),
    "1x1 convolution 2d": Case(_convolution(1), 2, 128, 128, 1, _macs(1)),
    "strided convolution 2d": Case(_convolution(3, 2), 2, 64, 128, 1 / 4, _macs(3)),
    "first convolution 2d": Case(_convolution(7, 2), 2, 3, 64, 1 / 4, _macs(7), of_input=False),
    "depthwise convolution 2d": Case(_convolution(7, 1, True), 2, 96, 96, 1, _macs(7, True)),
    "transposed convolution 2d": Case(_transposed, 2, 64, 32, 4, lambda x, y: float(y.numel() * x.shape[1])),
    "convolution 3d": Case(_convolution(3), 3, 32, 32, 1, _macs(3)),
    "1x1 convolution 3d": Case(_convolution(1), 3, 64, 64, 1, _macs(1)),
    "strided convolution 3d": Case(_convolution(3, 2), 3, 32, 64, 1 / 8, _macs(3)),
    "first convolution 3d": Case(_convolution(3), 3, 1, 32, 1, _macs(3), of_input=False),
    "depthwise convolution 3d": Case(_convolution(3, 1, True), 3, 32, 32, 1, _macs(3, True)),
    "transposed convolution 3d": Case(_transposed, 3, 64, 32, 8, lambda x, y: float(y.numel() * x.shape[1])),
    "pointwise": Case(_plain(torch.relu), 2, 64, 64, 1, _moved),
    "transcendental": Case(_plain(F.gelu), 2, 64, 64, 1, _moved),
    "scale and shift": Case(_scale_and_shift, 2, 64, 64, 1, _moved),
    "affine": Case(_frozen_norm, 2, 64, 64, 1, _moved),
    "layer norm": Case(_plain(_over_channels), 2, 64, 64, 1, _moved),
    "statistics": Case(_plain(_Statistics.apply), 2, 64, 64, 1, lambda x, y: 4.0 * x.numel()),
    "copy": Case(_plain(lambda x: torch.cat([x, x], 1)), 2, 32, 64, 1, _moved),
    "max pool 2d": Case(_plain(lambda x: F.max_pool2d(x, 3, 2, 1)), 2, 64, 64, 1 / 4, _moved),
    "max pool 3d": Case(_plain(lambda x: F.max_pool3d(x, 2)), 3, 32, 32, 1 / 8, _moved),
    "average pool": Case(_plain(lambda x: F.avg_pool2d(x, 2)), 2, 64, 64, 1 / 4, _moved),
    "nearest": Case(_plain(lambda x: F.interpolate(x, scale_factor=2)), 2, 64, 64, 4, _moved),
    "interpolation 2d": Case(_plain(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear")), 2, 64, 64, 4, _moved),
    "interpolation 3d": Case(
        _plain(lambda x: F.interpolate(x, scale_factor=2, mode="trilinear")), 3, 32, 32, 8, _moved
    ),
}
CASES |= {
    few.kind: replace(CASES[kind], channels=few.channels, made=few.channels) for kind, few in FEW.items()
}  # the same with few channels
