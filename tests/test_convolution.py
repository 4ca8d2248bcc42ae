"""A tile's own convolution, padded on one side or its gradient in two parts: PyTorch's numbers, the plan's bytes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import streamingcnn.ops.convolution as convolution
from streamingcnn import StreamingModule
from streamingcnn.check import compare
from streamingcnn.memory import LiveBytes
from streamingcnn.ops.convolution import CONV, convolve, takes_filters_apart
from streamingcnn.ops.windows import pad_by

#: Extents, kernel, stride, common padding, dilation, groups, padding beside it.
CASES: dict[str, tuple[Any, ...]] = {
    "1-D": ((17,), (3,), (1,), (0,), (1,), 1, ((1, 0),)),
    "a border above": ((9, 11), (3, 3), (1, 1), (0, 1), (1, 1), 1, ((1, 0), (0, 0))),
    "a corner": ((9, 11), (5, 3), (1, 1), (0, 0), (1, 1), 1, ((2, 0), (0, 1))),
    "even, strided": ((10, 9), (4, 4), (2, 3), (1, 0), (1, 1), 1, ((0, 1), (2, 0))),
    "dilated, grouped": ((12, 10), (3, 3), (1, 2), (0, 0), (2, 1), 2, ((2, 1), (0, 1))),
    "3-D": ((5, 6, 7), (3, 3, 2), (1, 2, 1), (0, 0, 0), (1, 1, 1), 1, ((1, 0), (0, 1), (1, 0))),
    "nothing beside": ((9, 9), (3, 3), (1, 1), (1, 1), (1, 1), 1, ((0, 0), (0, 0))),
}


@pytest.fixture
def _all_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "LARGE_MAP", 0)


@pytest.mark.usefixtures("_all_are_large")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("ghost", [False, True])
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("offset", [False, True])
def test_gradients_are_those_of_padding_first(name: str, ghost: bool, apart: bool, offset: bool) -> None:
    extents, kernel, stride, padding, dilation, groups, rest = CASES[name]
    form: Any = {4: torch.channels_last, 5: torch.channels_last_3d}.get(len(extents) + 2, torch.contiguous_format)

    def leaves() -> tuple[Tensor, Tensor, Tensor | None]:
        torch.manual_seed(1)
        image = torch.randn(2, 4, *extents, dtype=torch.float64).contiguous(memory_format=form)
        filters = torch.randn(6, 4 // groups, *kernel, dtype=torch.float64).contiguous(memory_format=form)
        bias = torch.randn(6, dtype=torch.float64).requires_grad_() if offset else None
        return image.requires_grad_(), filters.requires_grad_(), bias

    def pulled(result: Tensor, given: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
        weights = torch.sin(torch.arange(result.numel(), dtype=torch.float64)).view(result.shape)
        return torch.autograd.grad(result, [each for each in given if each is not None], weights)

    image, filters, bias = plain = leaves()
    wanted = CONV[len(extents)](pad_by(image, rest, 0.0), filters, bias, stride, padding, dilation, groups)
    made = tuple(wanted.shape) if ghost else None
    image, filters, bias = own = leaves()
    result = convolve(image, filters, bias, stride, padding, dilation, groups, rest, made, apart)
    assert result.shape == wanted.shape
    if not ghost:
        torch.testing.assert_close(result, wanted, rtol=0, atol=0)
    for mine, theirs in zip(pulled(result, own), pulled(wanted, plain), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def trunk(channels: int = 8) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(4):
        layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers)


@pytest.mark.usefixtures("_all_are_large")
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_network_with_filters_taken_apart(channels_last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an AVX2 processor runs it, and to the bytes that were predicted."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    module, x = trunk(), torch.randn(1, 8, 60, 52)
    if channels_last:
        how: Any = {"memory_format": torch.channels_last}
        module, x = module.to(**how), x.to(**how)
    net = StreamingModule(module, tile=24)
    called: list[tuple[int, ...]] = []
    real = convolution.padded_in_order

    def noted(tensor: Tensor, rest: Any) -> Tensor:
        called.append(tuple(tensor.shape))
        found: Tensor = real(tensor, rest)
        return found

    monkeypatch.setattr(convolution, "padded_in_order", noted)
    rows = compare(module, net, x)
    assert called
    assert max(row.error for row in rows) < 1e-5
    net(x).sum().backward()
    plan = net.plan(x)
    with LiveBytes() as live:
        module.zero_grad(set_to_none=True)
        net(x).backward(torch.ones(1, 8, 60, 52))
    assert live.peak <= plan.peak_bytes <= 1.02 * live.peak


def test_which_filters_are_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    for capability, wanted in (("AVX2", True), ("AVX512", False), ("DEFAULT", False)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda found=capability: found)
        assert takes_filters_apart(torch.float32, (64, 64, 3, 3), 1) is wanted
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    for dtype, filters, groups in (
        (torch.float64, (64, 64, 3, 3), 1),
        (torch.float32, (64, 64, 1, 1), 1),
        (torch.float32, (64, 3, 7, 7), 1),
        (torch.float32, (64, 1, 7, 7), 64),
        (torch.float32, (64, 64, 3, 3, 3), 1),
    ):
        assert not takes_filters_apart(dtype, filters, groups)
