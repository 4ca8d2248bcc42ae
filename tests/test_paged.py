"""Tiles that are the same computation run once, and nothing shows it but the time.

Plain is the untouched module on the whole tensor; streamed reads the same pixels from a source that says which of its
blocks are constant. The bound is the project's own: 1e-10 in float64.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamingcnn import StreamingModule, register_rule, signature
from streamingcnn.boxes import Box, full
from streamingcnn.comparison import Row, rows_of, run_step, same_noise
from streamingcnn.constant import constant_blocks_in
from streamingcnn.memory import LiveBytes
from streamingcnn.models import UNet3D, resnet18
from streamingcnn.ops.reductions import Moments, Sum, repeated
from streamingcnn.ops.rule import Call, Rule, Value, along, same_everywhere
from streamingcnn.pages import PagedGradient, PagedMap, Table
from streamingcnn.plan.stages import Stage
from streamingcnn.sources import ArraySource, MaskedSource, ScaledSource, open_image
from tests.background import Known, background, small_cells, with_patch
from tests.blocks import Net, Residual, SqueezeExcite
from tests.networks import NETWORKS, Network

pytestmark = pytest.mark.usefixtures("untried")

BOUND = 1e-10


def errors(net: StreamingModule, plain: nn.Module, image: Tensor, side: int = 4, **more: Any) -> tuple[Row, ...]:
    """One step of both, without the image's own gradient."""
    step = run_step(net, Known(image, side), input_gradients=False, **more)
    reference = run_step(plain, image, input_gradients=False, noise=same_noise(net), **more)
    return rows_of(step, reference)


def assert_exact(rows: tuple[Row, ...], about: object = "") -> None:
    """Below the bound, or rounding of a true 0 (the bias in front of a batch norm), and no more of it than plain's own.

    On a constant background the statistics are of few pixels that differ, and what must cancel is large.
    """
    scale = max((row.norm for row in rows if row.kind == "parameter gradient"), default=0.0)

    def is_rounding(row: Row) -> bool:
        return row.norm < 1e-11 * scale and row.error * max(row.norm, 1e-6 * scale) < 4 * row.norm

    wrong = [row for row in rows if row.error > BOUND and not is_rounding(row)]
    assert not wrong, f"{about}\n" + "\n".join(f"{row.error:9.2g}  {row}" for row in wrong)


@pytest.fixture
def fine() -> Iterator[None]:
    with small_cells():
        yield


@pytest.mark.usefixtures("fine")
@pytest.mark.parametrize("network", [n for n in NETWORKS if not n.large], ids=lambda network: network.name)
def test_every_network_is_exact_on_an_image_with_constant_parts(network: Network) -> None:
    module = network.make()
    image, more = network.inputs(2)
    first = along(image, (2,), ((image.shape[2] // 3, image.shape[2]),))
    first.copy_(background(*first.shape))
    last = along(image, (image.dim() - 1,), ((0, image.shape[-1] // 4),))
    last.copy_(background(*last.shape))
    plain = copy.deepcopy(module)
    assert_exact(errors(StreamingModule(module, tile=8), plain, image, 2, **more))


# ----------------------------------------------------------------------- networks in which tiles must be shared


def sequence(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: copy.deepcopy(nn.Sequential(*layers))


def unet(mode: str) -> nn.Module:
    """Two levels, a skip, and the up-sampling that the mode names."""

    def compute(net: Net, x: Tensor) -> Tensor:
        top = torch.tanh(net.first(x))
        low = torch.tanh(net.low(F.max_pool2d(top, 2)))
        if mode == "transposed":
            up = net.up(low)
        else:
            up = F.interpolate(low, scale_factor=2, mode=mode, align_corners=False if mode == "bilinear" else None)
        return net.last(torch.cat([top, up], 1))

    return Net(
        compute,
        first=nn.Conv2d(2, 3, 3, padding=1),
        low=nn.Conv2d(3, 3, 3, padding=1),
        up=nn.ConvTranspose2d(3, 3, 2, stride=2) if mode == "transposed" else nn.Identity(),
        last=nn.Conv2d(6, 2, 3, padding=1),
    )


def top_pixels(net: Net, x: Tensor) -> Tensor:
    """The mean of the ten largest pixels of each channel."""
    return net.trunk(x).flatten(2).topk(10, 2).values.mean(2)


def squared_error(net: Net, x: Tensor) -> Tensor:
    """A loss between two maps, which is a sum over tiles."""
    return F.mse_loss(net.b(torch.tanh(net.a(x))), x)


def dice(net: Net, x: Tensor) -> Tensor:
    """Several sums over one map, taken together."""
    p, q = torch.sigmoid(net.b(torch.tanh(net.a(x)))), (x > 0.5).to(x.dtype)
    return (1 - 2 * (p * q).sum((2, 3)) / (p.sum((2, 3)) + q.sum((2, 3)) + 1)).mean()


def looked_up(net: Net, x: Tensor) -> Tensor:
    """Cross-entropy against classes that are made of the image, one in three ignored."""
    classes = (x[:, 0] > 0.5).long() + (x[:, 1] > 0.5).long()
    return F.cross_entropy(net.b(torch.tanh(net.a(x))), classes, ignore_index=1)


def with_loss(compute: Callable[[Net, Tensor], Tensor], channels: int = 2) -> Callable[[], nn.Module]:
    return lambda: Net(compute, a=nn.Conv2d(2, 3, 3, padding=1), b=nn.Conv2d(3, channels, 3, padding=1))


def normed(norm: nn.Module) -> Callable[[], nn.Module]:
    return sequence(nn.Conv2d(2, 4, 3, padding=1), norm, nn.ReLU(), nn.Conv2d(4, 3, 3, 2, 1), nn.Tanh())


SHARED: dict[str, Callable[[], nn.Module]] = {
    "chain": sequence(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 2, 3)),
    "max pool": sequence(nn.Conv2d(2, 3, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(3, 2, 3, padding=1)),
    "average pool": sequence(nn.Conv2d(2, 3, 5, padding=2), nn.AvgPool2d(3, 2, 1), nn.Conv2d(3, 2, 3, padding=1)),
    "residual": lambda: nn.Sequential(Residual(2, 4), Residual(4, 6, 2)).eval(),
    # An image of background alone has no variance, and 1 / sqrt(eps) is what a norm makes of rounding.
    "batch norm": normed(nn.BatchNorm2d(4, eps=0.1)),
    "group norm": normed(nn.GroupNorm(2, 4, eps=0.1)),
    "instance norm": normed(nn.InstanceNorm2d(4, eps=0.1)),
    "squeeze-excite": sequence(nn.Conv2d(2, 4, 3, padding=1), SqueezeExcite(4), nn.Conv2d(4, 2, 3, padding=1)),
    "global mean": sequence(
        nn.Conv2d(2, 4, 3, 2, 1), nn.Tanh(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    ),
    "top-k": lambda: Net(top_pixels, trunk=nn.Sequential(nn.Conv2d(2, 4, 3, 2, 1), nn.Tanh(), nn.Conv2d(4, 2, 3))),
    "squared error": with_loss(squared_error),
    "dice": with_loss(dice),
    "cross-entropy": with_loss(looked_up, 3),
    "transposed": lambda: unet("transposed"),
    "bilinear": lambda: unet("bilinear"),
    "nearest": lambda: unet("nearest"),
    "dilated": sequence(
        nn.Conv2d(2, 3, 3, padding=2, dilation=2), nn.Tanh(), nn.Conv2d(3, 2, 3, padding=3, dilation=3)
    ),
    "mirrored": sequence(nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), nn.Tanh(), nn.Conv2d(3, 2, 3)),
    "circular": sequence(nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), nn.Tanh(), nn.Conv2d(3, 2, 3)),
    "shuffle": sequence(nn.Conv2d(2, 8, 3, 2, 1), nn.PixelShuffle(2), nn.Conv2d(2, 2, 3, padding=1)),
}

#: (name, an image of 2 channels and 96 x 128 pixels)
IMAGES: dict[str, Callable[[int], Tensor]] = {
    "a patch": lambda batch: with_patch(background(batch, 2, 96, 128), (30, 41), (50, 75)),
    "all background": lambda batch: background(batch, 2, 96, 128),
    "background at the borders": lambda batch: with_patch(background(batch, 2, 96, 128), (16, 80), (24, 64)),
    "two constants": lambda batch: torch.cat(
        [with_patch(background(batch, 2, 96, 64), (0, 20), (0, 9)), background(batch, 2, 96, 64, value=-1.0)], 3
    ),
}


def made(name: str) -> tuple[nn.Module, nn.Module]:
    """A network of the table in float64, and its copy."""
    torch.manual_seed(1)
    module = SHARED[name]().double()
    return module, copy.deepcopy(module)


@pytest.mark.usefixtures("fine")
@pytest.mark.parametrize("name", SHARED)
def test_shared_tiles_are_exact(name: str) -> None:
    """Four images of two, by tiles that divide the image, and so lie on the grid of every map, and by others."""
    module, plain = made(name)
    net = StreamingModule(module, tile=16)
    for image, make in IMAGES.items():
        for net.tile in (16, 21):
            assert_exact(errors(net, plain, make(2)), (image, net.tile))
            assert net.last_run is not None
            assert net.tile == 21 or net.last_run.run < net.last_run.tiles, (image, net.last_run)


@pytest.mark.usefixtures("fine")
def test_all_background_runs_a_tile_per_kind_of_border() -> None:
    """Corner, edge and middle along each axis: nine tiles, however many there are."""
    module = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 2, 3, padding=1)).double()
    net = StreamingModule(module, tile=8, stored=["0"])
    net(Known(background(1, 2, 160, 160)))
    assert net.last_run is not None
    assert (net.last_run.tiles, net.last_run.run) == (800, 18)
    assert str(net.last_run) == "18 of 800 tiles run, 98 % saved"


@pytest.mark.usefixtures("fine")
@pytest.mark.parametrize("keep", [(), ("0",), ("0", "2")], ids=str)
@pytest.mark.parametrize("retain", [False, True])
def test_keep_and_retain_graph(keep: tuple[str, ...], retain: bool) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 2, 3, 2)).double()
    plain = copy.deepcopy(module)
    net = StreamingModule(module, tile=16, stored=["0", "2"], keep=keep)
    image = IMAGES["a patch"](2)
    y, expected = net(Known(image)), plain(image)
    given = torch.randn_like(expected)
    for _ in range(1 + retain):
        found = torch.autograd.grad(y, list(module.parameters()), given, retain_graph=retain)
        wanted = torch.autograd.grad(expected, list(plain.parameters()), given, retain_graph=retain)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert net.last_run is not None
    assert net.last_run.saved > 0.5


@pytest.mark.usefixtures("fine")
def test_without_gradients_the_result_is_the_same() -> None:
    module, plain = made("transposed")
    net = StreamingModule(module, tile=16)
    image = IMAGES["a patch"](1)
    with torch.no_grad():
        y = net(Known(image))
        torch.testing.assert_close(y, plain(image), rtol=1e-12, atol=1e-12)
    assert y.shape == (1, 2, 96, 128)
    assert net.last_run is not None
    assert net.last_run.saved > 0.3


@pytest.mark.usefixtures("fine")
def test_stored_maps_of_several_readers_and_a_changed_result() -> None:
    """A paged map that is returned and also read: the returned tensor is its own, and may be changed."""

    def compute(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        a = torch.tanh(net.a(x))
        return a, net.b(a)

    module = Net(compute, a=nn.Conv2d(2, 3, 3, padding=1), b=nn.Conv2d(3, 2, 3, padding=1)).double()
    plain = copy.deepcopy(module)
    image = IMAGES["a patch"](1)
    a, b = StreamingModule(module, tile=16)(Known(image))
    loss = a.square().sum() + b.square().sum()
    with torch.no_grad():
        a.clone().zero_()
    loss.backward()
    a, b = plain(image)
    (a.square().sum() + b.square().sum()).backward()
    for p, q in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("fine")
@pytest.mark.parametrize("shape, tile", [((2, 512), 32), ((1, 32, 32, 48), 8)], ids=["1-D", "3-D"])
def test_other_numbers_of_axes(shape: tuple[int, ...], tile: int) -> None:
    if len(shape) == 2:
        module: nn.Module = nn.Sequential(nn.Conv1d(2, 3, 5, padding=2), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(3, 2, 3))
    else:
        module = UNet3D(1, 2, levels=2, filters=2)
    module = module.double()
    plain = copy.deepcopy(module)
    net = StreamingModule(module, tile=tile)
    image = with_patch(background(2, *shape), *[(3, 10)] * (len(shape) - 1))
    assert_exact(errors(net, plain, image))
    assert net.last_run is not None
    assert net.last_run.saved > 0.2


# ----------------------------------------------------------------------------------- what must not be shared


def coordinates(net: Net, x: Tensor) -> Tensor:
    """A map of its own coordinates, added."""
    rows = torch.linspace(0, 1, x.shape[2], dtype=x.dtype).view(-1, 1)
    return net.b(net.a(x) + rows)


@torch.library.custom_op("paged_test::double", mutates_args=())
def double(x: Tensor) -> Tensor:
    return x * 2


@double.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


double.register_autograd(lambda ctx, gradient: gradient * 2)


@register_rule(torch.ops.paged_test.double.default)
def _double_rule(call: Call) -> Rule:
    x = call["x"]
    assert x.axes is not None
    return Rule((same_everywhere(x),), lambda tile: torch.ops.paged_test.double(tile.inputs[0]), x.axes)


PLACED: dict[str, Callable[[], nn.Module]] = {
    "dropout": sequence(nn.Conv2d(2, 3, 3, padding=1), nn.Dropout(0.3), nn.Conv2d(3, 2, 3, padding=1)),
    "coordinates": lambda: Net(coordinates, a=nn.Conv2d(2, 3, 3, padding=1), b=nn.Conv2d(3, 2, 3, padding=1)),
    "a custom rule that does not say": lambda: Net(
        lambda net, x: torch.ops.paged_test.double(net.a(x)), a=nn.Conv2d(2, 2, 1)
    ),
}


@pytest.mark.usefixtures("fine")
@pytest.mark.parametrize("name", PLACED)
def test_what_looks_at_coordinates_is_not_shared(name: str) -> None:
    module = PLACED[name]().double()
    plain = copy.deepcopy(module)
    net = StreamingModule(module, tile=16)
    assert_exact(errors(net, plain, IMAGES["all background"](1)))
    assert net.last_run is not None
    plan = net.plan(Known(IMAGES["all background"](1)))
    last = plan.stages[-1]
    assert plan.sharing.count(last) == last.tiles


def test_an_image_whose_gradient_is_wanted_is_not_shared() -> None:
    module = nn.Conv2d(1, 1, 3, padding=1)
    net = StreamingModule(module, tile=64)
    x = torch.zeros(1, 1, 512, 512)
    net(x)
    assert net.last_run is not None
    assert net.last_run.saved > 0.5
    x.requires_grad_()
    y = net(x)
    assert net.last_run.saved == 0
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, torch.autograd.grad(module(x).sum(), x)[0])


def test_without_constant_blocks_the_plan_is_as_it_was() -> None:
    net = StreamingModule(nn.Conv2d(3, 2, 3, padding=1), tile=50)
    x = torch.rand(1, 3, 300, 300)
    plan = net.plan(x)
    assert plan.stages[0].tile == (50, 50)
    assert plan is net.plan(x)
    net(x)
    assert str(net.last_run) == "36 of 36 tiles run, 0 % saved"


# --------------------------------------------------------------------------------------------------- memory


def test_shared_pages_are_counted_once() -> None:
    """Forward and backward of an image of background take a few pages, and nothing of the image's size."""
    net = StreamingModule(
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.AdaptiveAvgPool2d(1)),
        tile=64,
        stored=["0"],
    )
    source = MaskedSource(Texture(2048), np.zeros((16, 16), bool), 0.5)
    net(source).sum().backward()  # what is made once and remembered
    live = LiveBytes()
    with live:
        net(source).sum().backward()
    assert live.peak < 4 << 20 < 8 * 2048 * 2048 * 4
    assert live.current == 0 or live.current < 1 << 16
    plan = net.plan(source)
    assert plan.sharing.map_bytes(plan.stages[0].target) == 9 * 8 * 64 * 64 * 4
    assert plan.tiles_run == 18


class Fresh(Known):
    """Each read is memory of its own, as of a file."""

    def read(self, box: Box) -> Tensor:
        return super().read(box).clone()


def live_peak(net: StreamingModule, image: Any) -> int:
    net.zero_grad(set_to_none=True)
    net(image)  # what is made once and remembered
    gc.collect()
    with LiveBytes() as live:
        y = net(image)
        torch.autograd.backward(y, torch.ones_like(y))
    return live.peak


@pytest.mark.usefixtures("fine")
@pytest.mark.parametrize("name", ["chain", "residual", "batch norm", "global mean", "bilinear", "squeeze-excite"])
@pytest.mark.parametrize("kept", [False, True])
def test_predicted_bytes_are_those_of_the_pages(name: str, kept: bool) -> None:
    """Never below what a step takes; a little above where tiles of one kind differ in what they find to add to."""
    net = StreamingModule(made(name)[0], tile=16)
    image = Fresh(IMAGES["a patch"](2))
    stored = [stage.name for stage in net.plan(image).stages if stage.stored]
    if kept:
        net = StreamingModule(net.module, 16, stored, stored)
    plan, took = net.plan(image), live_peak(net, image)
    assert plan.tiles_run < plan.tiles
    assert took <= plan.peak_bytes <= 1.05 * took


def test_a_source_takes_what_is_read_of_it() -> None:
    """Without constant parts: a box of a source is memory of its own, one of a tensor is not."""
    net = StreamingModule(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)), tile=64, stored=["2"])
    image = torch.rand(1, 3, 200, 200)
    source = Fresh(image)
    took = live_peak(net, source)
    assert took <= net.plan(source).peak_bytes <= 1.02 * took
    assert net.plan(image).peak_bytes < net.plan(source).peak_bytes


def masked(side: int) -> MaskedSource:
    """A ninth of it is not background."""
    tissue = np.zeros((12, 12), bool)
    tissue[4:8, 5:9] = True
    return MaskedSource(Texture(side), tissue, 0.5)


def test_a_budget_counts_pages_and_not_the_dense_maps() -> None:
    """What dense maps would take many times over is planned, held, and exact."""
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1)]
    module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1))
    source, budget = masked(768), 5 << 20
    net = StreamingModule(module, memory=budget)
    plan = net.plan(source)
    assert plan.peak_bytes <= budget
    assert net.plan(masked(3072)).seconds < 0.6 * net.plan((1, 3, 3072, 3072)).seconds
    assert live_peak(net, source) <= plan.peak_bytes
    assert net.last_run is not None
    assert net.last_run.saved > 0.1
    double = copy.deepcopy(module).double()
    streamed = StreamingModule(copy.deepcopy(double), memory=2 * budget)
    image = Known(source.read(full((768, 768)))[None].double(), 64)
    assert_exact(rows_of(run_step(streamed, image, input_gradients=False),
                         run_step(double, image.read(full((768, 768))), input_gradients=False)))  # fmt: skip


def test_paged_maps_stay_on_the_device(tmp_path: Path) -> None:
    """Shared pages beside a plan that puts maps on disk: exact, and the report says where each map is."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 4, 3, padding=1), nn.Tanh(),
                           nn.Conv2d(4, 2, 3)).double()  # fmt: skip
    net = StreamingModule(copy.deepcopy(module), 64, ("1", "3"), offload=f"disk:{tmp_path}")
    x = masked(768).read(full((768, 768)))[None].double()
    image = Known(x, 64)
    assert_exact(rows_of(run_step(net, image, input_gradients=False), run_step(module, x, input_gradients=False)))
    assert net.last_run is not None
    assert net.last_run.saved > 0.3
    assert "on disk" not in str(net.plan(image))
    assert str(net.plan(x.shape)).count("on disk") == 3  # two maps, and their sum
    assert live_peak(net, image) <= 1.05 * net.plan(image).peak_bytes


class Texture:
    """Pixels that follow from their coordinates."""

    axes, dtype = "CYX", torch.float32

    def __init__(self, side: int) -> None:
        self.shape = (3, side, side)
        self.read_boxes: list[Box] = []

    def read(self, box: Box) -> Tensor:
        self.read_boxes.append(box)
        y, x = (torch.arange(low, high, dtype=torch.float32) for low, high in box)
        return torch.stack([torch.sin(k + y[:, None] / 3 + x / 5) for k in range(3)])


# --------------------------------------------------------------------------------------------------- sources


def test_a_source_gives_what_its_tensor_gives() -> None:
    module = resnet18(num_classes=3).double().eval()
    plain = copy.deepcopy(module)
    image = torch.randn(1, 3, 70, 90, dtype=torch.float64)
    net = StreamingModule(module, tile=32)
    step = run_step(net, ArraySource(image[0]), input_gradients=False)
    assert_exact(rows_of(step, run_step(plain, image, input_gradients=False)))


def test_backward_reads_again_and_nothing_is_read_as_a_whole() -> None:
    source = Texture(256)
    net = StreamingModule(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 3)), tile=64)
    y = net(source)
    count = len(source.read_boxes)
    assert count >= 16
    y.sum().backward()
    assert len(source.read_boxes) == 2 * count
    assert max(box[0][1] - box[0][0] for box in source.read_boxes) < 80
    assert net.plan(source).tiles >= 16


def test_raw_pixels_are_scaled_by_the_module_or_by_the_source() -> None:
    raw = torch.randint(0, 256, (3, 64, 80), dtype=torch.uint8)
    conv = nn.Conv2d(3, 2, 3)

    class Raw(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = self.conv(x.float() / 255)
            return made

    expected = conv(raw[None].float() / 255)
    inside = StreamingModule(Raw(), tile=32)(ArraySource(raw))
    outside = StreamingModule(conv, tile=32)(ScaledSource(ArraySource(raw), 1 / 255))
    torch.testing.assert_close(inside, expected)
    torch.testing.assert_close(outside, expected)


def test_scaled_source_is_mean_and_deviation_per_channel() -> None:
    raw = torch.randint(0, 256, (3, 20, 20), dtype=torch.uint8)
    source = ScaledSource(ArraySource(raw), 1 / 255, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0))
    shift, width = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1)
    torch.testing.assert_close(source.read(((2, 9), (0, 20))), ((raw.float() / 255 - shift) / width)[:, 2:9])
    assert source.constant_blocks() is None


def test_masked_source_is_fill_outside_and_reads_only_inside() -> None:
    inner = Texture(100)
    mask = np.zeros((4, 4), bool)
    mask[1, 2] = mask[2, 2] = mask[3, 3] = True
    source = MaskedSource(inner, mask, fill=(0.1, 0.2, 0.3))
    whole = inner.read(full((100, 100)))
    pixels = torch.from_numpy(mask).repeat_interleave(25, 0).repeat_interleave(25, 1)
    expected = torch.where(pixels, whole, torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1))
    inner.read_boxes.clear()
    torch.testing.assert_close(source.read(full((100, 100))), expected)
    assert inner.read_boxes == [((25, 100), (50, 100))]
    torch.testing.assert_close(source.read(((20, 60), (45, 80))), expected[:, 20:60, 45:80])
    inner.read_boxes.clear()
    assert torch.equal(source.read(((0, 20), (0, 100))), expected[:, :20])
    assert inner.read_boxes == []
    constant = source.constant_blocks()
    assert constant is not None and constant.share == 13 / 16


def test_a_mask_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"need labels of shape \(5, 5\); got \(4, 4\)"):
        MaskedSource(Texture(100), np.ones((4, 4), bool), 0.0, steps=(20, 20))


def test_a_source_that_does_not_keep_its_word_is_named() -> None:
    class Short(Texture):
        def read(self, box: Box) -> Tensor:
            return super().read(box)[:, 1:]

        def __repr__(self) -> str:
            return "Short()"

    with pytest.raises(ValueError, match=r"Short\(\) gave \(3, 63, 64\) torch.float32 for the box"):
        StreamingModule(nn.Conv2d(3, 1, 1), tile=64)(Short(128))


def test_a_slide_streams_from_its_file(tmp_path: Any) -> None:
    from streamingcnn.synthetic import make_slide, write_slide

    path = tmp_path / "slide.tif"
    write_slide(make_slide(3, tumour=False, size=(512, 512)), path)
    slide = open_image(path)
    net = StreamingModule(nn.Conv2d(3, 2, 3, 2, 1), tile=128)
    image = ScaledSource(slide)
    torch.testing.assert_close(net(image), net.module(slide.read_all()[None].float() / 255))


# ------------------------------------------------------------------------------------- the parts by themselves


def test_constant_blocks_of_a_tensor() -> None:
    image = torch.rand(2, 3, 300, 260)
    assert constant_blocks_in(image, (2, 3)) is None
    image[:, :, 64:, :128] = torch.rand(2, 3, 1, 1)
    image[:, :, 128:, 256:] = 0.5
    image[:, :, 299, 259] += 1
    image[0, 1, 200, 70] = 7.0  # in the middle of nothing that is sampled first
    blocks = constant_blocks_in(image, (2, 3))
    assert blocks is not None
    labels = blocks.labels
    assert labels.shape == (5, 5)
    assert labels[0].tolist() == [-1] * 5
    assert (labels[1:, 0] == labels[1, 0]).all()
    assert labels[1, 0] >= 0
    assert labels[3, 1] == -1
    assert labels[1, 1] == labels[1, 0]
    assert labels[2, 4] == labels[3, 4] != labels[1, 0]
    assert labels[4, 4] == -1
    assert blocks.share == 9 / 25


def test_nan_is_not_constant() -> None:
    assert constant_blocks_in(torch.full((1, 1, 512, 512), torch.nan), (2, 3)) is None


def test_a_state_repeated_is_the_state_of_so_many_tiles() -> None:
    value = Value("x", (2, 4, 30, 30), torch.float64, (2, 3))
    tile = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    for reduction in (
        Sum(value, (2, 3), False, 1, torch.float64),
        Moments(value, over_batch=True),
        Moments(value, over_batch=False, groups=2),
    ):
        for times in (1, 2, 7, 16):
            state = reduction.partial(tile)
            several = state
            for _ in range(times - 1):
                several = reduction.merge(several, state)
            found = reduction.finish(repeated(reduction, state, times))
            torch.testing.assert_close(found, reduction.finish(several), rtol=1e-12, atol=1e-12)


def test_pages_against_a_dense_map() -> None:
    """Random boxes of a map whose blocks share pages, read, and added to."""
    value = Value("x", (1, 2, 11, 14), torch.float64, (2, 3))
    table = Table((11, 14), (4, 5), np.array([[0, 0, 1], [0, 0, 1], [2, 2, 3]]))
    paged, dense = PagedMap(value, table), torch.zeros(value.shape, dtype=torch.float64)
    tiles: dict[int, Tensor] = {}
    for place in np.ndindex(3, 3):
        page, box = int(table.pages[place]), table.block(place)
        if page not in tiles:
            tiles[page] = torch.randn(value.shape_at(box), dtype=torch.float64)
            paged.write(box, tiles[page])
        along(dense, (2, 3), box).copy_(tiles[page])
    assert torch.equal(paged.tensor, dense)
    draw = np.random.default_rng(0)
    gradient, sums = PagedGradient(value, table), {page: torch.zeros_like(tile) for page, tile in tiles.items()}
    for _ in range(30):
        (a, b), (c, d) = (sorted(draw.choice(extent + 1, 2, replace=False).tolist()) for extent in (11, 14))
        box = ((a, b), (c, d))
        assert torch.equal(paged.read(box), dense[:, :, a:b, c:d])
        added = torch.randn(value.shape_at(box), dtype=torch.float64)
        gradient.add(box, added)
        spread = torch.zeros_like(dense)
        along(spread, (2, 3), box).copy_(added)
        for place in np.ndindex(3, 3):
            sums[int(table.pages[place])] += along(spread, (2, 3), table.block(place))
    for place in ((0, 0), (0, 2), (2, 0), (2, 2)):
        torch.testing.assert_close(gradient.take(table.block(place)), sums[int(table.pages[place])])


def test_tiles_of_one_signature_read_the_same_places() -> None:
    """The walk along an axis against the programs themselves: equal codes, equal programs but for a shift."""
    module = nn.Sequential(Residual(2, 3), nn.MaxPool2d(3, 2, 1), Residual(3, 3), nn.Conv2d(3, 2, 3, padding=2)).eval()
    net = StreamingModule(module, tile=4, stored=["1"])
    for stage in net.plan((1, 2, 37, 45)).stages:
        axes = [signature.axis_of(stage, axis, step) for axis, step in enumerate(stage.tile)]
        places = [range(len(axis.codes)) for axis in axes]
        shapes: dict[tuple[int, int], set[Any]] = {}
        for i in places[0]:
            for j in places[1]:
                box = Table(stage.target.extents, stage.tile, np.empty(0, np.int64)).block((i, j))
                shapes.setdefault((int(axes[0].codes[i]), int(axes[1].codes[j])), set()).add(_shape_of(stage, box))
        assert all(len(found) == 1 for found in shapes.values())
        assert len(shapes) < len(places[0]) * len(places[1])


def _shape_of(stage: Stage, box: Box) -> Any:
    """A program, each box told from the corner of the first one of its value."""
    program = stage.program(box)
    corners: dict[str, Box] = {}

    def told(name: str, part: Box) -> Any:
        corner = corners.setdefault(name, part)
        return name, tuple((low - c, high - c) for (low, high), (c, _) in zip(part, corner, strict=True))

    reads = tuple(told(value.name, part) for value, part in program.reads)
    steps = []
    for step in program.steps:
        steps.append((told(step.node.value.name, step.box), step.inputs))
    return reads, tuple(steps)
