"""A module that runs again in the backward pass: the same numbers, and nothing held in between."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamingcnn import StreamingModule, stream
from streamingcnn.again import recomputed
from streamingcnn.comparison import compare
from streamingcnn.errors import DoubleBackwardError
from streamingcnn.memory import LiveBytes
from streamingcnn.models import GLAM, GMIC, ResNet
from streamingcnn.models.gmic import ResNet22
from streamingcnn.models.resnet import BasicBlock
from streamingcnn.sources import ArraySource

TOLERANCE = 1e-10


class Again(nn.Module):
    """A network that holds nothing; names of parameters and buffers are those of the network itself."""

    net: nn.Module

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.__dict__["net"] = net
        self._modules = net._modules

    def forward(self, x: Tensor) -> Any:
        return recomputed(self.net, x)


def noisy() -> nn.Sequential:
    """Batch norm in training, dropout over a map, and dropout of whole channels, which torch draws."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Conv2d(4, 3, 3, stride=2),
        nn.Dropout2d(0.4),
    ).double()


@pytest.mark.parametrize("streamed", [False, True])
def test_noise_and_running_statistics_are_those_of_one_run(streamed: bool) -> None:
    plain: nn.Module = noisy()
    other: nn.Module = deepcopy(plain)
    if streamed:
        plain, other = StreamingModule(plain, stored=[], tile=16), StreamingModule(other, stored=[], tile=16)
    rows = compare(plain, Again(other), torch.randn(2, 1, 21, 18, dtype=torch.float64))
    assert max(row.error for row in rows) <= TOLERANCE
    assert {"1.running_mean", "1.num_batches_tracked"} <= {row.name for row in rows if row.kind == "buffer"}
    assert int(other.get_buffer("1.num_batches_tracked")) == 1
    drawn = torch.rand(3)  # after compare, which puts torch's generators back: a backward takes no number from them
    torch.manual_seed(1)
    loss = recomputed(other, torch.randn(2, 1, 21, 18).double()).sum()
    before = torch.get_rng_state()
    loss.backward()
    assert torch.equal(before, torch.get_rng_state()) and drawn.shape == (3,)


def test_two_runs_before_one_backward_and_a_mode_that_changes() -> None:
    plain = noisy()
    other = deepcopy(plain)
    a, b = torch.randn(2, 1, 1, 12, 12, dtype=torch.float64)
    found = []
    for net, call in ((plain, plain), (other, Again(other))):
        torch.manual_seed(3)
        loss = (call(a) ** 2).sum() + call(b).sum()
        net.eval()  # as the validation of an impatient loop
        loss.backward()
        assert not net.training and not net[1].training
        found.append([*(p.grad for p in net.parameters()), *net.buffers()])
    for one, two in zip(*found, strict=True):
        assert one is not None and two is not None
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


def test_a_weight_changed_before_the_backward_is_an_error() -> None:
    net = nn.Conv2d(1, 2, 3)
    loss = recomputed(net, torch.ones(1, 1, 5, 5)).sum()
    with torch.no_grad():
        net.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_the_graph_may_be_kept_and_a_second_derivative_is_refused() -> None:
    net = noisy()
    x = torch.randn(1, 1, 9, 9, dtype=torch.float64, requires_grad=True)
    loss = recomputed(net, x).sum()
    first, second = (torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second) and first.any()
    with pytest.raises(DoubleBackwardError, match="Call the module itself"):
        torch.autograd.grad(loss, x, create_graph=True)


def test_autocast_is_that_of_the_first_run() -> None:
    net = nn.Conv2d(1, 2, 3)
    x = torch.randn(1, 1, 9, 9)
    gradients = []
    for call in (net, Again(net)):
        with torch.autocast("cpu", torch.bfloat16):
            made = call(x)
        assert made.dtype == torch.bfloat16
        gradients.append(torch.autograd.grad(made.sum(), [net.weight])[0])
    assert torch.equal(*gradients)


def small(recompute: bool) -> GMIC:
    local = ResNet(BasicBlock, (1, 1), width=4)
    trunk = ResNet22(width=4)
    return GMIC(crop_shape=(64, 64), crops=2, percent_t=0.2, trunk=trunk, local=local, recompute=recompute).double()


def test_gmic_with_a_recomputed_trunk_is_plain_gmic() -> None:
    plain, other = small(False), small(True)
    other.load_state_dict(plain.state_dict())
    rows = compare(plain, other, torch.randn(2, 1, 161, 135, dtype=torch.float64))
    assert max(row.error for row in rows) <= TOLERANCE
    assert {"ds_net.layer_list.0.0.bn1.running_var"} <= {row.name for row in rows if row.kind == "buffer"}


def test_glam_with_a_streamed_and_recomputed_trunk_of_three_maps_is_plain_glam() -> None:
    local = ResNet(BasicBlock, (1,), width=4)
    plain = GLAM(crop_shape=(64, 64), trunk=ResNet22(width=4, taps=(2, 3)), local=local).double()
    other = deepcopy(plain)
    other.global_network.recompute = True
    stream(other, "global_network.downsampling_branch", tile=128)
    rows = compare(plain, other, torch.randn(1, 1, 139, 131, dtype=torch.float64))
    assert max(row.error for row in rows) <= TOLERANCE


def test_a_source_is_read_again() -> None:
    x = torch.randn(1, 1, 40, 30, dtype=torch.float64)
    net = StreamingModule(nn.Conv2d(1, 2, 3).double(), tile=16)
    recomputed(net, ArraySource(x[0])).sum().backward()
    assert net.weight.grad is not None
    expected = torch.autograd.grad(net.module(x).sum(), [net.module.weight])[0]
    torch.testing.assert_close(net.weight.grad, expected, rtol=1e-10, atol=1e-12)


def test_nothing_of_the_trunk_lives_while_the_crops_are_looked_at() -> None:
    held = {}
    model = small(False)
    stream(model, "ds_net", tile=128)
    x = torch.randn(1, 1, 140, 133, dtype=torch.float64)
    for recompute in (False, True):
        model.recompute = recompute
        seen: list[int] = []
        live = LiveBytes()
        look = lambda *_, live=live, seen=seen: seen.append(live.current)  # noqa: E731
        hook = model.dn_resnet.register_forward_pre_hook(look)
        with live:
            model(x).prediction.sum().backward()
        hook.remove()
        held[recompute] = seen[0]
    crops = 2 * 64 * 64 * 8 * 4  # one channel, and repeated to three
    assert held[True] < crops + 100_000 < held[False]
