"""Maps beside the device: exact wherever they live, no bytes of the device, and nothing left behind."""

from __future__ import annotations

import copy
import gc
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from streamingcnn import StreamingModule, places
from streamingcnn.capture import capture
from streamingcnn.comparison import compare
from streamingcnn.disk import MappedFile, aligned
from streamingcnn.memory import LiveBytes
from streamingcnn.models import UNet3D, resnet18
from streamingcnn.places import Nowhere, Outside, Place, Wanted
from streamingcnn.plan.peak import exact_peak
from streamingcnn.plan.place import bring_home, fastest, place_maps, step_seconds, transfer_bytes
from streamingcnn.plan.plan import Plan, make_plan
from streamingcnn.plan.rates import BUILT_IN_RATES, Rate
from streamingcnn.plan.saved import PlanError
from streamingcnn.plan.search import BudgetError
from streamingcnn.plan.stages import Stage
from streamingcnn.plan.times import Times
from streamingcnn.staging import UNDER_WAY, Staging
from tests.blocks import Residual

pytestmark = pytest.mark.usefixtures("untried")

BOUND = 1e-10
posix = pytest.mark.skipif(sys.platform == "win32", reason="an open file without a name is POSIX's")
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


class TinyUNet(nn.Module):
    """A skip at full resolution: a map that is read at both ends of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.down = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(4, 8, 3, padding=1), nn.ReLU())
        self.up = nn.ConvTranspose2d(8, 4, 2, 2)
        self.last = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.first(x)
        result: Tensor = self.last(torch.cat([skip, self.up(self.down(skip))], 1))
        return result


def chain(*norms: nn.Module) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(2, 4, 3, padding=1)]
    for norm in norms:
        layers += [norm, nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)]
    return nn.Sequential(*layers)


def every_map(net: nn.Module, shape: tuple[int, ...]) -> list[str]:
    """The names of all nodes that could be stored: none of them is then left to chance."""
    graph = StreamingModule(copy.deepcopy(net)).plan(shape).graph
    return list(graph.locals)


# name -> network, shape, memory format, further options
Case = tuple[Callable[[], nn.Module], tuple[int, ...], torch.memory_format, dict[str, object]]
PLAIN, LAST, LAST3D = torch.contiguous_format, torch.channels_last, torch.channels_last_3d
CASES: dict[str, Case] = {
    "chain": (lambda: chain(nn.Identity(), nn.Identity()), (2, 2, 37, 29), PLAIN, {}),
    "channels_last": (lambda: chain(nn.Identity(), nn.Identity()), (2, 2, 37, 29), LAST, {}),
    "batch_norm": (lambda: chain(nn.BatchNorm2d(4), nn.BatchNorm2d(4)), (2, 2, 37, 29), LAST, {}),
    "group_norm": (lambda: chain(nn.GroupNorm(2, 4)), (2, 2, 37, 29), PLAIN, {}),
    "dropout": (lambda: chain(nn.Dropout(0.4), nn.Dropout2d(0.4)), (2, 2, 37, 29), PLAIN, {}),
    "residual": (lambda: nn.Sequential(Residual(2, 4), Residual(4, 4, 2)), (1, 2, 41, 30), LAST, {}),
    "head": (
        lambda: nn.Sequential(chain(nn.Identity()), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)),
        (2, 2, 37, 29),
        PLAIN,
        {},
    ),
    "a_plain_part": (  # pooling to ragged bins needs the whole map before it
        lambda: nn.Sequential(chain(nn.Identity()), nn.AdaptiveAvgPool2d(5), nn.Flatten(), nn.Linear(100, 2)),
        (2, 2, 37, 29),
        PLAIN,
        {},
    ),
    "skips": (TinyUNet, (1, 2, 36, 28), PLAIN, {}),
    "3d": (lambda: UNet3D(1, 2, levels=2, filters=4), (1, 1, 16, 20, 12), PLAIN, {"tile": (8, 8, 8)}),
    "3d_channels_last": (lambda: UNet3D(1, 2, levels=2, filters=4), (1, 1, 16, 20, 12), LAST3D, {"tile": (8, 8, 8)}),
    "1d": (lambda: nn.Sequential(nn.Conv1d(2, 3, 5), nn.Tanh(), nn.Conv1d(3, 2, 3, 2)), (2, 2, 90), PLAIN, {}),
    "one_tile": (lambda: chain(nn.Identity(), nn.Identity()), (2, 2, 37, 29), LAST, {"tile": 64}),
}


@pytest.fixture(params=["mapped", "staged"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for maps; "staged" goes the way of a GPU, with copies that settle later."""
    if request.param == "staged":

        def opened(wanted: Mapping[str, Wanted], *_: object) -> dict[str, Place]:
            blocks = [aligned(count) for one in wanted.values() for count in one.blocks]
            outside = Outside(MappedFile(str(tmp_path), sum(blocks)).empty, Staging(torch.device("cpu")))
            return dict.fromkeys(wanted, outside)

        monkeypatch.setattr("streamingcnn.runner.open_places", opened)
    return tmp_path


@pytest.mark.parametrize("way", ["recompute", "keep"])
@pytest.mark.parametrize("name", CASES)
def test_exact(name: str, way: str, folder: Path) -> None:
    build, shape, memory_format, options = CASES[name]
    net = build().double().to(memory_format=memory_format)  # type: ignore[call-overload]  # torch's stubs lack it
    x = torch.randn(shape, dtype=torch.float64).to(memory_format=memory_format)
    stored = every_map(net, shape)
    net = net.to(memory_format=memory_format)
    options = {"tile": 16, **options, "stored": stored, "keep": stored if way == "keep" else ()}
    streamed = StreamingModule(copy.deepcopy(net), offload=f"disk:{folder}", **options)  # type: ignore[arg-type]
    assert sum(stage.place == "disk" for stage in streamed.plan(x).stages) >= 1
    worst = max(compare(net, streamed, x), key=lambda row: row.error)
    assert worst.error <= BOUND, worst


def test_exact_in_a_plan_of_its_own_choice(folder: Path) -> None:
    net = resnet18().double()
    x = torch.randn(2, 3, 96, 80, dtype=torch.float64)
    streamed = StreamingModule(copy.deepcopy(net), tile=32, offload=f"disk:{folder}")
    worst = max(compare(net, streamed, x), key=lambda row: row.error)
    assert worst.error <= BOUND, worst


def test_retain_graph(folder: Path) -> None:
    net = chain(nn.BatchNorm2d(4), nn.Dropout(0.0)).double()
    x = torch.randn(2, 2, 37, 29, dtype=torch.float64)
    stored = every_map(net, (2, 2, 37, 29))
    streamed = StreamingModule(copy.deepcopy(net), 16, stored, stored[:2], offload=f"disk:{folder}")
    for module in (net, streamed):
        y = module(x)
        y.sum().backward(retain_graph=True)
        y.square().sum().backward(retain_graph=True)
        y.square().sum().backward()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(streamed.get_parameter(name).grad, parameter.grad, rtol=1e-10, atol=1e-10)


def test_two_forwards_before_their_backwards(folder: Path) -> None:
    """Each step has maps of its own."""
    net = chain(nn.Identity(), nn.Identity()).double()
    streamed = StreamingModule(copy.deepcopy(net), 16, ["0", "3"], offload=f"disk:{folder}")
    images = [torch.randn(1, 2, 30, 40, dtype=torch.float64) for _ in range(2)]
    for module in (net, streamed):
        first, second = module(images[0]), module(images[1])
        first.square().sum().backward()
        second.sin().sum().backward()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(streamed.get_parameter(name).grad, parameter.grad, rtol=1e-10, atol=1e-10)


def test_without_gradients(folder: Path) -> None:
    net = chain(nn.Identity(), nn.Identity()).double()
    streamed = StreamingModule(net, 16, ["0", "3"], offload=f"disk:{folder}")
    x = torch.randn(1, 2, 30, 40, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(streamed(x), net(x), rtol=1e-12, atol=1e-12)


def test_half_precision(folder: Path) -> None:
    """bfloat16 has no NumPy type; a mapped tensor does without one."""
    net = chain(nn.Identity(), nn.Identity()).bfloat16()
    x = torch.randn(1, 2, 30, 40).bfloat16()
    found = []
    for offload in ("device", f"disk:{folder}"):
        streamed = StreamingModule(copy.deepcopy(net), 16, ["0", "3"], offload=offload)
        streamed(x).float().sum().backward()
        found.append([p.grad for p in streamed.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_result_is_an_ordinary_tensor(folder: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            first = self.a(x).relu()
            return first, self.b(first)

    net = Two().double()
    x = torch.randn(1, 2, 30, 40, dtype=torch.float64, requires_grad=True)
    streamed = StreamingModule(copy.deepcopy(net), 16, offload=f"disk:{folder}")
    for result in streamed(x):
        assert result.untyped_storage().resizable()
        result.sum().backward(retain_graph=True)
    assert x.grad is not None
    assert x.grad.untyped_storage().resizable()
    assert max(row.error for row in compare(net, streamed, x)) <= BOUND


# The promise: maps outside take none of the device's bytes.


def live_peak(net: nn.Module, x: Tensor) -> int:
    net(x).mean().backward()
    net.zero_grad(set_to_none=True)
    gc.collect()
    with LiveBytes() as live:
        net(x).mean().backward()
    return live.peak


def trunk() -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (3, 16, 16, 16, 16):
        layers += [nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1))


STORED = ("1", "3", "5", "7", "9")


def test_device_bytes_fall_by_the_maps_and_their_gradients(tmp_path: Path) -> None:
    x = torch.rand(1, 3, 256, 256)
    one_map = 16 * 256 * 256 * 4
    found = {
        offload: (live_peak(net, x), net.plan(x).peak_bytes)
        for offload in ("device", f"disk:{tmp_path}")
        if (net := StreamingModule(trunk(), 64, STORED, offload=offload))
    }
    (device, predicted), (disk, predicted_disk) = found.values()
    assert device > 6 * one_map  # five maps and two gradients, less what a tile adds
    assert disk < 1 * one_map
    assert predicted - predicted_disk >= 5 * one_map


def pooled_raggedly() -> nn.Sequential:
    """Pooling to bins of unequal sizes needs the whole map before it, which is then stored in every plan."""
    return nn.Sequential(*list(trunk())[:4], nn.AdaptiveAvgPool2d(5))


def test_a_budget_that_the_device_cannot_meet_is_met_on_disk(tmp_path: Path) -> None:
    x = torch.rand(1, 3, 256, 256)
    one_map = 16 * 256 * 256 * 4
    with pytest.raises(BudgetError) as caught:
        StreamingModule(pooled_raggedly(), memory=1).plan(x)
    assert caught.value.smallest > 2 * one_map  # the map and its gradient
    budget = one_map * 3 // 2
    for offload in ("device", "host"):  # host and CPU are the same memory
        with pytest.raises(BudgetError):
            StreamingModule(pooled_raggedly(), memory=budget, offload=offload).plan(x)
    net = StreamingModule(pooled_raggedly(), memory=budget, offload=f"disk:{tmp_path}")
    assert net.plan(x).peak_bytes <= budget
    gradients = sum(p.numel() * p.element_size() for p in net.parameters())
    assert live_peak(net, x) <= budget + gradients
    double = pooled_raggedly().double()
    streamed = StreamingModule(copy.deepcopy(double), memory=2 * budget, offload=f"disk:{tmp_path}")
    assert max(row.error for row in compare(double, streamed, x.double())) <= BOUND


def test_the_table_says_where_maps_are(tmp_path: Path) -> None:
    shown = str(StreamingModule(trunk(), 64, STORED, offload=f"disk:{tmp_path}").plan((1, 3, 256, 256)))
    assert shown.count("1x16x256x256 on disk") == 5
    assert "on disk" not in str(StreamingModule(trunk(), 64, STORED).plan((1, 3, 256, 256)))


def test_a_rehearsal_without_numbers_counts_them_as_nothing() -> None:
    """Maps outside are seen by no counter; beside a GPU a box that is read is a copy."""
    tile = torch.empty(1, 4, 10, 25, device="meta")
    for copies, read_bytes in ((False, 0), (True, 400)):
        place = Nowhere(copies)
        with LiveBytes(fake=True) as live:
            tensor = place.empty((1, 4, 10, 100), torch.float32, LAST, torch.device("meta"))
            place.write(tensor[..., :25], tile)
            part = place.read(tensor[:, :1, :, :10])
        assert tensor.is_contiguous(memory_format=LAST)
        assert live.current == read_bytes
        assert part.shape == (1, 1, 10, 10)


# Which maps go: the pure part.


def test_what_must_stay_stays(tmp_path: Path) -> None:
    graph = capture(TinyUNet(), (torch.empty(1, 2, 36, 28),), {})
    plan = make_plan(graph, 16, stored=["first", "up"], where="disk")
    assert {stage.layer: stage.place for stage in plan.stages} == {"first": "disk", "up": "disk", "last": "device"}


BUILT_IN = Times(BUILT_IN_RATES["contiguous"])


def device_of(slowness: float) -> Times:
    """The built-in device, so many times slower."""

    def slower(rates: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(rate * slowness for rate in rates)

    rates = {kind: Rate(slower(rate.forward), slower(rate.backward)) for kind, rate in BUILT_IN.rates.items()}
    return replace(BUILT_IN, rates=rates, call=BUILT_IN.call * slowness, tile=BUILT_IN.tile * slowness)


def test_auto_moves_maps_to_the_host_where_that_is_faster() -> None:
    """The plan for a GPU; no GPU is needed to make it."""
    graph = capture(trunk(), (torch.empty(1, 3, 256, 256),), {})

    def outside(steps: Sequence[object]) -> int:
        return sum(isinstance(step, Stage) and step.place == "host" for step in steps)

    assert outside(make_plan(graph, where="auto").steps) == 0
    assert outside(make_plan(graph, memory=1 << 28, where="auto").steps) == 0  # enough for everything
    tight = 560 << 10  # an eighth of a map of 16 channels
    assert make_plan(graph, memory=tight, where="auto").peak_bytes <= tight
    alone, moved = (list(make_plan(graph, memory=tight, where=where).steps) for where in ("device", "host"))
    assert outside(moved) > 0
    assert fastest(graph, [alone, moved], device_of(1e3)) is moved  # a slow device and a fast bus
    assert fastest(graph, [alone, moved], device_of(1e-9)) is alone  # the other way round
    assert fastest(graph, [alone, alone], device_of(1)) is alone


def test_what_plain_nodes_read_stays_beside_them() -> None:
    graph = capture(pooled_raggedly(), (torch.empty(1, 3, 64, 64),), {})
    for where in ("host", "disk"):
        plan = make_plan(graph, 16, stored=["1", "3"], where=where)
        expected = {"1": where, "3": "device" if where == "host" else "disk"}
        assert {stage.layer: stage.place for stage in plan.stages if stage.layer in expected} == expected


def test_maps_come_home_as_far_as_they_fit() -> None:
    """Two maps that are outside by force, and room for one."""
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 1, 1))
    graph = capture(net, (torch.empty(1, 1, 64, 64),), {})
    steps = list(make_plan(graph, 8, stored=["1", "3"], where="host").steps)
    stages = [step for step in steps if isinstance(step, Stage)][:2]
    outside = exact_peak(graph, steps).bytes
    bring_home(graph, steps, outside)
    assert [stage.place for stage in stages] == ["host", "host"]
    place_maps(graph, steps, "device")
    inside = exact_peak(graph, steps).bytes
    place_maps(graph, steps, "host")
    bring_home(graph, steps, inside - 1)
    assert sorted(stage.place for stage in stages) == ["device", "host"]
    bring_home(graph, steps, inside)
    assert [stage.place for stage in stages] == ["device", "device"]


def test_transfer_bytes_by_hand() -> None:
    """A map of 16 pixels, 4 bytes each, read by a window of 3 in tiles of 4: 6 pixels a tile, 4 tiles.

    written 64, read in forward and again in backward 2 x 96, gradient added 96 and read 64
    """
    net = nn.Sequential(nn.Conv1d(1, 1, 1), nn.Conv1d(1, 1, 3, padding=1))
    graph = capture(net, (torch.empty(1, 1, 16),), {})
    plan = make_plan(graph, 4, stored=["0"])
    assert transfer_bytes(plan.stages[0], list(plan.steps)) == 64 + 2 * 96 + 96 + 64
    plan = make_plan(graph, 4, stored=["0"], keep=["1"])
    assert transfer_bytes(plan.stages[0], list(plan.steps)) == 64 + 96 + 96 + 64


def test_seconds_count_the_way_out_and_back() -> None:
    graph = capture(trunk(), (torch.empty(1, 3, 256, 256),), {})
    steps = list(make_plan(graph, 64, stored=["5"]).steps)
    on_device = step_seconds(graph, steps, BUILT_IN)
    place_maps(graph, steps, "disk")
    (stage,) = (step for step in steps if isinstance(step, Stage) and step.place == "disk")
    assert step_seconds(graph, steps, BUILT_IN) == pytest.approx(on_device + transfer_bytes(stage, steps) / 1e9)


# A plan in a file says where maps are.


def test_a_saved_plan_keeps_its_places(tmp_path: Path) -> None:
    net = StreamingModule(trunk().double(), 64, STORED, offload=f"disk:{tmp_path}")
    plan = net.plan((1, 3, 128, 128))
    plan.save(tmp_path / "plan.json")
    assert (tmp_path / "plan.json").read_text().count('"place": "disk"') == 5
    again = StreamingModule(net.module, plan=Plan.load(tmp_path / "plan.json"), offload=f"disk:{tmp_path}")
    assert [stage.place for stage in again.plan((1, 3, 128, 128)).stages] == [stage.place for stage in plan.stages]
    x = torch.randn(1, 3, 128, 128, dtype=torch.float64)
    assert max(row.error for row in compare(trunk_like(net), again, x)) <= BOUND


def trunk_like(net: StreamingModule) -> nn.Module:
    plain = trunk().double()
    plain.load_state_dict(net.state_dict())
    return plain


def test_a_plan_and_offload_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    on_disk = StreamingModule(trunk(), 64, STORED, offload=f"disk:{tmp_path}").plan((1, 3, 64, 64))
    with pytest.raises(ValueError, match="has maps on disk"):
        StreamingModule(trunk(), plan=on_disk)
    on_device = StreamingModule(trunk(), 64, STORED).plan((1, 3, 64, 64))
    for offload in ("device", "host", f"disk:{tmp_path}"):
        with pytest.raises(ValueError, match="leave out offload="):
            StreamingModule(trunk(), plan=on_device, offload=offload)


def test_a_place_for_a_map_that_must_stay_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    StreamingModule(trunk()[:4], 64, ("1",)).plan((1, 3, 64, 64)).save(path)
    text = path.read_text()
    path.write_text(text.replace('"way": "recompute"}', '"way": "recompute", "place": "disk"}'))
    with pytest.raises(PlanError, match="needed is 'device'"):
        StreamingModule(trunk()[:4], plan=Plan.load(path), offload=f"disk:{tmp_path}").plan((1, 3, 64, 64))
    path.write_text(text.replace('"way": "recompute"}', '"way": "recompute", "place": "cloud"}'))
    with pytest.raises(PlanError, match="place is 'cloud'; needed is device or host or disk"):
        Plan.load(path)


# What a user may say.


@pytest.mark.parametrize("offload", ["disk", "disk:", "cloud", "Host", "", "/scratch"])
def test_another_word_is_refused(offload: str) -> None:
    with pytest.raises(ValueError, match="'auto', 'device', 'host', or 'disk:'"):
        StreamingModule(trunk(), offload=offload)


def test_a_directory_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError, match="make it first"):
        StreamingModule(trunk(), offload=f"disk:{tmp_path / 'missing'}")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        StreamingModule(trunk(), offload=f"disk:{tmp_path / 'file'}")


def test_a_directory_that_must_not_be_written_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(PermissionError, match=str(tmp_path)):
        StreamingModule(trunk(), offload=f"disk:{tmp_path}")


def test_a_relative_directory_is_kept_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "maps").mkdir()
    assert places.parse_offload("disk:maps").folder == str(tmp_path / "maps")


@pytest.mark.parametrize("offload", ["auto", "host", "device"])
def test_on_a_cpu_everything_but_disk_is_the_device(offload: str) -> None:
    plan = StreamingModule(trunk(), 64, STORED, offload=offload).plan((1, 3, 64, 64))
    assert {stage.place for stage in plan.stages} == {"device"}


def test_offload_survives_a_copy(tmp_path: Path) -> None:
    net = copy.deepcopy(StreamingModule(trunk(), 64, STORED, offload=f"disk:{tmp_path}"))
    assert {stage.place for stage in net.plan((1, 3, 64, 64)).stages if stage.stored} == {"disk"}
    net(torch.rand(1, 3, 64, 64)).sum().backward()


# The file: reserved first, used again, without a name.


def mapped(folder: Path) -> int:
    """How many mappings of files in a directory this process has."""
    return Path("/proc/self/maps").read_text().count(f"{folder}/")


@linux
def test_blocks_are_used_again(tmp_path: Path) -> None:
    file = MappedFile(str(tmp_path), 2 * aligned(400))
    first, second = (file.empty((100,), torch.float32, (1,)) for _ in range(2))
    place = first.data_ptr()
    view = first[10:20]
    del first
    third = file.empty((100,), torch.float32, (1,))  # the view still holds the first block: a file of its own
    assert third.data_ptr() not in (place, second.data_ptr())
    assert mapped(tmp_path) == 2
    del view
    assert file.empty((100,), torch.float32, (1,)).data_ptr() == place
    assert file.empty((0, 3), torch.float32, (3, 1)).numel() == 0


@linux
def test_a_step_needs_no_more_than_was_reserved(tmp_path: Path) -> None:
    """Also in its second and third backward: one mapping, the same all the time."""
    net = StreamingModule(trunk(), 64, STORED, offload=f"disk:{tmp_path}")
    y = net(torch.rand(1, 3, 128, 128))
    assert mapped(tmp_path) == 1
    for _ in range(3):
        y.sum().backward(retain_graph=True)
        assert mapped(tmp_path) == 1
    del y
    gc.collect()
    assert mapped(tmp_path) == 0


@posix
def test_nothing_is_in_the_directory_at_any_time(tmp_path: Path) -> None:
    net = StreamingModule(trunk(), 64, STORED, offload=f"disk:{tmp_path}")
    y = net(torch.rand(1, 3, 128, 128))
    assert list(tmp_path.iterdir()) == []
    y.sum().backward()
    assert list(tmp_path.iterdir()) == []


@linux
def test_a_step_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = StreamingModule(trunk()[:6], 64, STORED[:2], offload=f"disk:{tmp_path}")
    x = torch.rand(1, 3, 128, 128)
    y = net(x)
    with pytest.raises(RuntimeError):
        y.backward(torch.ones(3))
    assert mapped(tmp_path) == 1
    del y
    gc.collect()
    assert mapped(tmp_path) == 0

    def fails(*_: object) -> None:
        assert mapped(tmp_path) == 1
        raise KeyError("a bug")

    monkeypatch.setattr("streamingcnn.runner.run_tile", fails)
    with pytest.raises(KeyError):
        net(torch.rand(1, 3, 128, 128))
    gc.collect()
    assert mapped(tmp_path) == 0
    assert list(tmp_path.iterdir()) == []


STEP = """
    import sys, time, torch
    from torch import nn
    from streamingcnn import StreamingModule
    from streamingcnn.errors import DiskFullError
    torch.set_num_threads(1)
    layers = []
    for channels in (3, 16, 16):
        layers += [nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU()]
    net = StreamingModule(nn.Sequential(*layers), 64, ("1", "3"), offload="disk:" + sys.argv[1])
    x = torch.rand(1, 3, 256, 256)
"""


def script(body: str, *before: str) -> list[str]:
    return [*before, sys.executable, "-c", textwrap.dedent(STEP) + textwrap.dedent(body)]


@linux
@pytest.mark.parametrize("killed_by", [signal.SIGTERM, signal.SIGKILL])
def test_a_process_that_is_killed_leaves_nothing(killed_by: signal.Signals, tmp_path: Path) -> None:
    command = script("y = net(x); print('ready', flush=True); time.sleep(60)")
    with subprocess.Popen([*command, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert f"{tmp_path}/" in Path(f"/proc/{process.pid}/maps").read_text()  # its maps are there
        assert list(tmp_path.iterdir()) == []
        process.send_signal(killed_by)
        assert process.wait(30) == -killed_by
    assert list(tmp_path.iterdir()) == []


FULL = """
    ran = []
    from streamingcnn import runner
    run_tile = runner.run_tile
    runner.run_tile = lambda *a: ran.append(a) or run_tile(*a)
    try:
        net(x)
    except DiskFullError as error:
        print("full:", error.errno, error)
        assert not ran, "something was computed before the room was there"
        assert all(p.grad is None for p in net.parameters())
    else:
        sys.exit("no error")
    y = net(x[..., :16, :16])  # this much there is room for
    y.sum().backward()
    print("tiles", len(ran) > 0)
"""


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@linux
def test_a_full_disk_is_an_error_before_anything_is_computed(tmp_path: Path) -> None:
    """A file system of 1 MiB, in a namespace of its own so that nothing stays mounted; the maps take 16 MiB."""
    mount = f"mount -t tmpfs -o size=1m tmpfs '{tmp_path}' && exec \"$@\""
    inside = ["unshare", "-rm", "sh", "-c", mount, "sh"]
    if shutil.which("unshare") is None or run([*inside, "true"]).returncode:
        pytest.skip("this user cannot mount a small file system")
    done = run([*script(FULL, *inside), str(tmp_path)])
    assert done.returncode == 0, done.stderr
    assert "full: 28" in done.stdout
    assert "16.0 MiB" in done.stdout
    assert "1.00 MiB free" in done.stdout
    assert "tiles True" in done.stdout


@linux
def test_a_limit_on_the_size_of_files_is_the_same_error(tmp_path: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
    done = run([*script(limit + textwrap.dedent(FULL)), str(tmp_path)])
    assert done.returncode == 0, done.stderr
    assert "full: 27" in done.stdout
    assert "give offload= a directory with more room" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_that_cannot_reserve_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", cannot, raising=False)
    file = MappedFile(str(tmp_path), 3 << 20)
    assert file.empty((3 << 18,), torch.float32, (1,)).eq(0).all()


# Tiles under way.


def test_staged_tiles_arrive_in_order_and_before_they_are_read() -> None:
    staging = Staging(torch.device("cpu"))
    arrived: list[int] = []
    held, other = torch.zeros(8), torch.zeros(8)

    def put(number: int) -> Callable[[Tensor, Tensor], object]:
        def note(view: Tensor, tile: Tensor) -> None:
            arrived.append(number)
            view.add_(tile)

        return note

    staging.send(held[:2], torch.ones(2), put(0))
    staging.send(other[:2], torch.ones(2), put(1))
    assert arrived == []  # they are under way
    assert staging.fetch(other[4:]).tolist() == [0, 0, 0, 0]
    assert arrived == [0, 1]  # what came before them arrives first
    for number in range(2, 2 + UNDER_WAY + 2):
        staging.send(held[:2], torch.ones(2), put(number))
    assert arrived == [0, 1, 2, 3]  # no more than so many are held
    assert staging.fetch(other).tolist() == [1, 1, 0, 0, 0, 0, 0, 0]
    assert arrived == [0, 1, 2, 3]  # a map that nothing is under way to is not waited for
    assert staging.fetch(held)[0].item() == 1 + UNDER_WAY + 2


def test_a_staged_tile_with_gaps_arrives_whole() -> None:
    staging = Staging(torch.device("cpu"))
    held, tile = torch.zeros(3, 3), torch.arange(12.0).reshape(3, 4)[:, :3]
    staging.send(held, tile, Tensor.copy_)
    assert torch.equal(staging.fetch(held.t()), tile.t())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("offload", ["host", "disk"])
def test_on_cuda(offload: str, tmp_path: Path) -> None:
    offload = f"disk:{tmp_path}" if offload == "disk" else offload
    net = resnet18().double().cuda()
    x = torch.randn(2, 3, 160, 130, dtype=torch.float64, device="cuda")
    streamed = StreamingModule(copy.deepcopy(net), tile=64, offload=offload)
    assert any(stage.place == offload.partition(":")[0] for stage in streamed.plan(x).stages)
    assert max(row.error for row in compare(net, streamed, x)) <= BOUND
