"""The demo from end to end, on slides small enough for a test, and what it says when something is wrong."""

from __future__ import annotations

import csv
import errno
import os
import re
import runpy
import sys
from pathlib import Path

import pytest
import tifffile
import torch
from PIL import Image

from streamingcnn.cli.main import main

SMALL = ["--train", "4", "--test", "4", "--size", "512", "--epochs", "1"]
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """One small run of the whole demo: its folder and what it printed."""
    out = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("builtins.print", lambda *words, **_: lines.append(" ".join(map(str, words))))
        assert main(["demo", "--out", str(out), "--seed", "3", *SMALL]) == 0
    return out, "\n".join(lines).splitlines()


def test_the_last_lines_are_bytes_error_files_and_the_auc(demo: tuple[Path, list[str]]) -> None:
    out, lines = demo
    names = [line.split(":")[0] for line in lines[-5:-1]]
    assert names == ["plain PyTorch needs", "streaming needs", "gradient error", "files"]
    assert re.fullmatch(r"test AUC \d\.\d{3}", lines[-1])
    assert str(out) in lines[-2]
    (share,) = re.findall(r"\((\d+)%\)", lines[-4])
    assert int(share) < 100
    (error,) = re.findall(r"gradient error: (\S+) against plain", lines[-3])
    assert float(error) < 1e-10


def test_the_report_shows_every_tumour_slide_and_every_score(demo: tuple[Path, list[str]]) -> None:
    out, lines = demo
    page = (out / "report.html").read_text()
    assert "<svg" in page
    assert lines[-1].removeprefix("test AUC ") in page
    pictures = re.findall(r'src="([^"]+)"', page)
    assert pictures == ["overlays/test_001.png", "overlays/test_003.png"]
    for picture in pictures:
        with Image.open(out / picture) as image:
            assert image.size == (1024, 512)
    assert all(f"test_00{number}" in page for number in range(4))
    with (out / "predictions.csv").open() as file:
        assert [row["label"] for row in csv.DictReader(file)] == ["0", "1", "0", "1"]


def test_the_example_does_the_same_with_the_same_slides(
    demo: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`examples/camelyon/train.py` on the demo's table and seed: the demo's weights, to the bit."""
    out, lines = demo
    arguments = [str(out / "slides" / "labels.csv"), "--out", str(tmp_path), "--seed", "3", "--epochs", "1"]
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    runpy.run_path(str(ROOT / "examples" / "camelyon" / "train.py"), run_name="__main__")
    assert capsys.readouterr().out.splitlines()[-1] == lines[-1]
    ours, theirs = (torch.load(folder / "model.pt", weights_only=True) for folder in (out, tmp_path))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not [name for name in ours if "module" in name]  # the plain network's own names


def test_quick_compares_one_step_and_draws_the_tiles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--quick", "--out", str(tmp_path), "--size", "512"]) == 0
    shown = capsys.readouterr().out
    assert "receptive field" in shown
    assert "live bytes" in shown
    assert re.search(r"ok: worst error \d", shown)
    norms = re.findall(r"^parameter gradient \S+ +\S+ +(\S+)", shown, re.MULTILINE)
    assert len(norms) > 20
    assert all(float(norm) > 0 for norm in norms)  # there was something to compare
    with Image.open(tmp_path / "tiles.png") as picture:
        assert min(picture.size) >= 256
    assert str(tmp_path / "tiles.png") in shown.splitlines()[-1]
    assert not (tmp_path / "report.html").exists()


# -------------------------------------------------------------------------------------------- what goes wrong


def test_a_full_disk_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tifffile.TiffWriter, "write", full)
    assert main(["demo", "--out", str(tmp_path / "out"), *SMALL]) == 1
    (line,) = [each for each in capsys.readouterr().err.splitlines() if each.startswith("streamingcnn:")]
    assert "No space left on device" in line
    assert str(tmp_path / "out" / "slides") in line
    assert "choose another folder" in line
    assert not any((tmp_path / "out").rglob("*"))


def test_a_folder_in_use_by_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "mine.svs").touch()
    assert main(["demo", "--out", str(tmp_path), *SMALL]) == 1
    assert "something else than synthetic slides" in capsys.readouterr().err
    assert [each.name for each in (tmp_path / "slides").iterdir()] == ["mine.svs"]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--epochs", "0"], "--epochs 0: it must be at least 1"),
        (["--test", "1"], "--test 1: it must be at least 2"),
        (["--size", "1000"], r"whole tiles of 256 pixels"),
        (["--tile", "0"], "tile"),
    ],
)
def test_numbers_that_make_no_sense_are_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["demo", "--out", str(tmp_path / "out"), *arguments]) == 1
    assert re.search(said, capsys.readouterr().err)
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").rglob("*"))


def test_what_the_report_needs_is_asked_for_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("streamingcnn.extras.find_spec", lambda _: None)
    assert main(["demo", "--out", str(tmp_path / "out"), *SMALL]) == 1
    assert "pip install 'streamingcnn[demo]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_line_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "demo" in shown
    assert "check" in shown
    with pytest.raises(SystemExit) as ended:
        main(["train-faster"])
    assert ended.value.code == 2
