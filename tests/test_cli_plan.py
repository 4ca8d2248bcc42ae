"""`streamingcnn plan`, and the table that `print(plan)` shows."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamingcnn import Plan, StreamingModule
from streamingcnn.cli.main import main
from streamingcnn.cli.plan import blank, plain_bytes
from streamingcnn.comparison import run_step
from streamingcnn.memory import LiveBytes
from streamingcnn.plan.frontier import budgets, frontier, smallest_budget, step_work
from streamingcnn.plan.report import LONG
from tests.blocks import Net

NETWORK_FILE = """
import torch
from torch import nn

def net(width=4, kind="relu"):
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width),
                         {"relu": nn.ReLU, "silu": nn.SiLU}[kind](), nn.Conv2d(width, 2, 3, stride=2))

def frozen():
    return net().eval()

class Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()
    @staticmethod
    def backward(ctx, g):
        return -g

class Cannot(nn.Module):
    def forward(self, x):
        return Reversal.apply(x)

def needs_an_argument(width):
    return nn.Conv2d(3, width, 3)

def fails():
    raise KeyError("weights.pt")

ready = nn.Conv2d(3, 2, 3)
number = 7
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_networks_for_plan.py").write_text(NETWORK_FILE)
    (tmp_path / "my_broken_file.py").write_text("def net(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_networks_for_plan", raising=False)
    return tmp_path


def plan(*arguments: str, model: str = "my_networks_for_plan:net", size: str = "1x3x256x256") -> int:
    return main(["plan", model, "--size", size, *arguments])


# The command.


def test_a_network_with_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--eval", model="resnet18", size="1x3x512x512") == 0
    shown = capsys.readouterr().out
    for words in ("resnet18, eval mode, float32, contiguous", "layer4.1.relu", "receptive field 435x435 px"):
        assert words in shown
    assert re.search(r"plain PyTorch needs [\d.]+ MiB; this plan [\d.]+% of it", shown)
    smallest = re.search(r"the smallest budget that works: .* \(memory=(\d+)\)", shown)
    assert smallest is not None
    assert 0 < int(smallest[1]) < 100 << 20


@pytest.mark.parametrize("place", ["my_networks_for_plan", "my_networks_for_plan.py"])
def test_a_network_of_ones_own_and_its_saved_plan(place: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--arg", "width=6", "--arg", "kind=silu", "--memory", "4MB", "--save", "plan.json", "--eval"]
    assert plan(*arguments, model=f"{place}:net") == 0
    shown = capsys.readouterr().out
    assert "of 3.81 MiB given" in shown
    assert "saved: plan.json" in shown

    sys.path.insert(0, str(folder))
    try:
        from my_networks_for_plan import net  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(folder))
    streamed = StreamingModule(net(6, "silu").eval(), plan=Plan.load("plan.json"))
    made = streamed.plan((1, 3, 256, 256))
    assert made.budget == 4_000_000
    assert str(made) in shown
    streamed(torch.rand(1, 3, 256, 256)).sum().backward()


def test_nothing_of_the_images_size_is_allocated(capsys: pytest.CaptureFixture[str]) -> None:
    with LiveBytes() as live:
        assert plan("--memory", "40GiB", size="1x3x65536x65536") == 0
    assert live.peak < 1 << 20
    assert "1x3x65536x65536 (48.0 GiB)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "factory, flag, mode",
    [("net", None, "train"), ("frozen", None, "eval"), ("net", "--eval", "eval"), ("frozen", "--train", "train")],
)
def test_mode_is_the_factorys_own_unless_one_is_asked_for(
    factory: str, flag: str | None, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(*([flag] if flag else []), model=f"my_networks_for_plan:{factory}", size="1x3x64x64") == 0
    shown = capsys.readouterr().out
    assert f"{mode} mode" in shown
    assert ("computed once, as they are global" in shown) == (mode == "train")  # batch statistics


def test_format_and_layout(capsys: pytest.CaptureFixture[str]) -> None:
    needs = []
    for dtype in ("float64", "float32", "bfloat16"):
        assert plan("--eval", "--dtype", dtype, "--channels-last", "--tile", "64", size="1x3x128x128") == 0
        shown = capsys.readouterr().out
        assert f"{dtype}, channels_last" in shown
        match = re.search(r"plain PyTorch needs ([\d.]+) (\w)iB", shown)
        assert match is not None
        needs.append(float(match[1]) * {"K": 1, "M": 1024}[match[2]])
    assert needs[0] > 1.9 * needs[1] > 3.6 * needs[2]


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"model": "resnet19"}, ("resnet19", "MODULE.PATH:FACTORY", "resnet18, resnet34, resnet50, unet3d")),
        ({"model": "nowhere_at_all:net"}, ("nowhere_at_all",)),
        ({"model": "my_networks_for_plan:nothing"}, ("nothing",)),
        ({"model": "my_broken_file:net"}, ("importing", "SyntaxError")),
        ({"model": "my_networks_for_plan:needs_an_argument"}, ("width", "--arg")),
        ({"model": "my_networks_for_plan:fails"}, ("fails", "KeyError", "weights.pt")),
        ({"model": "my_networks_for_plan:number"}, ("int",)),
        ({"model": "my_networks_for_plan:Cannot"}, ("Reversal", "register_rule")),
        ({"arguments": ["--arg", "colour=3"]}, ("colour", "--arg")),
        ({"model": "my_networks_for_plan:ready", "arguments": ["--arg", "width=3"]}, ("takes no --arg",)),
        ({"size": "1x5x64x64"}, ("5", "3")),
        ({"size": "64x64"}, ("1x3x512x512",)),
        ({"arguments": ["--memory", "much"]}, ("much", "4GiB")),
        ({"arguments": ["--memory", "1KiB"]}, ("1.00 KiB", "too small", "give memory=")),
        ({"arguments": ["--tile", "8x8x8"]}, ("2 spatial axes",)),
        ({"arguments": ["--save", "no/such/folder/plan.json"]}, ("no/such/folder",)),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_in_a_line(
    arguments: dict[str, Any], words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = {"size": "1x3x64x64", **arguments}
    assert plan(*arguments.pop("arguments", []), **arguments) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("streamingcnn plan: ")
    assert shown.out == ""
    for word in words:
        assert word in shown.err
    if "Reversal" not in words:  # a refused network has a line for each of its problems
        assert shown.err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments, word",
    [
        (["--size", "1x3xlarge"], "no size"),
        (["--size", "1x3x0x64"], "at least 1"),
        (["--arg", "width"], "KEY=VALUE"),
        (["--dtype", "int8"], "int8"),
        (["--train", "--eval"], "not allowed"),
    ],
)
def test_a_wrong_call(arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["plan", "resnet18", "--size", "1x3x64x64", *arguments])
    assert caught.value.code == 2
    assert word in capsys.readouterr().err


# The sweep.


def test_sweep_prints_and_draws(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    assert plan("--eval", "--sweep", "frontier.png") == 0
    shown = capsys.readouterr().out
    rows = re.findall(r"^ *([\d.]+ \w+) +([\d.]+)% +[\d.]+ \w+ +\d+ +\d+ +([\d.]+)x", shown, re.MULTILINE)
    assert 5 <= len(rows) <= 8
    shares = [float(share) for _, share, _ in rows]
    assert shares == sorted(shares)
    assert shares[-1] == 100
    assert float(rows[0][2]) > float(rows[-1][2])  # what memory is for
    assert "picture: frontier.png" in shown
    with Image.open(folder / "frontier.png") as picture:
        assert picture.format == "PNG"
        colours = picture.convert("RGB").getcolors(1 << 20)
    assert colours is not None
    assert sum(count for count, colour in colours if colour == (0x1F, 0x6F, 0x8B)) > 300


def test_sweep_needs_matplotlib_before_it_plans(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("streamingcnn.extras.find_spec", lambda name: None)
    assert plan("--sweep") == 2
    shown = capsys.readouterr()
    assert "matplotlib" in shown.err
    assert "pip install 'streamingcnn[demo]'" in shown.err
    assert shown.out == ""


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.Tanh())


def test_every_budget_of_the_frontier_is_kept() -> None:
    graph = StreamingModule(small()).plan((1, 3, 200, 200)).graph
    least = smallest_budget(graph)
    plain = plain_bytes(small(), blank((1, 3, 200, 200), torch.float32, False))
    assert isinstance(plain, int)
    plans = list(frontier(graph, budgets(least, plain)))
    assert len(plans) == 8
    assert [made.budget for made in plans] == budgets(least, plain)
    assert all(made.peak_bytes <= (made.budget or 0) for made in plans)
    assert step_work(plans[0]) >= step_work(plans[-1]) >= 1


def test_work_of_a_step_counts_what_is_computed_twice() -> None:
    conv = nn.Conv2d(3, 8, 1)
    kept = StreamingModule(conv, tile=16, stored=("",), keep=("",)).plan((1, 3, 64, 64))
    again = StreamingModule(conv, tile=16).plan((1, 3, 64, 64))
    assert step_work(kept) == pytest.approx(1)
    assert step_work(again) == pytest.approx(4 / 3)


def test_plain_bytes_are_those_of_a_real_step() -> None:
    module, x = small(), torch.rand(1, 3, 96, 96)
    predicted = plain_bytes(module, blank(x.shape, torch.float32, False))
    with LiveBytes() as live:
        run_step(module, x, input_gradients=False)
    assert predicted == pytest.approx(live.peak, rel=0.01)


def test_plain_bytes_of_what_needs_numbers_are_not_known() -> None:
    class Counts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * float(x.sum())

    assert "not known" in str(plain_bytes(Counts(), blank((1, 3, 8, 8), torch.float32, False)))


# The table.


def cells(text: str, column: str) -> list[str]:
    """A column of the printed table, by the place of its name in the header and the rule below it."""
    header, rule, *rows = text.splitlines()
    for match in re.finditer("-+", rule):
        if header[match.start() : match.end()].strip() == column:
            body = rows[: rows.index("")]
            return [row[match.start() : match.end()].strip() for row in body]
    raise AssertionError(f"no column '{column}' in: {header}")


def test_columns_of_the_table() -> None:
    module = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, 2, 1), nn.Conv2d(2, 2, 3))
    made = StreamingModule(module, tile=(32, 64), stored=("1", "2"), keep=("2", "3")).plan((1, 1, 64, 64))
    text = str(made)
    assert cells(text, "stage") == ["0", "1", "2"]
    assert cells(text, "stored map") == ["1", "2", "3"]
    assert cells(text, "shape") == ["1x4x64x64", "1x2x32x32", "1x2x30x30"]
    assert cells(text, "way") == ["recompute", "keep", "keep"]
    assert cells(text, "tile") == ["32x64", "16x32", "15x30"]
    assert cells(text, "tiles") == ["2", "2", "2"]
    # In image pixels. Stage 1: 16 of 32 rows read [31, 64), one more than their share; stage 2 likewise, at half scale.
    assert cells(text, "overlap") == ["1x0", "1x0", "2x0"]
    assert cells(text, "map") == ["64.0 KiB", "8.00 KiB", "7.03 KiB"]
    assert cells(text, "kept")[0] == ""
    assert "kept tiles" in text
    assert "3 stages, 6 tiles" in text


def test_a_kept_stage_of_one_tile_is_whole() -> None:
    made = StreamingModule(nn.Conv2d(1, 2, 3), tile=64, stored=("",), keep=("",)).plan((1, 1, 32, 32))
    assert cells(str(made), "way") == ["whole"]
    assert "1 stage, 1 tile," in str(made)


def test_a_column_without_entries_is_left_out() -> None:
    text = str(StreamingModule(nn.Conv2d(1, 2, 3), tile=8).plan((1, 1, 32, 32)))
    assert "kept" not in text
    assert text.splitlines()[0].split()[-1] == "map"


def test_volume_and_predicted_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made = StreamingModule(nn.Conv3d(1, 2, 3), tile=8).plan((1, 1, 20, 18, 16))
    assert cells(str(made), "tile") == ["8x8x7"]  # 8 pixels of the image each; the result is 18x16x14
    assert cells(str(made), "overlap") == ["1x1x1"]
    monkeypatch.setitem(made.__dict__, "seconds", 4.56)
    assert "predicted time 4.6 s for a training step" in str(made)


def test_a_long_table_ends_with_its_header() -> None:
    deep = nn.Sequential(*(nn.Conv1d(2, 2, 3, padding=1) for _ in range(LONG + 1)))
    stored = [str(k) for k in range(LONG + 1)]
    lines = str(StreamingModule(deep, tile=16, stored=stored).plan((1, 2, 64))).splitlines()
    assert lines[LONG + 4] == lines[0]
    assert lines[:10].count(lines[0]) == 1
    short = str(StreamingModule(deep[:5], tile=16, stored=stored[:5]).plan((1, 2, 64)))
    assert short.splitlines().count(short.splitlines()[0]) == 1


def test_whole_maps_have_a_row_and_statistics_a_line() -> None:
    net = Net(lambda net, x: net.last(net.norm(net.conv(x)).flip(2)),
              conv=nn.Conv2d(1, 2, 3), norm=nn.BatchNorm2d(2), last=nn.Conv2d(2, 1, 1))  # fmt: skip
    text = str(StreamingModule(net, tile=16).plan((1, 1, 40, 40)))
    row = cells(text, "way").index("plain")
    assert cells(text, "shape")[row] == "whole maps"
    assert cells(text, "map")[row] == "11.3 KiB"
    assert cells(text, "stage")[row] == ""
    assert "computed once, as they are global: norm" in text


def test_saved_by_the_command_it_is_json_of_the_same_stages() -> None:
    assert plan("--tile", "32", "--save", "plan.json", "--eval", size="1x3x64x64") == 0
    data = json.loads(Path("plan.json").read_text())
    assert [stage["way"] for stage in data["stages"]] == ["recompute"] * len(data["stages"])
    assert data["images"] == [[1, 3, 64, 64]]
