"""`streamingcnn train` on small slides of all kinds, good and bad, and what it leaves behind."""

from __future__ import annotations

import csv
import json
import resource
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from streamingcnn.cli.main import main
from streamingcnn.slides import Case
from streamingcnn.training.checkpoint import read_checkpoint
from streamingcnn.training.run import load_run
from streamingcnn.training.settings import Settings
from streamingcnn.training.slides import Slides, slide_image
from streamingcnn.training.train import train
from tests import faults
from tests.forked import needs_fork, process

NETS = """
from torch import nn
def small(width=4):
    return nn.Sequential(nn.Conv2d(3, width, 5, 4, 2), nn.BatchNorm2d(width), nn.ReLU())
def whole():
    return nn.Sequential(small(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1))
"""


def slide(path: Path, dark: bool, mpp: float | None = 0.5, size: tuple[int, int] = (96, 128), seed: int = 0) -> Path:
    """A tiled TIFF of noise, with a dark square or without."""
    pixels = np.random.default_rng(seed).integers(120, 190, (*size, 3), np.uint8)
    if dark:
        pixels[20:60, 30:70] //= 2
    about: dict[str, Any] = {}
    if mpp is not None:
        about = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, pixels, tile=(32, 32), photometric="rgb", compression="adobe_deflate", **about)
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight slides, a table of them, and networks; the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets_for_train.py").write_text(NETS)
    rows = []
    for number in range(8):
        slide(tmp_path / f"{number}.tif", dark=bool(number % 2), seed=number, size=(96, 128 + 32 * (number // 4)))
        rows.append((f"{number}.tif", number % 2, "test" if number >= 6 else "validation" if number >= 4 else "train"))
    write(tmp_path / "labels.csv", [("path", "label", "split"), *rows])
    return tmp_path


def write(path: Path, rows: list[tuple[Any, ...]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


SMALL = ["--model", "nets_for_train.py:small", "--head", "mean", "--tile", "64", "--tissue", "none", "--epochs", "2"]


def run(*arguments: str, table: str = "labels.csv", out: str = "run") -> int:
    return main(["train", table, "--out", out, *SMALL, *arguments])


def test_a_run_and_all_that_it_leaves(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--mpp", "1", "--accumulate", "3", "--arg", "width=6") == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "cases: 4 train, 2 validation, 2 test; to train on: 0 2, 1 2"
    first_step = next(k for k, line in enumerate(shown) if "step 1/4" in line)
    told = "\n".join(shown[:first_step])
    assert "48 x 64 pixels" in told and "tiles" in told and "predicted" in told and "iB" in told
    assert "3 slides to a step, 2 steps to an epoch" in told
    assert "; 2 epochs" in told and "time for plans" in told  # small slides are planned for longer than they run
    assert "loss 0." in shown[first_step] and "s for pixels" in shown[first_step] and "iB" in shown[first_step]
    assert "best validation loss" in shown[-1]

    steps = [row for row in read(folder / "run" / "log.csv") if row["loss"]]
    assert [row["step"] for row in steps] == ["1", "2", "3", "4"] and [row["images"] for row in steps] == list("3131")
    epochs = [row for row in read(folder / "run" / "log.csv") if row["validation"]]
    assert [row["epoch"] for row in epochs] == ["1", "2"]
    settings = tomllib.loads((folder / "run" / "settings.toml").read_text())
    assert settings["mpp"] == 1.0 and settings["arg"] == {"width": 6} and settings["classes"] == ["0", "1"]
    assert json.loads((folder / "run" / "versions.json").read_text())["torch"] == torch.__version__
    assert [row["split"] for row in read(folder / "run" / "splits.csv")][3:7] == ["train", *["validation"] * 2, "test"]
    assert read(folder / "run" / "bad_cases.csv") == []
    assert list((folder / "run" / "tensorboard").iterdir())

    net, loaded = load_run(folder / "run")
    assert not net.training and loaded.classes == ("0", "1")
    best, last = (read_checkpoint(folder / "run" / "checkpoints" / name) for name in ("best.pt", "last.pt"))
    assert min(epoch["validation"] for epoch in last["history"]) == best["best"][0]
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in best["net"].items())
    with torch.no_grad():
        assert net(slide_image(Case(folder / "7.tif", 1, "test", "7"), loaded)).shape == (1, 1)

    assert run("--mpp", "1", "--accumulate", "3", "--arg", "width=6") == 0  # finished: says so, does nothing
    assert "finished after 2 epochs; give another --out" in capsys.readouterr().out
    assert run("--mpp", "1", "--accumulate", "2", "--arg", "width=6") == 1
    assert "accumulate: 3 there, 2 here" in capsys.readouterr().err


def test_settings_from_a_file_and_the_command_line_before_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "s.toml").write_text(
        'table = "labels.csv"\nmodel = "nets_for_train.py:whole"\nepochs = 7\nmpp = 1\nmemory = "1GiB"\n'
    )
    assert (
        main(["train", "--config", "s.toml", "--epochs", "1", "--out", "first", "--no-flips", "--tissue", "none"]) == 0
    )
    settings = Settings.of(Settings.read(folder / "first" / "settings.toml"))
    assert (settings.epochs, settings.mpp, settings.flips, settings.memory) == (1, 1.0, False, "1GiB")
    assert main(["train", "--config", "first/settings.toml", "--out", "again"]) == 0
    first, again = (read_checkpoint(folder / name / "checkpoints" / "last.pt") for name in ("first", "again"))
    assert all(torch.equal(tensor, again["net"][name]) for name, tensor in first["net"].items())
    capsys.readouterr()
    (folder / "s.toml").write_text('epochs = "many"\nlearning_rate = 1\nlabelcol = "x"\n')
    assert main(["train", "labels.csv", "--config", "s.toml"]) == 1
    said = capsys.readouterr().err
    assert "epochs is 'many'; it must be a whole number" in said and "no setting 'learning_rate'" in said
    assert "no setting 'labelcol'; did you mean 'label_col'?" in said
    assert main(["train", "labels.csv", "--epochs", "0", "--mpp", "1", "--level", "1"]) == 1
    said = capsys.readouterr().err
    assert "epochs is 0; it must be at least 1" in said and "mpp and level both say the resolution" in said


@pytest.mark.parametrize("task", ["multiclass", "ordinal", "regression"])
def test_other_tasks(folder: Path, task: str) -> None:
    rows = read(folder / "labels.csv")
    labels = {"multiclass": "abcabcab", "ordinal": "01230123", "regression": ("1.5", "-2", *"345678")}[task]
    write(
        folder / "t.csv",
        [("path", "label", "split"), *((r["path"], label, r["split"]) for r, label in zip(rows, labels, strict=True))],
    )
    more = ["--class-weights", "balanced", "--frozen-epochs", "1", "--norm", "group", "--head", "attention"]
    assert run("--task", task, *(more if task != "regression" else []), table="t.csv") == 0
    net, settings = load_run(folder / "run")
    task_of = settings.labels_as()
    with torch.no_grad():
        result = net(slide_image(Case(folder / "7.tif", 0, "test", "7"), settings))
    assert result.shape == (1, task_of.outputs) and task_of.values(result).shape == (1,)
    if task == "regression":
        assert settings.target_mean == pytest.approx((1.5 - 2 + 3 + 4) / 4)
    else:
        assert task_of.probabilities(result).sum() == pytest.approx(1)


# ------------------------------------------------------------------------------------------------- what is bad


def test_bad_cases_are_named_left_out_and_listed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = slide(folder / "truncated.tif", True, seed=20).read_bytes()
    (folder / "truncated.tif").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.tif").touch()
    pixels = bytearray(slide(folder / "region.tif", True, seed=21).read_bytes())
    middle = len(pixels) // 2
    pixels[middle : middle + 40] = b"\xff" * 40
    (folder / "region.tif").write_bytes(pixels)
    slide(folder / "nowhere_said.tif", True, mpp=None, seed=22)
    slide(folder / "absurd.tif", True, mpp=352.8, seed=23)
    slide(folder / "masked.tif", True, seed=24)
    Image.new("L", (50, 200), 255).save(folder / "mask.png")
    Image.new("L", (64, 48), 255).save(folder / "good.png")
    Image.new("L", (64, 64)).save(folder / "grey.png")
    good = [(f"{number}.tif", number % 2, "", "good.png" if number == 1 else "") for number in range(4)]
    bad = [(f"{name}.tif", 1, "", "") for name in ("truncated", "empty", "region", "nowhere_said", "absurd")]
    rows = [*good, *bad, ("masked.tif", 1, "", "mask.png"), ("grey.png", 0, "0.5", "")]
    write(folder / "t.csv", [("path", "label", "mpp", "mask"), *rows])
    given = ["--mpp", "0.5", "--normalise", "unit", "--validation", "0", "--test", "0", "--accumulate", "4"]
    assert run(*given, table="t.csv") == 0
    found = {row["id"]: row["reason"] for row in read(folder / "run" / "bad_cases.csv")}
    assert found.keys() == {"truncated", "empty", "region", "nowhere_said", "absurd", "masked", "grey"}
    assert "empty (0 bytes)" in found["empty"]
    assert "does not say how large its pixels are" in found["nowhere_said"]
    assert "352.8 um wide" in found["absurd"]
    assert "aspects" in found["masked"]
    assert "red, green and blue" in found["grey"]
    assert "region.tif" in found["region"] and "truncated.tif" in found["truncated"]
    shown = capsys.readouterr().out
    assert "7 case(s) were left out" in shown and "finished: 2 epochs" in shown
    assert sum(int(row["images"]) for row in read(folder / "run" / "log.csv") if row["images"]) == 2 * 4


def test_where_nothing_can_be_read_there_is_no_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(4):
        (folder / f"{number}.tif").write_bytes(b"")
    assert run() == 1
    assert "none of 4 training cases can be read" in capsys.readouterr().err


def test_a_wrong_table_is_said_before_anything_is_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder / "t.csv", [("path", "label"), ("0.tif", "nan"), ("none.tif", "1"), ("2.tif", "0")])
    assert run(table="t.csv") == 1
    said = capsys.readouterr().err
    assert "line 2: the label is missing (nan)" in said and "line 3: there is no slide at none.tif" in said
    assert not (folder / "run").exists()


def test_a_folder_that_cannot_be_written_or_is_of_something_else(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(out="/proc/self/no_run") == 1
    assert "/proc/self/no_run" in capsys.readouterr().err
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.txt").touch()
    assert run(out="mine") == 1
    assert "mine holds something else than a run" in capsys.readouterr().err
    assert run("--tissue", "masks") == 1
    assert "tissue is masks: it is neither 'auto' nor 'none', and no file or folder" in capsys.readouterr().err
    assert run(out="labels.csv") == 1
    assert "labels.csv is a file" in capsys.readouterr().err


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run" / ".settings.toml.4711.partial").write_text("table =")
    assert run("--epochs", "1") == 0
    (folder / "again").mkdir()
    (folder / "run" / "settings.toml").rename(folder / "again" / "settings.toml")
    assert run("--epochs", "1", out="again") == 0
    assert not list(folder.rglob("*.partial"))


def limited(arguments: list[str], room: int, said: str) -> None:
    """A process on a disk with so many bytes for a file."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    with open(said, "w", buffering=1) as file:
        sys.stdout = sys.stderr = file
        sys.exit(main(arguments))


@needs_fork
def test_a_full_disk_is_said_and_nothing_is_torn(tmp_path: Path) -> None:
    table = faults.prepare(tmp_path)
    arguments = faults.command(table, tmp_path / "run", 2)
    full = process(limited, arguments, 1 << 20, str(tmp_path / "said"))
    full.join()
    assert full.exitcode == 1
    said = (tmp_path / "said").read_text()
    assert "could not write" in said and "last.pt" in said and "choose another folder" in said
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    assert main(arguments) == 0  # with room again, the same command


@needs_fork
def test_sigterm_saves_and_ends_well(tmp_path: Path) -> None:
    table = faults.prepare(tmp_path)
    arguments = [*faults.command(table, tmp_path / "run", 3), "--checkpoint-seconds", "1000"]
    stopped = process(faults.child, arguments)
    log = tmp_path / "run" / "log.csv"
    while stopped.is_alive() and not (log.exists() and len(log.read_text().splitlines()) > 1):
        time.sleep(0.001)
    stopped.terminate()
    stopped.join()
    assert stopped.exitcode == 0
    state = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")
    assert not state["finished"] and state["step"] + 2 * (state["epoch"] - 1) >= 1
    assert main(arguments) == 0
    assert main([*faults.command(table, tmp_path / "whole", 3), "--checkpoint-seconds", "1000"]) == 0
    one, other = (read_checkpoint(tmp_path / name / "checkpoints" / "last.pt") for name in ("run", "whole"))
    assert faults._equal(one["net"], other["net"]) and faults._equal(one["optimizer"], other["optimizer"])


# ------------------------------------------------------------------------------------------------- the slides


def test_a_slide_is_masked_turned_and_scaled(folder: Path) -> None:
    from streamingcnn.training.examples import Draw

    settings = Settings(mpp=0.5, tissue="none", normalise="slide")
    case = Case(folder / "1.tif", 1, "train", "1")
    slides = Slides([case], settings)
    image = slides.image(0)
    whole = image.read(((0, 96), (0, 128)))
    assert whole.dtype == torch.float32 and abs(float(whole.mean())) < 0.05
    slides.close(image)
    draw = Draw(3, True, (1.1, 0.9, 1.0), (0.1, 0.0, -0.2))
    turned = slides.image(0, draw)
    assert turned.shape == (3, 128, 96)
    gain, offset = torch.tensor(draw.gain).view(3, 1, 1), torch.tensor(draw.offset).view(3, 1, 1)
    expected = torch.rot90(whole, 3, (-2, -1)).flip(-1) * gain + offset
    torch.testing.assert_close(turned.read(((0, 128), (0, 96))), expected, atol=1e-5, rtol=1e-5)
    box = ((17, 90), (3, 41))
    torch.testing.assert_close(turned.read(box), expected[:, 17:90, 3:41], atol=1e-5, rtol=1e-5)
    slides.close(turned)
    Image.fromarray(np.arange(128)[None] < np.full((96, 1), 64)).save(folder / "half.png")
    masked = slide_image(Case(folder / "1.tif", 1, "train", "1", mask=folder / "half.png"), settings)
    pixels = masked.read(((0, 96), (0, 128)))
    assert (pixels[:, :, 64:].flatten(1).std(1) < 1e-5).all() and torch.equal(pixels[:, :, :64], whole[:, :, :64])


def test_train_is_a_function_too(folder: Path) -> None:
    said: list[str] = []
    settings = Settings(
        table="labels.csv", out="run", model="nets_for_train.py:small", head="top", tile=64, epochs=1, tissue="none"
    )
    outcome = train(settings, said.append)
    assert outcome.finished and len(outcome.history) == 1 and outcome.bad == {}
    assert any("1 epoch" in line for line in said) and not any("1 epochs" in line for line in said)
