"""A frozen batch norm in the convolution before it; values written over; small volumes in two groups."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import streamingcnn.plan.stages as stages
from streamingcnn import StreamingModule
from streamingcnn.capture import capture
from streamingcnn.check import compare
from streamingcnn.graph import Graph
from streamingcnn.memory import LiveBytes
from streamingcnn.models.resnet import BasicBlock
from streamingcnn.ops.convolution import in_two_groups
from streamingcnn.plan.stages import Stage, build_steps

BOUND = 1e-10


def frozen(net: nn.Module) -> nn.Module:
    """In evaluation, with statistics and weights that are not those of a new layer."""
    for layer in net.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            assert layer.running_mean is not None and layer.running_var is not None
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
            if layer.affine:
                nn.init.uniform_(layer.weight, -1.5, 1.5)
                nn.init.normal_(layer.bias)
    return net.double().eval()


def norms(graph: Graph) -> int:
    """How many batch norms are left."""
    return sum("batch_norm" in node.op for node in graph.locals.values())


def worst(net: nn.Module, x: Tensor, **options: object) -> float:
    streamed = StreamingModule(net, **options)  # type: ignore[arg-type]
    return max(row.error for row in compare(copy.deepcopy(net), streamed, x))


FOLDED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "1-D": (lambda: nn.Sequential(nn.Conv1d(2, 6, 3, padding=1), nn.BatchNorm1d(6), nn.Tanh()), (2, 2, 40)),
    "2-D, no bias": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)), (1, 3, 21, 30)),
    "2-D, groups": (lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d(8), nn.ReLU()), (2, 4, 20, 17)),
    "3-D": (lambda: nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ELU()), (1, 1, 9, 12, 10)),
    "no weight": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False)), (1, 3, 21, 30)),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6)), (1, 3, 15, 12)),
    "transposed, groups": (
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 2, 3, groups=2), nn.BatchNorm2d(6), nn.ReLU()),
        (1, 4, 11, 12),
    ),
    "only padding": (lambda: nn.Sequential(nn.Conv1d(1, 2, 1, padding=4), nn.BatchNorm1d(2), nn.ReLU()), (1, 1, 6)),
    "residual": (lambda: nn.Sequential(BasicBlock(4, 4), BasicBlock(4, 8, stride=2)), (1, 4, 24, 20)),
}


@pytest.mark.parametrize("name", FOLDED)
def test_folded_is_plain(name: str) -> None:
    make, shape = FOLDED[name]
    net, x = frozen(make()), torch.randn(shape, dtype=torch.float64)
    assert norms(capture(net, (x,), {})) == 0
    assert worst(net, x, tile=4) < BOUND


def test_a_kept_stage_gives_its_gradient_twice() -> None:
    net = frozen(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3)))
    x = torch.rand(1, 1, 20, 20, dtype=torch.float64)
    streamed = StreamingModule(net, tile=8, stored=["2"], keep=["2", "3"])
    y = streamed(x).square().sum()
    first = torch.autograd.grad(y, tuple(net.parameters()), retain_graph=True)
    second = torch.autograd.grad(y, tuple(net.parameters()))
    plain = torch.autograd.grad(net(x).square().sum(), tuple(net.parameters()))
    for a, b, c in zip(first, second, plain, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, rtol=BOUND, atol=BOUND)


def test_a_convolution_used_twice_is_folded_for_each_norm() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 3, padding=1)
            self.one, self.two = nn.BatchNorm2d(2), nn.BatchNorm2d(2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.two(self.conv(self.one(self.conv(x)).relu()))
            return out

    net, x = frozen(Tied()), torch.randn(1, 2, 20, 20, dtype=torch.float64)
    assert norms(capture(net, (x,), {})) == 0
    assert worst(net, x, tile=6) < BOUND
    calls: list[Tensor] = []
    net.get_parameter("conv.weight").register_hook(calls.append)
    StreamingModule(net, tile=6)(x).sum().backward()
    assert len(calls) == 1


def test_frozen_parameters_get_no_gradient() -> None:
    net = frozen(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    net[0].weight.requires_grad_(False)  # type: ignore[index]
    net[1].weight.requires_grad_(False)  # type: ignore[index]
    x = torch.rand(1, 1, 20, 20, dtype=torch.float64)
    StreamingModule(net, tile=8)(x).sum().backward()
    assert [p.grad is None for p in net.parameters()] == [True, False, True, False]
    assert worst(net, x, tile=8) < BOUND


class TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        out: Tensor = self.norm(y) + y
        return out


class BothReturned(TwoReaders):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        y = self.conv(x)
        return self.norm(y), y


@pytest.mark.parametrize(
    "net, dtype",
    [
        pytest.param(frozen(TwoReaders()), torch.float64, id="read twice"),
        pytest.param(frozen(BothReturned()), torch.float64, id="an output"),
        pytest.param(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)).eval().bfloat16(), torch.bfloat16, id="half"),
        pytest.param(frozen(nn.Sequential(nn.Conv2d(1, 1, 3), nn.ReLU(), nn.BatchNorm2d(1))), torch.float64, id="relu"),
    ],
)
def test_what_is_not_folded(net: nn.Module, dtype: torch.dtype) -> None:
    x = torch.rand(1, 1, 20, 20, dtype=dtype)
    assert norms(capture(net, (x,), {})) == 1
    if dtype == torch.float64:
        assert worst(net, x, tile=8) < BOUND


def test_a_folded_convolution_can_be_stored_by_its_name() -> None:
    net = frozen(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3)))
    plan = StreamingModule(net, tile=8, stored=["0"]).plan(torch.rand(1, 1, 20, 20, dtype=torch.float64))
    assert [stage.layer for stage in plan.stages] == ["1", "3"]


# ------------------------------------------------------------------------------------------------ writing over


def overwritten(net: nn.Module, x: Tensor) -> list[str]:
    """The operations that write over an input where nothing but the result is stored."""
    graph = capture(net, (x,), {})
    (stage,) = (step for step in build_steps(graph, set()) if isinstance(step, Stage))
    nodes = {node.value.name: node for node in stage.nodes}
    return [nodes[name].op for name in stage.over]


def chain(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), *layers)


class SquareOfConv(TwoReaders):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        out: Tensor = y.relu() * y
        return out


class OfTheInput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu()


@pytest.mark.parametrize(
    "net, expected",
    [
        # the convolution's own result, read once
        (chain(nn.ReLU()), ["relu"]),
        (chain(nn.LeakyReLU(0.1)), ["leaky_relu"]),
        (chain(nn.ReLU6()), ["hardtanh"]),
        (chain(nn.Sigmoid(), nn.Conv2d(2, 1, 1), nn.Tanh()), ["sigmoid", "tanh"]),
        (frozen(BasicBlock(1, 1)).float(), ["relu", "add", "relu"]),
        # not: the gradient needs the input, the value is read twice, it is the image, it needs its own result
        (chain(nn.LeakyReLU(-0.1)), []),
        (chain(nn.GELU()), []),
        (SquareOfConv(), []),
        (OfTheInput(), []),
        (chain(nn.Sigmoid(), nn.ReLU()), ["sigmoid"]),
    ],
)
def test_what_is_written_over(net: nn.Module, expected: list[str]) -> None:
    x = torch.randn(1, 1, 16, 16)
    assert overwritten(net, x) == expected
    before = x.clone()
    assert worst(copy.deepcopy(net).double(), x.double(), tile=6) < BOUND
    StreamingModule(net, tile=6)(x).sum()
    assert torch.equal(x, before)


def test_writing_over_saves_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    def peak() -> int:
        torch.manual_seed(0)
        layers = [layer for _ in range(4) for layer in (nn.Conv2d(8, 8, 3), nn.LeakyReLU(0.1))]
        net = StreamingModule(nn.Sequential(*layers), tile=64, stored=[])
        with LiveBytes() as live:
            net(torch.rand(1, 8, 128, 128)).sum().backward()
        return live.peak

    small = peak()
    monkeypatch.setattr(stages, "overwriting", lambda nodes: {})
    assert small < 0.85 * peak()


# ------------------------------------------------------------------------------------------------- two groups


@pytest.mark.parametrize("space", [1, 2, 3])
def test_two_groups_are_one(space: int) -> None:
    conv = (torch.conv1d, torch.conv2d, torch.conv3d)[space - 1]
    x = torch.randn(1, 3, *[7] * space, dtype=torch.float64, requires_grad=True)
    w = torch.randn(4, 3, *[3] * space, dtype=torch.float64, requires_grad=True)
    b = torch.randn(4, dtype=torch.float64, requires_grad=True)
    one = conv(x, w, b, 2, 1, 1, 1)
    two = in_two_groups(conv, x, w, b, 2, 1, 1)
    torch.testing.assert_close(two, one, rtol=BOUND, atol=BOUND)
    weights = torch.randn_like(one)
    for a, b in zip(*(torch.autograd.grad(y, (x, w, b), weights) for y in (two, one)), strict=True):
        torch.testing.assert_close(a, b, rtol=BOUND, atol=BOUND)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_small_volumes_never_meet_the_reference_kernel() -> None:
    net = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 8, 3, padding=1))
    x = torch.randn(1, 1, 24, 24, 24)

    def kernels(module: nn.Module) -> set[str]:
        with torch.profiler.profile() as profile:
            module(x).sum().backward()
        return {event.name for event in profile.events()} & {"aten::slow_conv3d_forward", "aten::mkldnn_convolution"}

    assert kernels(net) == {"aten::slow_conv3d_forward"}
    assert kernels(StreamingModule(net, tile=12)) == {"aten::mkldnn_convolution"}
