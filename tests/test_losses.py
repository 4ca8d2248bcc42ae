"""Losses inside the wrapped module: what they compare is never a stored map, and odd targets give plain's result."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamingcnn import StreamingModule
from streamingcnn.capture import axes_of
from streamingcnn.comparison import compare
from streamingcnn.memory import LiveBytes
from streamingcnn.models import DiceCrossEntropy, UNet3D
from tests.blocks import Net
from tests.networks import BY_NAME
from tests.networks.losses import LOSSES, one_hot

SUMMED = [name for name in LOSSES if not name.endswith("_each")]


def wide(loss: nn.Module) -> nn.Module:
    """A network whose logits (8 channels) are larger than anything before them."""
    return Net(
        lambda net, x, target: net.loss(net.b(F.relu(net.a(x))), target),
        a=nn.Conv2d(1, 4, 3, padding=1),
        b=nn.Conv2d(4, 8, 3, padding=1),
        loss=loss,
    )


@pytest.mark.parametrize("name", SUMMED)
def test_logits_are_never_stored(name: str) -> None:
    network = BY_NAME[f"loss_{name}"]
    module = network.make()
    image, more = network.inputs(2)
    plan = StreamingModule(module, tile=16).plan(image, **more)
    first = next(node for node in plan.graph.locals.values() if node.layer == "a")
    stored = {stage.name for stage in plan.stages if stage.stored}
    before_logits = {first.value.name} | {node.value.name for node in plan.graph.locals.values() if node.op == "tanh"}
    assert stored <= before_logits, plan


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), DiceCrossEntropy()])
@pytest.mark.parametrize("memory", [None, "2MiB"])
def test_live_bytes_stay_below_the_logits(loss: nn.Module, memory: str | None) -> None:
    module = wide(loss)
    net = StreamingModule(module, tile=64) if memory is None else StreamingModule(module, memory=memory)
    x, target = torch.rand(1, 1, 512, 512), torch.randint(0, 8, (1, 512, 512))
    net(x, target).backward()
    with LiveBytes() as live:
        net(x, target).backward()
    logits = 8 * 512 * 512 * 4
    assert live.peak < logits
    with LiveBytes() as live:
        module(x, target).backward()
    assert live.peak > 2 * logits


@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)])
def test_all_pixels_ignored_is_plains_nan(weight: Tensor | None) -> None:
    module = rows3(lambda y, t: F.cross_entropy(y, t, weight, ignore_index=2))
    x, target = torch.randn(3, 3, 21, 17, dtype=torch.float64), torch.full((3, 21, 17), 2)
    net = StreamingModule(copy.deepcopy(module), tile=6)
    net(x, target=target).backward()
    loss = module(x, target=target)
    loss.backward()
    assert net(x, target=target).isnan()
    assert loss.isnan()
    for mine, plain in zip(net.parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, plain.grad, equal_nan=True)


def rows3(loss: object) -> nn.Module:
    return Net(lambda net, x, *, target: loss(net.a(x), target), a=nn.Conv2d(3, 3, 3, padding=1)).double()  # type: ignore[operator]


def test_one_image_ignored_of_three() -> None:
    module = rows3(lambda y, t: F.cross_entropy(y, t, reduction="sum") + F.cross_entropy(y, t))
    target = torch.randint(0, 3, (3, 21, 17))
    target[1] = -100
    x = torch.randn(3, 3, 21, 17, dtype=torch.float64)
    rows = compare(copy.deepcopy(module), StreamingModule(module, tile=6), x, target=target)
    assert max(row.error for row in rows) < 1e-10


def test_a_class_that_is_none_is_an_error_as_in_plain() -> None:
    module = rows3(F.cross_entropy)
    x, target = torch.randn(1, 3, 21, 17, dtype=torch.float64), torch.full((1, 21, 17), 7)
    with pytest.raises((IndexError, RuntimeError)):
        module(x, target=target)
    with pytest.raises((IndexError, RuntimeError)):
        StreamingModule(module, tile=6)(x, target=target)


def test_sums_of_float32_are_as_exact_as_float32_can_say() -> None:
    """A million equal numbers: a float32 accumulator would be off in the fourth digit."""
    module = Net(lambda net, x, target: F.mse_loss(net.a(x), target, reduction="sum"), a=nn.Conv2d(1, 1, 1))
    x, target = torch.full((1, 1, 1024, 1024), 0.1), torch.zeros(1, 1, 1024, 1024)
    exact = (module.a(x).double() ** 2).sum()
    streamed = StreamingModule(module, tile=32)(x, target)
    assert streamed.dtype == torch.float32
    assert abs(streamed.double() - exact) / exact < 1e-7


def test_under_autocast() -> None:
    """Convolutions run in bfloat16, the loss in float32, and both gradients are bfloat16's distance apart at most."""

    def loss(net: Net, x: Tensor, target: Tensor) -> Tensor:
        y = net.b(F.relu(net.a(x)))
        p, g = y.softmax(1), one_hot(target, y.float())
        return F.cross_entropy(y, target) + 1 - (p * g).sum() / (p.sum() + g.sum())

    module = Net(loss, a=nn.Conv2d(3, 4, 3, padding=1), b=nn.Conv2d(4, 3, 3, padding=1))
    x, target = torch.randn(3, 3, 37, 45), torch.randint(0, 3, (3, 37, 45))
    with torch.autocast("cpu", torch.bfloat16):
        exact = copy.deepcopy(module)
        streamed = StreamingModule(copy.deepcopy(module), tile=16)
        plain_loss, streamed_loss = module(x, target), streamed(x, target)
    for one in (plain_loss, streamed_loss, exact(x, target)):
        one.backward()
    assert streamed_loss.dtype == plain_loss.dtype
    torch.testing.assert_close(streamed_loss, plain_loss, rtol=1e-2, atol=0)
    for a, b, c in zip(streamed.parameters(), module.parameters(), exact.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None and c.grad is not None
        assert (a.grad - c.grad).norm() <= 2 * (b.grad - c.grad).norm() + 1e-3 * c.grad.norm()


@pytest.mark.parametrize(
    "shape, image, axes",
    [
        ((2, 1, 9, 8), (2, 3, 9, 8), (2, 3)),
        ((2, 9, 8), (2, 3, 9, 8), (1, 2)),
        ((9, 8), (2, 3, 9, 8), None),
        ((2, 9, 7), (2, 3, 9, 8), None),
        ((2, 8), (2, 3, 8), (1,)),
        ((2, 3, 1, 9, 8), (2, 3, 9, 8), None),
        ((2, 5, 9, 8), (2, 3, 5, 9, 8), (1, 2, 3)),
    ],
)
def test_which_inputs_are_maps(shape: tuple[int, ...], image: tuple[int, ...], axes: tuple[int, ...] | None) -> None:
    assert axes_of(shape, image) == axes


def test_a_gate_as_long_as_the_image_is_still_exact() -> None:
    """(batch, channels) with as many channels as the signal has samples: taken for a map, and right all the same."""
    module = Net(
        lambda net, x, gate: net.a(x) * net.fc(gate)[:, :, None] + gate.mean(1)[:, None, None],
        a=nn.Conv1d(2, 4, 3, padding=1),
        fc=nn.Linear(31, 4),
    ).double()
    x, gate = torch.randn(3, 2, 31, dtype=torch.float64), torch.randn(3, 31, dtype=torch.float64)
    rows = compare(copy.deepcopy(module), StreamingModule(module, tile=8), x, gate)
    assert max(row.error for row in rows) < 1e-10


def paper() -> UNet3D:
    """The 3-D U-Net of the Mesh-TensorFlow experiments, loss inside, batch norm frozen."""
    loss = DiceCrossEntropy([1.0, 2.0, 4.0], dice=0.2)
    return UNet3D(1, 3, levels=4, filters=(32, 64, 128, 256), norm="batch", loss=loss).eval()


@pytest.mark.parametrize("dtype, extent, bound", [(torch.float64, 32, 1e-10), (torch.float32, 64, 1e-3)])
def test_the_large_unet_is_exact(dtype: torch.dtype, extent: int, bound: float) -> None:
    """In float64 a volume of 64 takes two minutes, half of them plain PyTorch's."""
    module = paper().to(dtype)
    x, target = torch.randn(1, 1, extent, extent, extent, dtype=dtype), torch.randint(0, 3, (1, *[extent] * 3))
    rows = compare(copy.deepcopy(module), StreamingModule(module, tile=(extent, extent, extent // 2)), x, target)
    assert max(row.error for row in rows) < bound


@pytest.mark.parametrize("memory", [None, "12GiB"])
def test_the_large_unet_is_planned(memory: str | None) -> None:
    net = StreamingModule(paper(), memory=memory)
    target = torch.empty((1, 512, 512, 512), dtype=torch.long, device="meta")
    plan = net.plan((1, 1, 512, 512, 512), target)
    head = plan.graph.result_of("head")
    assert head is not None
    assert all(not stage.stored for stage in plan.stages if stage.target.shape[1:2] in [(1,), (3,)])
    assert head.value.name not in {stage.name for stage in plan.stages}
    assert memory is None or plan.peak_bytes <= 12 << 30
