"""One test per bug that was found, with a sentence on its cause."""

from __future__ import annotations

import copy
import dataclasses
import gc
import math
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader

from streamingcnn import StreamingModule, open_image
from streamingcnn.boxes import Box
from streamingcnn.capture import capture
from streamingcnn.check import check
from streamingcnn.cli.evaluate import answered
from streamingcnn.comparison import compare, relative_errors
from streamingcnn.distributed.ownership import Division
from streamingcnn.distributed.planning import Ranks
from streamingcnn.memory import LiveBytes
from streamingcnn.models import GMIC, ResNet, resnet18
from streamingcnn.models.gmic import GMICLoss
from streamingcnn.models.gmic.depth import by_slices
from streamingcnn.models.resnet import BasicBlock
from streamingcnn.ops.reductions import Moments
from streamingcnn.ops.rule import Value
from streamingcnn.plan.choose import choose_tiles
from streamingcnn.plan.peak import exact_peak
from streamingcnn.plan.plan import make_plan
from streamingcnn.plan.rates import BUILT_IN_RATES, Rate
from streamingcnn.plan.search import BudgetError
from streamingcnn.plan.stages import Stage, build_steps
from streamingcnn.plan.times import Times
from streamingcnn.sources import ReadError
from streamingcnn.training.settings import Settings
from tests.blocks import Net


def test_wrapping_leaves_a_spectral_norm_where_it_is() -> None:
    """The probe read ``conv.weight`` for its dtype; a spectral norm takes a step of power iteration when read."""

    class Net(nn.Module):  # code of its own, so that wrapping tries it
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3))

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = self.conv(x)
            return made

    net = Net()
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    StreamingModule(net)
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())


def test_tiles_die_without_the_garbage_collector() -> None:
    """A nested function that called itself was a reference cycle, so tiles lived until the collector came by."""
    net = StreamingModule(nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3)), tile=64)
    x = torch.rand(1, 1, 512, 512)
    net(x).sum().backward()
    gc.disable()
    try:
        with LiveBytes() as live:
            net(x).sum().backward()
    finally:
        gc.enable()
    # The maps of the eight channels are 8 MiB each; the result and its gradient are 1 MiB each.
    assert live.peak < 24 << 20


def test_dropout_in_place_uses_the_hash() -> None:
    """``dropout_`` decomposed into random numbers over the whole map, which a tile cannot reproduce."""
    net = StreamingModule(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Dropout(0.5, inplace=True), nn.Conv2d(2, 1, 1)), tile=8)
    x = torch.rand(1, 1, 30, 30)
    graph = net.plan(x).graph
    assert graph.noises == 1
    assert "native_dropout" in {node.op for node in graph.locals.values()}


def test_a_loss_between_maps_is_not_refused() -> None:
    """``F.mse_loss`` calls ``broadcast_tensors`` first, for which there was no rule."""

    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x: Tensor, target: Tensor) -> Tensor:
            return F.mse_loss(self.conv(x), target)

    net = WithLoss().double()
    x, target = torch.rand(2, 1, 1, 20, 20, dtype=torch.float64)
    rows = compare(copy.deepcopy(net), StreamingModule(net, tile=6), x, target)
    assert max(row.error for row in rows) < 1e-10


@pytest.mark.timeout(60)
@pytest.mark.parametrize("extent", [7, 13, 50])
def test_choosing_a_tile_ends(extent: int) -> None:
    """Cutting 7 pixels into one piece more may give pieces of the same size: the loop then never ended."""
    graph = capture(nn.Conv2d(1, 512, 3, padding=1), (torch.empty(1, 1, extent, extent),), {})
    stages = [step for step in build_steps(graph, set()) if isinstance(step, Stage)]
    choose_tiles(graph, stages, None, limit=1)
    assert all(tile >= 1 for stage in stages for tile in stage.tile)


def test_statistics_are_counted_at_their_own_size() -> None:
    """Scale and shift of a batch norm carried the shape of the map: plans could not be printed, or were refused."""
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 1, 1))
    plan = StreamingModule(net, tile=64).plan((1, 3, 256, 256))
    assert "predicted peak" in str(plan)
    maps = 2 * 16 * 256 * 256 * 4  # the convolution's result and its gradient
    assert plan.peak_bytes < 1.6 * maps


def test_a_dilated_window_at_the_border_needs_only_what_it_taps() -> None:
    """A window of dilation 3 that starts one pixel before the map was said to need pixel 0, which it skips."""
    graph = capture(nn.Conv1d(1, 1, 3, dilation=3, padding=1), (torch.empty(1, 1, 16),), {})
    (node,) = graph.locals.values()
    assert node.rule.reads[0].need(((0, 1),)) == (((2, 6),),)


def test_a_bias_alone_has_its_gradient() -> None:
    """A tile that sees only padding runs no convolution; its bias must still be reached."""
    net = nn.Conv1d(1, 2, 1, padding=4).double()
    x = torch.rand(1, 1, 6, dtype=torch.float64)
    rows = compare(copy.deepcopy(net), StreamingModule(net, tile=2), x)
    assert max(row.error for row in rows) < 1e-10


def test_constants_made_of_others_have_rates_of_their_own() -> None:
    """``dataclasses.replace`` handed the table of looked up rates on, so that the copy kept its model's."""
    sizes, kind = np.array([1e6]), "copy"
    times = Times(BUILT_IN_RATES["contiguous"])
    before, _ = times.rate([kind], sizes)
    doubled = Rate(*(tuple(2 * rate for rate in one) for one in (times.rates[kind].forward,) * 2))
    assert dataclasses.replace(times, rates={kind: doubled}).rate([kind], sizes)[0] == pytest.approx(2 * before)


def test_a_budget_holds_the_gradients_of_parameters() -> None:
    """They were left out of the peak: a ResNet with a budget of 30 MiB took 61."""
    net = nn.Sequential(*[nn.Conv2d(128, 128, 3, padding=1) for _ in range(12)])
    x = torch.rand(1, 128, 8, 8)
    gradients = 4 * sum(p.numel() for p in net.parameters())
    with pytest.raises(BudgetError):
        StreamingModule(net, memory=gradients).plan(x)
    with LiveBytes() as live:
        StreamingModule(net, memory=gradients * 3 // 2)(x).mean().backward()
    assert gradients <= live.peak <= gradients * 3 // 2


def test_the_bytes_of_a_dropout_are_known() -> None:
    """Its mask was made on the CPU whatever the tile's device: a plan did not see it."""
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Dropout(0.5))
    plan = StreamingModule(net, tile=128).plan((1, 1, 128, 128))
    # The result, its gradient, the convolution's result, and words of 32 bits of the hash.
    assert exact_peak(plan.graph, list(plan.steps)).bytes >= 5 * 4 * 128**2


def test_a_border_that_is_all_padding_has_its_bytes() -> None:
    """Such a tile was filled on the graph's own device, and met tensors without numbers in a prediction."""
    net = nn.Sequential(nn.ConstantPad2d(40, 1.0), nn.Conv2d(1, 2, 3))
    plan = StreamingModule(net, tile=16).plan((1, 1, 32, 32))
    assert exact_peak(plan.graph, list(plan.steps)).bytes > 0


def test_a_damaged_region_does_not_spoil_the_boxes_read_beside_it(tmp_path: Path) -> None:
    """OpenSlide answers nothing more through a handle that has met an error; the threads beside it failed as well."""
    pixels = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    how: Any = {"tile": (256, 256), "photometric": "rgb", "compression": "adobe_deflate", "metadata": None}
    tifffile.imwrite(tmp_path / "slide.tif", pixels, **how)
    content = bytearray((tmp_path / "slide.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "slide.tif") as file:
        offset, count = file.pages[0].dataoffsets[3], file.pages[0].databytecounts[3]
    content[offset : offset + count] = bytes(count)
    (tmp_path / "slide.tif").write_bytes(content)
    slide = open_image(tmp_path / "slide.tif")
    good, bad = ((0, 256), (0, 256)), ((300, 310), (300, 310))

    def read(box: Box) -> bool:
        try:
            return bool((slide.read(box) == torch.from_numpy(pixels[:256, :256]).permute(2, 0, 1)).all())
        except ReadError:
            return box == bad

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, [good, bad, good, good] * 20))


def test_a_batch_norm_over_vectors_trains_inside_the_module() -> None:
    """It kept the running statistics for its gradient, and they were updated in place before the backward pass."""
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 2)]
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), *head).double()
    x = torch.randn(3, 3, 19, 16, dtype=torch.float64)
    assert max(row.error for row in compare(copy.deepcopy(module), StreamingModule(module, tile=6), x)) <= 1e-10


def test_a_write_behind_an_idle_dropout_reaches_its_input() -> None:
    """A dropout that drops nothing returns its input itself; export took the result for another tensor."""

    def forward(net: Net, x: Tensor) -> Tensor:
        y = net.conv(x)
        torch.relu_(torch.nn.functional.dropout(y, training=False))
        return y

    module = Net(forward, conv=nn.Conv2d(3, 4, 3)).double()
    x = torch.randn(3, 3, 19, 16, dtype=torch.float64)
    assert max(row.error for row in compare(copy.deepcopy(module), StreamingModule(module, tile=6), x)) <= 1e-10


def test_linear_sampling_by_a_factor_that_leaves_the_size() -> None:
    """ATen leaves an axis alone whose size stays (2 x 1.3 is 2), and we moved its pixels by the factor."""

    def forward(net: Net, x: Tensor) -> Tensor:
        return F.interpolate(net.conv(x), scale_factor=1.3, mode="bilinear")

    module = Net(forward, conv=nn.Conv2d(3, 4, 3)).double()
    x = torch.randn(2, 3, 4, 16, dtype=torch.float64)
    assert max(row.error for row in compare(copy.deepcopy(module), StreamingModule(module, tile=4), x)) <= 1e-10


def test_a_network_that_returns_its_input() -> None:
    """Without a layer that computes there was no stage, and the runner asked for the first one."""
    unused = Net(lambda net, x: (net.conv(x), x)[1], conv=nn.Conv2d(3, 4, 3))
    for module in (nn.Identity(), nn.Sequential(nn.Dropout(0.0)), unused):
        rows = compare(copy.deepcopy(module), StreamingModule(module, tile=4), torch.randn(1, 3, 9, 7))
        assert rows and all(row.error == 0.0 for row in rows)


def test_a_dilated_max_pool_whose_last_window_hangs_over() -> None:
    """A tile's padding on both sides was given to torch as its own, which may be more than torch takes."""
    module = nn.Sequential(nn.MaxPool2d(2, 3, 1, 2), nn.MaxPool2d(3, 3, 1, 2, ceil_mode=True))
    x = torch.randn(1, 1, 13, 7, dtype=torch.float64)
    assert max(row.error for row in compare(copy.deepcopy(module), StreamingModule(module, tile=7), x)) <= 1e-10


@pytest.mark.parametrize("autocast", [False, True])
def test_the_loss_of_a_mammogram_with_a_nan_pixel_is_nan(autocast: bool) -> None:
    """PyTorch's cross-entropy of probabilities refused NaN (on CUDA by ending the process), and all under autocast."""
    model = GMIC(crop_shape=(32, 32), crops=1, percent_t=0.5, local=ResNet(BasicBlock, (1,), width=4)).eval()
    image = torch.randn(1, 1, 96, 96)
    labels = torch.tensor([[0.0, 1.0]])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert GMICLoss()(model(image), labels).isfinite()
        image[0, 0, 5, 5] = float("nan")
        assert GMICLoss()(model(image), labels).isnan()


def test_slices_that_run_again_drop_the_same_pixels() -> None:
    """The second run, in the backward pass, drew new dropout masks: gradients were those of another network."""
    trunk = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Dropout(0.5), nn.Conv2d(3, 2, 3)).double()
    volume = torch.randn(1, 1, 4, 9, 9, dtype=torch.float64)
    gradients = []
    runs: list[Callable[[], Tensor]] = [
        lambda: by_slices(trunk, volume, 1),
        lambda: torch.stack([trunk(volume[:, :, z]) for z in range(4)], 1),
    ]
    for made in runs:
        torch.manual_seed(7)
        gradients.append(torch.autograd.grad((made() ** 2).sum(), list(trunk.parameters())))
    for streamed, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(streamed, plain, rtol=1e-10, atol=1e-12)


def test_a_regression_is_evaluated_by_its_value() -> None:
    """`streamingcnn evaluate` asked every task for probabilities; a regression has none, and no case was answered."""
    net = StreamingModule(nn.Sequential(nn.Conv2d(3, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), tile=8)
    settings = Settings(task="regression", target_mean=100.0, target_std=10.0)
    image = torch.rand(1, 3, 8, 8)
    assert answered(net, settings, image) == pytest.approx((net(image).item() * 10 + 100,))


def test_a_plan_of_kept_tiles_for_two_ranks() -> None:
    """Tiles at the seam run last, and what a skipped tile takes was asked of one of its kind that had not run yet."""
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 1, 3, padding=1))
    plan = StreamingModule(net, tile=4, stored=("0",)).plan((1, 1, 24, 14))
    for stage in plan.stages:
        stage.way = "keep"
    halves = Ranks(Division((2, 1), ((1, 1), (1,))), gather=True)
    assert exact_peak(plan.graph, list(plan.steps), ranks=halves).bytes > 0


def test_a_large_first_layer_is_cut_where_its_gradient_would_be_slow() -> None:
    """From 2^27 numbers of its result on, oneDNN takes its reference kernel for the gradient of its filters."""
    net = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
    image = torch.empty(1, 3, 3072, 3072, device="meta", memory_format=torch.channels_last)
    (stage,) = make_plan(capture(net, (image,), {}), memory=2**33).stages
    assert 64 * math.prod(stage.tile) < 2**27


@pytest.mark.parametrize("groups", [None, 4])
def test_statistics_in_channels_last_are_as_exact_as_elsewhere(groups: int | None) -> None:
    """A norm adds squares one after the other in channels_last: variances were 1e-5 off, at five times the time."""
    x = torch.randn(1, 16, 32, 48, 64, generator=torch.Generator().manual_seed(0))
    moments = Moments(Value("x", tuple(x.shape), x.dtype, (2, 3, 4)), over_batch=False, groups=groups)
    count, mean, squares = moments.partial(x.contiguous(memory_format=torch.channels_last_3d))
    wide = x.double().unflatten(1, (groups or 16, -1))
    expected = wide.var((2, 3, 4, 5), unbiased=False), wide.mean((2, 3, 4, 5))
    assert squares / count == pytest.approx(expected[0], rel=1e-6)
    assert mean == pytest.approx(expected[1], abs=1e-6)


def test_the_brain_is_tested_with_the_statistics_of_its_training(tmp_path: Path) -> None:
    """Instance norms took the other half's own statistics, in which its white matter looked like grey: Dice 0.003."""
    folder = Path(__file__).parents[1] / "examples" / "volume_segmentation"
    rng = np.random.default_rng(0)
    for name in ("t1", "gm", "wm"):
        image = nibabel.Nifti1Image(rng.integers(0, 128, (8, 24, 8), dtype=np.uint8), np.eye(4))
        image.to_filename(tmp_path / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz")
    command = [sys.executable, str(folder / "train.py"), "--data", str(tmp_path), "--out", str(tmp_path / "run")]
    subprocess.run([*command, "--steps", "1", "--filters", "2", "--levels", "2"], check=True, timeout=120)
    (saved,) = (tmp_path / "run" / "checkpoints").glob("step_*")
    names = FileSystemReader(saved).read_metadata().state_dict_metadata
    assert any(name.endswith("running_mean") for name in names), sorted(names)


def test_a_tile_at_a_border_keeps_its_maps_once() -> None:
    """Padding on one side is an operation before the convolution: autograd kept its copy beside the ReLU's result."""
    layers = [layer for _ in range(4) for layer in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())]
    module, x = nn.Sequential(*layers), torch.randn(1, 8, 96, 96)
    # Two tiles, at opposite borders: what three ReLUs made, some rows more than half of it; the result; the map.
    net = StreamingModule(module, tile=(48, 96), stored=["7"], keep=["7"])
    net(x)
    with LiveBytes() as live:
        y = net(x)
        kept = live.current
    assert y.requires_grad
    assert kept <= 5.4 * x.nbytes  # once 9.4


def test_a_lazy_module_may_be_wrapped_before_it_knows_its_channels() -> None:
    """What a module was when it was tried is noted; a lazy one has no shapes to note."""

    class Shifted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1

    module = nn.Sequential(nn.LazyConv2d(4, 3), Shifted())
    net, x = StreamingModule(module, tile=8), torch.randn(1, 3, 20, 20)
    plain = module(x)
    assert torch.allclose(net(x), plain, atol=1e-6)


def test_a_bias_before_a_norm_passes_the_check_at_any_size() -> None:
    """Its gradient is zero, and plain's rounding around it grows with the image: 19 last bits of the largest here."""
    module = nn.Sequential(nn.ConvTranspose2d(3, 16, 2, 2), nn.BatchNorm2d(16), nn.ReLU())
    assert check(module, torch.randn(1, 3, 200, 200), tile=100).ok
    # What is not rounding is still seen: a billionth of the largest gradient.
    plain = {"weight": torch.tensor([1.0], dtype=torch.float64), "bias": torch.tensor([1e-14], dtype=torch.float64)}
    assert relative_errors({**plain, "bias": plain["bias"] + 1e-9}, plain)["bias"] > 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_in_narrow_numbers_nothing_is_noise(dtype: torch.dtype) -> None:
    """512 last bits of bfloat16 are four times the number itself: every tensor counted as equal."""
    plain = {"weight": torch.ones(4, dtype=dtype), "bias": torch.full((4,), 1e-5, dtype=dtype)}
    errors = relative_errors({name: 2 * tensor for name, tensor in plain.items()}, plain)
    assert errors["weight"] == pytest.approx(1.0)
    if dtype is torch.float32:
        assert errors["bias"] == pytest.approx(1.0, rel=1e-3)


def test_a_budget_just_above_the_smallest_is_not_refused() -> None:
    """Where dropping one map after the other did not fit, the last draft was taken, far over, and not the nearest."""
    x, module = torch.empty((1, 3, 2048, 2048), device="meta"), resnet18().eval()
    tight, more = (StreamingModule(module, memory=budget).plan(x) for budget in ("155MiB", "190MiB"))
    assert tight.peak_bytes <= 155 << 20  # once: the smallest plan takes 157 MiB, and ten times as long
    assert tight.seconds < 3 * more.seconds
