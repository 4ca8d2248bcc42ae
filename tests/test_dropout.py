"""Dropout drops as dropout should: at its rate, without a pattern, and the same pixels for every tiling."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from streamingcnn import StreamingModule
from streamingcnn.check import compare, run_step
from streamingcnn.ops.noise import dropout_mask

SHAPE = (4, 8, 61, 67)


def kept(module: nn.Module, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """Where a dropout over ones keeps its pixel."""
    found: Tensor = module(torch.ones(shape, dtype=torch.float64)) != 0
    return found


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
def test_keep_rate_is_within_four_sigma(p: float) -> None:
    net = StreamingModule(nn.Dropout(p), tile=16)
    mask = kept(net).double()
    sigma = math.sqrt(p * (1 - p) / mask.numel())
    assert abs(float(mask.mean()) - (1 - p)) < 4 * sigma
    # Not only over all: per sample, per channel, per row and per column too (5 sigma: there are many).
    for dims in ((1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2)):
        means = mask.mean(dims)
        count = mask.numel() / means.numel()
        assert float((means - (1 - p)).abs().max()) < 5 * math.sqrt(p * (1 - p) / count)


@pytest.mark.parametrize(
    "shift",
    [(0, 0, 0, 1), (0, 0, 1, 0), (0, 0, 1, 1), (0, 0, 1, -1), (0, 1, 0, 0), (1, 0, 0, 0), (0, 0, 0, 16)],
)
def test_neighbours_are_uncorrelated_within_four_sigma(shift: tuple[int, ...]) -> None:
    net = StreamingModule(nn.Dropout(0.5), tile=16)
    mask = kept(net, (4, 8, 128, 128)).double() * 2 - 1
    rolled = mask.roll(shift, (0, 1, 2, 3))
    assert abs(float((mask * rolled).mean())) < 4 / math.sqrt(mask.numel())


def test_values_that_stay_are_scaled() -> None:
    net = StreamingModule(nn.Dropout(0.25), tile=16)
    y = net(torch.ones(SHAPE, dtype=torch.float64))
    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / 0.75))


@pytest.mark.parametrize(
    "p, train", [(0.0, True), (1.0, True), (0.5, False), (0.0, False)], ids=["p=0", "p=1", "eval", "p=0,eval"]
)
@pytest.mark.parametrize("layer", [nn.Dropout, nn.Dropout2d])
def test_without_chance_it_is_plain_bit_for_bit(layer: type[nn.Module], p: float, train: bool) -> None:
    # Exact layers only: a convolution or a tanh rounds differently where a tile is cut, here nothing may.
    plain = nn.Sequential(nn.ReLU(), layer(p), nn.LeakyReLU(0.25)).train(train)
    net = StreamingModule(copy.deepcopy(plain), tile=16)
    x = torch.randn(SHAPE)
    expected, found = run_step(plain, x), run_step(net, x)
    for key, tensor in expected.items():
        assert tensor is not None
        assert torch.equal(tensor, found[key]), key  # type: ignore[arg-type]


@pytest.mark.parametrize("tile", [5, 16, (9, 40), 64, 1000])
def test_mask_does_not_depend_on_the_tiling(tile: int | tuple[int, int]) -> None:
    module = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Dropout(0.4), nn.MaxPool2d(2), nn.Dropout(0.2))
    nn.init.constant_(module.get_parameter("0.bias"), 10.0)  # so that a zero is a dropped pixel
    masks = []
    for chosen in (tile, 24):
        net = StreamingModule(module, tile=chosen)
        torch.manual_seed(3)
        masks.append(net(torch.rand(2, 2, 40, 51)) != 0)
    assert torch.equal(*masks)


def test_mask_is_the_public_function_of_seed_layer_and_box() -> None:
    net = StreamingModule(nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.3)), tile=16)
    mask = kept(net)
    seed = net.last_seed
    assert seed is not None
    expected = [dropout_mask(seed, layer, SHAPE, (2, 3), ((0, 61), (0, 67)), p) for layer, p in ((0, 0.5), (1, 0.3))]
    assert torch.equal(mask, expected[0] & expected[1])
    corner = dropout_mask(seed, 0, SHAPE, (2, 3), ((11, 30), (60, 67)), 0.5)
    assert torch.equal(corner, expected[0][:, :, 11:30, 60:67])


def test_every_forward_draws_anew_and_a_seed_repeats_it() -> None:
    net = StreamingModule(nn.Dropout(0.5), tile=16)
    torch.manual_seed(1)
    first, second = kept(net), kept(net)
    torch.manual_seed(1)
    again = kept(net)
    assert not torch.equal(first, second)
    assert torch.equal(first, again)
    # Two masks agree on a pixel as often as two coins do.
    sigma = 0.5 / math.sqrt(first.numel())
    assert abs(float((first == second).double().mean()) - 0.5) < 4 * sigma


def test_layers_draw_apart() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Dropout(0.5), nn.Dropout(0.5)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.a(x), self.b(x)

    a, b = StreamingModule(Two(), tile=16)(torch.ones(SHAPE))
    same = ((a != 0) == (b != 0)).double().mean()
    assert abs(float(same) - 0.5) < 4 * 0.5 / math.sqrt(a.numel())


def test_plain_module_is_left_alone_outside_of_a_comparison() -> None:
    """compare() lets plain drop the engine's pixels; afterwards plain draws its own again."""
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Dropout(0.5), nn.Flatten(), nn.Dropout(0.5)).double()
    net = StreamingModule(copy.deepcopy(module), tile=8)
    x = torch.randn(2, 1, 20, 20, dtype=torch.float64)
    assert max(row.error for row in compare(module, net, x)) <= 1e-10
    torch.manual_seed(5)
    first = module(x)
    torch.manual_seed(5)
    assert torch.equal(first, module(x))
    assert not torch.equal(first, module(x))
