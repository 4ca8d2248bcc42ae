"""Wrong input is refused with an error that names what was given and what is needed, and breaks nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import streamingcnn
from streamingcnn import StreamingModule
from streamingcnn.capture import capture
from streamingcnn.check import compare
from streamingcnn.graph import Graph


def trunk() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 5, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 7), nn.Conv2d(4, 2, 3)
    ).double()


def image(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize(
    "shape, words",
    [
        pytest.param((1, 5, 40, 40), ("5", "3"), id="channels"),
        pytest.param((40, 40), ("40",), id="no_batch_no_channels"),
        pytest.param((3, 40, 40), ("3",), id="no_batch"),
        pytest.param((1, 3, 40, 40, 40), ("40",), id="one_axis_too_many"),
        pytest.param((1, 3, 12, 40), ("12",), id="too_small_for_the_network"),
        pytest.param((1, 3, 40, 4), ("4",), id="smaller_than_the_first_kernel"),
        pytest.param((1, 3, 0, 40), ("0",), id="empty"),
    ],
)
def test_wrong_shape(shape: tuple[int, ...], words: tuple[str, ...]) -> None:
    module = trunk()
    net = StreamingModule(module, tile=16)
    before = copy.deepcopy(module.state_dict())

    with pytest.raises((ValueError, TypeError)) as caught:
        net(image(*shape))
    for word in words:
        assert word in str(caught.value)
    with pytest.raises((ValueError, TypeError)):
        net.plan(shape)

    # Nothing half-written: buffers as before, no gradient, and the next image goes through.
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    rows = compare(copy.deepcopy(module), net, image(2, 3, 41, 39))
    assert max(row.error for row in rows) <= 1e-10


@pytest.mark.parametrize("given", [None, "slide.svs", 7, [1, 2]], ids=str)
def test_input_that_is_no_image(given: Any) -> None:
    net = StreamingModule(trunk(), tile=16)
    with pytest.raises((ValueError, TypeError)) as caught:
        net(given)
    assert type(given).__name__ in str(caught.value) or "tensor" in str(caught.value).lower()


def test_wrong_dtype_is_an_error_as_in_plain_pytorch() -> None:
    net = StreamingModule(trunk(), tile=16)
    with pytest.raises((ValueError, TypeError, RuntimeError), match=r"(?i)float|double|dtype|type"):
        net(torch.randn(1, 3, 40, 40))


@pytest.mark.parametrize(
    "tile, kind",
    [
        (0, ValueError),
        (-8, ValueError),
        ((16, 0), ValueError),
        ((), ValueError),
        (2.5, TypeError),
        ("16", TypeError),
        ((16, None), TypeError),
        (True, TypeError),
    ],
    ids=str,
)
def test_wrong_tile_is_refused_at_construction(tile: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=r"(?i)tile") as caught:
        StreamingModule(trunk(), tile=tile)
    assert str(tile) in str(caught.value)


@pytest.mark.parametrize("tile", [(16,), (16, 16, 16)], ids=str)
def test_tile_of_another_number_of_axes(tile: tuple[int, ...]) -> None:
    net = StreamingModule(trunk(), tile=tile)
    with pytest.raises(ValueError, match=r"(?i)tile(.|\n)*\b2\b"):
        net(image(1, 3, 40, 40))


def test_module_that_is_no_module() -> None:
    with pytest.raises(TypeError, match=r"(?i)module"):
        StreamingModule(lambda x: x, tile=16)  # type: ignore[arg-type]


def test_stored_name_that_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"layer9(.|\n)*") as caught:
        StreamingModule(trunk(), tile=16, stored=("layer9",))(image(1, 3, 40, 40))
    assert "3" in str(caught.value) or "submodule" in str(caught.value)


class Reverse(torch.autograd.Function):
    """Gradient reversal: its forward is a plain copy, so a capture would lose it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return -g


class GradientReversal(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Reverse.apply(x)  # type: ignore[no-any-return,no-untyped-call]


class Remembers(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        self.cam = x * 2
        return x


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.mean() > 0 else x


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class Sums(nn.Module):
    """Code of its own that streams."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1


@pytest.mark.parametrize(
    "layer, word",
    [
        (GradientReversal(), "Reverse"),
        (Remembers(), "cam"),
        (Branches(), "data"),
        (Noisy(), "rand"),
    ],
    ids=["autograd_function", "remembered_tensor", "data_dependent", "noise_over_space"],
)
def test_layer_that_cannot_stream(layer: nn.Module, word: str) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(layer), nn.Conv2d(4, 2, 3)).double()
    with pytest.raises(streamingcnn.UnsupportedModuleError) as caught:
        StreamingModule(module, tile=16)(image(1, 3, 40, 40))
    message = str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert word in message
    if not isinstance(layer, Branches):  # torch says on which pixels, and not where
        assert "'1.0'" in message
    assert ";" in message  # what to write instead
    assert not any(isinstance(value, Tensor) for m in module.modules() for value in vars(m).values())
    module(image(1, 3, 40, 40))  # the module itself is as good as before


def test_a_module_is_tried_once_as_long_as_it_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrapping it for another budget is at once; what was changed in between is tried again."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(Sums()), nn.Conv2d(4, 2, 3)).double()
    tried = []

    def noted(*given: Any) -> Graph:
        tried.append(given)
        return capture(*given)

    monkeypatch.setattr(streamingcnn.probe, "capture", noted)
    StreamingModule(module, tile=16)
    StreamingModule(module, tile=24)
    assert len(tried) == 1
    module[1] = GradientReversal()
    for _ in range(2):
        with pytest.raises(streamingcnn.UnsupportedModuleError):
            StreamingModule(module, tile=16)
    assert len(tried) == 3


def test_all_problems_come_at_once() -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), GradientReversal(), nn.Conv2d(4, 4, 3), nn.Sequential(nn.ReLU(), Noisy())
    ).double()
    module[2].register_full_backward_hook(lambda *_: None)
    with pytest.raises(streamingcnn.UnsupportedModuleError) as caught:
        StreamingModule(module, tile=16)(image(1, 3, 40, 40))
    message = str(caught.value)
    for path in ("'1'", "'2'", "'3.1'"):
        assert path in message, message
    assert len(caught.value.problems) == 3
    for problem in caught.value.problems:
        assert problem.reason
        assert problem.instead
