"""The promise about predictions: never below what a step takes, at most 2 % above it, and no budget is exceeded."""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import streamingcnn.module
import streamingcnn.probe
from streamingcnn import StreamingModule
from streamingcnn.capture import capture
from streamingcnn.fingerprint import capture_key
from streamingcnn.graph import Graph
from streamingcnn.memory import LiveBytes
from streamingcnn.models import UNet3D
from streamingcnn.plan.peak import exact_peak
from streamingcnn.plan.search import BudgetError
from tests.blocks import Bottleneck, ConvNeXt, Dense, EncoderDecoder, InvertedResidual, Net, Residual, SqueezeExcite

pytestmark = pytest.mark.usefixtures("untried")

#: With the module of each, since a key names functions by their identity.
CAPTURED: dict[Hashable, tuple[nn.Module, Graph]] = {}


@pytest.fixture(autouse=True)
def _captured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Capture each network once for all its plans: half of the time of a case is torch.export's.

    A graph holds names and no values, so it also serves the next instance of the same network.
    """

    def remembered(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Graph:
        key = capture_key(module, args, kwargs)
        if key not in CAPTURED:
            CAPTURED[key] = module, capture(module, args, kwargs)
        return CAPTURED[key][1]

    for place in (streamingcnn.module, streamingcnn.probe):
        monkeypatch.setattr(place, "capture", remembered)


def live_bytes(module: nn.Module, x: Tensor, grad: bool = True) -> int:
    """Count what a step makes: results, the gradients given to them, gradients of parameters and image too.

    Python's collector is off: a tensor in a reference cycle would outlive its use, and must show.
    """
    module.zero_grad(set_to_none=True)
    x.grad = None
    gc.disable()
    try:
        with LiveBytes() as live, torch.set_grad_enabled(grad):
            results = module(x)
            graded = [y for y in (results if isinstance(results, tuple) else (results,)) if y.requires_grad]
            if graded:
                torch.autograd.backward(graded, [torch.ones_like(y) for y in graded])
    finally:
        gc.enable()
    return live.peak


def rows(*modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(*modules)


def conv(channels: int, out: int) -> nn.Module:
    return nn.Conv2d(channels, out, 3, padding=1)


def frozen_trunk() -> nn.Module:
    module = rows(Residual(3, 6), Residual(6, 8, 2), conv(8, 4))
    module[0].requires_grad_(False).eval()
    return module


def two_results() -> nn.Module:
    return Net(lambda net, x: (net.fine(x), net.coarse(net.pool(x))), fine=conv(3, 4), coarse=conv(3, 5),
               pool=nn.MaxPool2d(2))  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A network, the shape of its image, and how the step is made."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = (1, 3, 96, 80)
    train: bool = False
    #: Whether the image's own gradient is asked for.
    image: bool = False
    grad: bool = True
    channels_last: bool = False

    def make(self) -> tuple[nn.Module, Tensor]:
        torch.manual_seed(0)
        module, x = self.build().train(self.train), torch.randn(self.shape)
        if self.channels_last:
            how: Any = {"memory_format": torch.channels_last if x.dim() == 4 else torch.channels_last_3d}
            module, x = module.to(**how), x.to(**how)
        return module, x.requires_grad_(self.image)


def resnet() -> nn.Module:
    return rows(conv(3, 8), nn.MaxPool2d(3, 2, 1), Residual(8, 8), Residual(8, 12, 2), Bottleneck(12, 8, 2))


def convnext() -> nn.Module:
    return rows(nn.Conv2d(3, 8, 4, 4), ConvNeXt(8), ConvNeXt(8), nn.Conv2d(8, 12, 2, 2), ConvNeXt(12))


def densenet() -> nn.Module:
    return rows(conv(3, 6), nn.ReLU(), Dense(6, 4, 4), nn.AvgPool2d(2), Dense(22, 4, 3), nn.Conv2d(34, 2, 1))


def classifier() -> nn.Module:
    return rows(resnet(), SqueezeExcite(12), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3))


def dropping() -> nn.Module:
    return rows(conv(3, 6), nn.Dropout(0.3), nn.ReLU(), conv(6, 6), nn.Dropout2d(0.2), conv(6, 2))


def normalised(norm: Callable[[int], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: rows(conv(3, 8), norm(8), nn.ReLU(), conv(8, 8), norm(8), nn.ReLU(), conv(8, 2))


CASES = {
    "resnet": Case(resnet),
    "resnet, channels_last": Case(resnet, (2, 3, 65, 71), channels_last=True),
    "resnet, forward only": Case(resnet, grad=False),
    "resnet, the image's gradient": Case(resnet, (1, 3, 64, 48), image=True),
    "resnet, batch norm in training": Case(resnet, (2, 3, 48, 40), train=True),
    "convnext": Case(convnext, (1, 3, 64, 64)),
    "convnext, channels_last": Case(convnext, (1, 3, 64, 64), channels_last=True),
    "densenet": Case(densenet, (1, 3, 48, 40)),
    "densenet, channels_last": Case(densenet, (1, 3, 48, 40), channels_last=True),
    "classifier": Case(classifier),
    "classifier, everything in training": Case(classifier, (2, 3, 40, 40), train=True),
    "inverted residual": Case(lambda: rows(conv(3, 4), InvertedResidual(4)), (1, 3, 32, 40), train=True),
    "dropout": Case(dropping, train=True),
    "group norm": Case(normalised(lambda channels: nn.GroupNorm(2, channels)), (1, 3, 48, 40)),
    "instance norm": Case(normalised(lambda channels: nn.InstanceNorm2d(channels, affine=True)), (2, 3, 48, 48)),
    "frozen parameters": Case(frozen_trunk, train=False),
    "two results": Case(two_results),
    "unet 2-D": Case(lambda: EncoderDecoder(2, 3), (1, 3, 48, 48)),
    "unet 2-D, batch norm in training": Case(lambda: EncoderDecoder(2, 3, norm=True), (2, 3, 32, 32), train=True),
    "unet 3-D": Case(lambda: UNet3D(1, 2, levels=3, filters=4), (1, 1, 16, 20, 24)),
    "unet 3-D, channels_last": Case(lambda: UNet3D(1, 2, levels=2, filters=4), (1, 1, 16, 16, 16), channels_last=True),
    "unet 3-D, instance norm": Case(lambda: UNet3D(1, 2, levels=2, filters=4, norm="instance"), (1, 1, 16, 16, 16)),
    "circular padding": Case(lambda: rows(nn.Conv2d(3, 6, 3, padding=1, padding_mode="circular"), nn.ReLU(),
                                          nn.Conv2d(6, 4, 5, padding=2, padding_mode="reflect"))),
    "upsampling": Case(lambda: rows(conv(3, 4), nn.Upsample(scale_factor=1.7, mode="bilinear"), conv(4, 4))),
    "signal": Case(lambda: rows(nn.Conv1d(2, 4, 5), nn.GELU(), nn.Conv1d(4, 4, 3, 2)), (2, 2, 400)),
}  # fmt: skip


def predicted(net: StreamingModule, x: Tensor, grad: bool) -> int:
    with torch.set_grad_enabled(grad):
        plan = net.plan(x)
    return exact_peak(plan.graph, list(plan.steps)).bytes


def assert_holds(net: StreamingModule, x: Tensor, grad: bool) -> int:
    said, took = predicted(net, x, grad), live_bytes(net, x, grad)
    assert took <= said <= 1.02 * took
    return said


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("tile", [None, 16])
def test_prediction_by_tile(name: str, tile: int | None) -> None:
    case = CASES[name]
    module, x = case.make()
    assert_holds(StreamingModule(module, tile=tile), x, case.grad)


@pytest.mark.parametrize("name", CASES)
def test_prediction_where_graphs_are_kept(name: str) -> None:
    """Every other stage keeps the graphs of all its tiles: many tiles of few kinds."""
    case = CASES[name]
    module, x = case.make()
    with torch.set_grad_enabled(case.grad):
        stages = StreamingModule(module, tile=13).plan(x).stages
    stored = [stage.name for stage in stages if stage.stored]
    assert_holds(StreamingModule(module, tile=13, stored=stored, keep=stored[::2]), x, case.grad)


@pytest.mark.parametrize("name", CASES)
def test_prediction_where_maps_are_on_disk(name: str, tmp_path: Path) -> None:
    """What lives outside is seen by neither; what passes on its way there is by both."""
    case = CASES[name]
    module, x = case.make()
    with torch.set_grad_enabled(case.grad):
        stages = StreamingModule(module, tile=16).plan(x).stages
    stored = [stage.name for stage in stages if stage.stored]
    assert_holds(StreamingModule(module, 16, stored, stored[::3], offload=f"disk:{tmp_path}"), x, case.grad)


@pytest.mark.parametrize(("number", "name"), [*enumerate(name for name in CASES if "channels_last" not in name)])
def test_budget_is_never_exceeded(number: int, name: str) -> None:
    """60 or 25 % of plain's bytes, and the smallest that an error names."""
    case = CASES[name]
    module, x = case.make()
    plain = live_bytes(module, x, case.grad)
    smallest: int | None = None
    for share in ((0.6, 0.25)[number % 2], 0.01):
        net = StreamingModule(module, memory=int(share * plain))
        try:
            said = predicted(net, x, case.grad)
        except BudgetError as error:
            smallest = error.smallest
            break
        assert said <= share * plain
        assert live_bytes(net, x, case.grad) <= said
    assert smallest is not None
    net = StreamingModule(module, memory=smallest)
    assert assert_holds(net, x, case.grad) <= smallest
