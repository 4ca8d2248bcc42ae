"""Tiles run in channels_last where that is faster, and nobody else notices."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from streamingcnn import StreamingModule
from streamingcnn.capture import capture
from streamingcnn.comparison import compare
from streamingcnn.layout import brought_to_channels_last, given_in_channels_last, in_channels_last, layout_of
from streamingcnn.memory import LiveBytes
from streamingcnn.models import ResNet, UNet3D
from streamingcnn.models.resnet import BasicBlock

Case = tuple[Callable[[], nn.Module], tuple[int, ...], int]


def two_convolutions() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1))


@pytest.mark.parametrize(
    "image, filters, given",
    [
        (torch.contiguous_format, torch.contiguous_format, False),
        (torch.channels_last, torch.contiguous_format, True),
        (torch.contiguous_format, torch.channels_last, True),
    ],
)
def test_a_graph_knows_what_it_was_given(image: torch.memory_format, filters: torch.memory_format, given: bool) -> None:
    net = two_convolutions().to(memory_format=filters)  # type: ignore[call-overload]
    graph = capture(net, (torch.empty(1, 3, 16, 16).to(memory_format=image),), {})
    assert given_in_channels_last(graph) is given
    assert brought_to_channels_last(graph) is not given
    assert layout_of(graph) == "channels_last"


@pytest.mark.parametrize(
    "net, x",
    [
        (two_convolutions().double(), torch.empty(1, 3, 16, 16, dtype=torch.float64)),
        (nn.Conv1d(3, 4, 3), torch.empty(1, 3, 16)),
        (nn.MaxPool2d(2), torch.empty(1, 3, 16, 16)),
    ],
    ids=["float64", "1-D", "no convolution"],
)
def test_what_gains_nothing_stays_as_it_is(net: nn.Module, x: Tensor) -> None:
    assert layout_of(capture(net, (x,), {})) == "contiguous"


@pytest.mark.parametrize("shape", [(8, 4, 3, 3, 3), (8, 1, 3, 3, 3), (2, 4, 1, 3, 3)])
def test_filters_with_channels_last_give_maps_that_have(shape: tuple[int, ...]) -> None:
    filters, x = torch.rand(shape), torch.rand(1, shape[1], 150, 150, 4)
    brought = in_channels_last(filters)
    assert torch.equal(brought, filters)
    y = torch.nn.functional.conv3d(x, brought)
    assert y.is_contiguous(memory_format=torch.channels_last_3d) and y.stride(1) == 1


NETWORKS: dict[str, Case] = {
    "residual": (lambda: ResNet(BasicBlock, (1, 1), width=8).eval(), (2, 3, 71, 62), 32),
    "trained norms": (lambda: ResNet(BasicBlock, (1, 1), width=8), (2, 3, 71, 62), 32),
    "U-Net": (lambda: UNet3D(1, 2, levels=3, filters=8), (1, 1, 24, 20, 28), 16),
    "a head that views": (
        lambda: nn.Sequential(two_convolutions(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(36, 2)),
        (2, 3, 30, 24),
        16,
    ),
    "a head that views the map": (
        lambda: nn.Sequential(two_convolutions(), nn.Flatten(), nn.Linear(4 * 20 * 24, 2)),
        (2, 3, 20, 24),
        12,
    ),
    "group norm": (
        lambda: nn.Sequential(two_convolutions(), nn.GroupNorm(2, 4), nn.Conv2d(4, 2, 3)),
        (1, 3, 33, 40),
        16,
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("way", ["tiles", "whole"])
def test_float32_is_plain_pytorchs_but_for_rounding(name: str, way: str) -> None:
    torch.manual_seed(0)
    make, shape, tile = NETWORKS[name]
    net, x = make(), torch.randn(shape)
    options = {"tiles": {"tile": tile}, "whole": {"memory": "1GiB"}}[way]
    streamed = StreamingModule(copy.deepcopy(net), **options)  # type: ignore[arg-type]
    assert brought_to_channels_last(streamed.plan(x).graph)
    assert max(row.error for row in compare(net, streamed, x)) < 2e-4


@pytest.mark.parametrize("tile", [16, 64])
def test_results_and_gradients_are_contiguous(tile: int) -> None:
    net = StreamingModule(two_convolutions(), tile=tile)
    x = torch.rand(1, 3, 48, 40, requires_grad=True)
    y = net(x)
    (dx, *rest) = torch.autograd.grad(y.square().mean(), (x, *net.parameters()))
    assert y.is_contiguous() and dx.is_contiguous() and len(rest) == 4


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("way", ["tiles", "whole"])
def test_bytes_are_as_predicted(name: str, way: str) -> None:
    make, shape, tile = NETWORKS[name]
    net, x = make(), torch.rand(shape, requires_grad=True)
    streamed = StreamingModule(net, tile=tile) if way == "tiles" else StreamingModule(net, memory="1GiB")
    predicted = streamed.plan(x).peak_bytes
    with LiveBytes() as live:
        y = streamed(x)
        y.backward(torch.full_like(y, 1 / y.numel()))
    assert live.peak <= predicted <= 1.02 * live.peak
