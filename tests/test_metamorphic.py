"""What must hold between runs, whatever the right answer is: shifts, repeats, threads, many steps, huge maps."""

from __future__ import annotations

import copy
import gc
import math
import resource
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from streamingcnn import StreamingModule
from streamingcnn.boxes import Box
from streamingcnn.comparison import run_step
from streamingcnn.memory import LiveBytes
from streamingcnn.models.resnet import BasicBlock, ResNet
from streamingcnn.sources.source import ConstantBlocks
from tests.networks import NETWORKS

CHAINS = {
    "strides": lambda: nn.Sequential(nn.Conv2d(2, 4, 5, 2, 2), nn.Tanh(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(4, 3, 3)),
    "dilated": lambda: nn.Sequential(nn.Conv2d(2, 4, 3, padding=2, dilation=2), nn.GELU(), nn.AvgPool2d(3, 3, 1)),
    "up and down": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 4, 4), nn.SiLU(), nn.ConvTranspose2d(4, 3, 4, 2, 1), nn.Conv2d(3, 2, 2, 2)
    ),
}


@pytest.mark.parametrize(("name", "stride", "reach"), [("strides", 4, 8), ("dilated", 3, 3), ("up and down", 4, 3)])
def test_shifting_the_image_by_the_stride_shifts_the_result(name: str, stride: int, reach: int) -> None:
    """Tiles then lie elsewhere in the picture; away from the borders every number stays."""
    net = StreamingModule(CHAINS[name]().double(), tile=(21, 14))
    x = torch.randn(1, 2, 147, 133, dtype=torch.float64)
    whole, shifted = net(x), net(x[:, :, stride:, 2 * stride :])
    inside = shifted[:, :, reach:-reach, reach:-reach]
    same = whole[:, :, 1 + reach : 1 + reach + inside.shape[2], 2 + reach : 2 + reach + inside.shape[3]]
    assert inside.numel() > 100
    torch.testing.assert_close(inside, same, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["unet", "residual_train", "squeeze_excite", "dropout"])
def test_the_same_plan_gives_the_same_bits(name: str) -> None:
    network = next(network for network in NETWORKS if network.name == name)
    module = network.make().float()
    image, more = network.inputs(2)
    more = {key: value.float() for key, value in more.items()}
    steps = [run_step(StreamingModule(copy.deepcopy(module), tile=11), image.float(), **more) for _ in range(2)]
    for key, tensor in steps[0].items():
        assert tensor is None or torch.equal(tensor, steps[1][key]), key  # type: ignore[arg-type]


def test_two_modules_in_two_threads() -> None:
    """Each thread gets what it gets alone: nothing of a step is kept outside its module and its call."""
    modules = [
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), norm, nn.ReLU(), nn.Conv2d(4, 2, 3)).double()
        for norm in (nn.BatchNorm2d(4), nn.GroupNorm(2, 4))
    ]
    images = [torch.randn(2, 1, 41 + 8 * k, 37, dtype=torch.float64) for k in range(2)]
    alone = [_steps(copy.deepcopy(module), image) for module, image in zip(modules, images, strict=True)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(_steps, modules, images))
    for one, other in zip(alone, together, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def _steps(module: nn.Module, image: Tensor) -> list[Tensor]:
    net = StreamingModule(module, tile=12)
    for _ in range(5):
        net(image).square().mean().backward()
    return [p.grad for p in module.parameters() if p.grad is not None]


def test_a_thousand_steps_leave_nothing_behind() -> None:
    net = StreamingModule(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 3)), tile=64)
    x = torch.rand(1, 1, 96, 64)

    def steps(count: int) -> tuple[int, int, int]:
        for _ in range(count):
            net.zero_grad()
            net(x).mean().backward()
        gc.collect()
        tensors = sum(issubclass(type(each), Tensor) for each in gc.get_objects())
        return tensors, len(gc.get_objects()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    steps(100)
    before = steps(100)
    after = steps(800)
    assert after[0] <= before[0]
    assert after[1] <= before[1] + 50
    assert after[2] <= before[2] + 8 * 1024  # the most so far, in KiB


SIDE, BLOCK, PATCH = 50_000, 500, 700


class Huge:
    """2.5 thousand million pixels, 2**31 and more, of one value but for one square of noise."""

    shape, dtype, axes = (1, SIDE, SIDE), torch.float64, "CYX"

    def __init__(self) -> None:
        self.low = SIDE - 3 * BLOCK
        self.patch = torch.rand(1, PATCH, PATCH, dtype=self.dtype, generator=torch.Generator().manual_seed(0))

    def read(self, box: Box) -> Tensor:
        (top, bottom), (left, right) = box
        pixels = torch.full((1, bottom - top, right - left), 0.25, dtype=self.dtype)
        span = [(max(low, self.low), min(high, self.low + PATCH)) for low, high in box]
        if all(low < high for low, high in span):
            inner = self.patch[:, *(slice(low - self.low, high - self.low) for low, high in span)]
            place = [slice(low - start, high - start) for (low, high), (start, _) in zip(span, box, strict=True)]
            pixels[:, *place] = inner
        return pixels

    def constant_blocks(self) -> ConstantBlocks:
        labels = np.zeros((SIDE // BLOCK,) * 2, dtype=np.int64)
        first = self.low // BLOCK
        labels[first : first + 2, first : first + 2] = -1
        return ConstantBlocks((BLOCK, BLOCK), labels)


class Total(nn.Module):
    """Two convolutions and the mean of what they make."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Conv2d(2, 1, 3, 5))

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.layers(x).mean()
        return made


def test_a_map_of_more_than_two_to_the_31_elements() -> None:
    """The stored map after the first layers has 5 thousand million numbers, where 32 bits do not count any more."""
    torch.manual_seed(0)
    net, source = Total().double(), Huge()
    streamed = StreamingModule(net, tile=BLOCK * 5, stored=("layers.1",))
    plan = streamed.plan(source)
    assert max(math.prod(stage.target.shape) for stage in plan.stages) > 2**31
    with LiveBytes() as live:
        loss = streamed(source)
        loss.backward()
    assert live.peak < 2**31
    found = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    # Every window sees either the constant alone or lies in the last 2,000 pixels: means of the two, by their number.
    crop = source.read(((SIDE - 2000, SIDE),) * 2)[None]
    flat = torch.full((1, 1, 5, 5), 0.25, dtype=torch.float64)
    plain = copy.deepcopy(net)
    windows, near = (SIDE // 5) ** 2, (2000 // 5) ** 2
    wanted = plain(crop) * (near / windows) + plain(flat) * (1 - near / windows)
    plain.zero_grad()
    wanted.backward()
    torch.testing.assert_close(loss, wanted, rtol=1e-10, atol=0)
    for gradient, parameter in zip(found, plain.parameters(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-10, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_streaming_rounds_no_worse_than_plain(dtype: torch.dtype) -> None:
    """Against float64: in float32 and under bfloat16 autocast at most twice plain's own error, of every tensor."""
    torch.manual_seed(0)
    net = ResNet(BasicBlock, (1, 1, 1), width=8).eval()
    x = torch.rand(1, 3, 160, 128)
    exact = run_step(copy.deepcopy(net).double(), x.double())
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        plain = run_step(copy.deepcopy(net), x)
        streamed = run_step(StreamingModule(net, tile=64), x)
    last = torch.finfo(dtype).eps
    for key, wanted in exact.items():
        if wanted is None or key[0] == "buffer":
            continue
        errors = [
            float((step[key].double() - wanted).norm() / wanted.norm())  # type: ignore[union-attr]
            for step in (plain, streamed)
        ]
        assert errors[1] <= 2 * errors[0] + last, f"{key}: {errors[1]:.1e} where plain has {errors[0]:.1e}"


def test_the_gradient_of_an_instance_norm_before_a_permutation() -> None:
    """Torch 2.13 gives another one for a single image (its gradient is not contiguous): differences judge here."""
    net = nn.Sequential(nn.InstanceNorm2d(3, affine=True), ChannelsLastNorm(3)).double()
    streamed, x = StreamingModule(net, tile=5), torch.randn(1, 3, 9, 7, dtype=torch.float64)
    weights = torch.randn(1, 3, 9, 7, dtype=torch.float64)
    bias = net[0].bias
    assert isinstance(bias, nn.Parameter)
    (streamed(x) * weights).sum().backward()
    for k in range(3):
        with torch.no_grad():
            sums = []
            for step in (1e-5, -2e-5):
                bias[k] += step
                sums.append(float((net(x) * weights).sum()))
            bias[k] += 1e-5
        assert bias.grad is not None
        assert float(bias.grad[k]) == pytest.approx((sums[0] - sums[1]) / 2e-5, rel=1e-6)


def test_the_gradient_of_bicubic_sampling_that_keeps_all_sizes() -> None:
    """Torch 2.13 moves pixels by the factor on the way forward and copies the gradient: differences judge here."""
    net = StreamingModule(nn.Upsample(scale_factor=1.1, mode="bicubic"), tile=4)
    x = torch.randn(1, 2, 6, 7, dtype=torch.float64, requires_grad=True)
    assert net(x).shape == x.shape
    assert torch.autograd.gradcheck(net, x)


class ChannelsLastNorm(nn.LayerNorm):
    """A layer norm over channels, as ConvNeXt has it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
