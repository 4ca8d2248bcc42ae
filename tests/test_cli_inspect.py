"""`streamingcnn inspect`: what it says of slides that are whole, and of those that lack something."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from torch import Tensor

from streamingcnn.boxes import Box
from streamingcnn.cli.main import main
from streamingcnn.sources import SlideImage
from streamingcnn.synthetic import make_slide, write_slide

from .shared import shared


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inspect") / "tumour 1.tif"
    write_slide(make_slide(5, tumour=True, size=(512, 768)), path)
    return path


def test_all_that_a_slide_says_of_itself(slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(slide), "--out", str(tmp_path / "pictures")]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"what +generic-tiff", shown)
    assert "512 x 768 pixels (height x width), 1.12 MiB as uint8" in shown
    assert "0.5 um per pixel: 0.26 x 0.38 mm" in shown
    assert re.search(r"levels +0: 512 x 768, 0.5 um\n +1: 256 x 384, 1 um\n", shown)
    assert re.search(r"tissue +\d\d\.\d% \(auto", shown)
    with Image.open(tmp_path / "pictures" / "tumour 1.thumbnail.png") as thumbnail:
        assert thumbnail.size == (768, 512)
    with Image.open(tmp_path / "pictures" / "tumour 1.tissue.png") as mask:
        assert mask.size == (768, 512)


def test_a_model_is_planned_from_shapes_and_no_level_is_read_for_it(
    slide: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, real = list[int](), SlideImage._pixels

    def watched(self: SlideImage, box: Box) -> Tensor:
        read.append(self.level)
        return real(self, box)

    monkeypatch.setattr(SlideImage, "_pixels", watched)
    arguments = ["--model", "resnet18", "--mpp", "1.0", "--memory", "150MiB", "--tissue", "none"]
    assert main(["inspect", str(slide), *arguments]) == 0
    assert read == []
    shown = capsys.readouterr().out
    assert re.search(r"resnet18 +256 x 384 pixels at 1 um per pixel", shown)
    assert re.search(r"\d+ stages, \d+ tiles", shown)
    (peak,) = re.findall(r"([\d.]+) MiB of 150 MiB for a training step", shown)
    assert 10 < float(peak) <= 150


def test_a_slide_without_resolution_names_the_three_ways_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = tmp_path / "scan.png"
    Image.fromarray(np.full((64, 96, 3), 200, np.uint8)).save(plain)
    assert main(["inspect", str(plain)]) == 0  # it can be looked at ...
    shown = capsys.readouterr().out
    for way in ("column mpp of the case table", "--slide-mpp 0.25", "level=0"):
        assert way in shown
    assert main(["inspect", str(plain), "--model", "resnet18", "--mpp", "0.5"]) == 1  # ... but not read at 0.5 um
    assert "Three ways out" in capsys.readouterr().err
    assert main(["inspect", str(plain), "--slide-mpp", "0.25"]) == 0
    assert "0.25 um per pixel, as given: 0.02 x 0.02 mm" in capsys.readouterr().out


def test_72_dots_per_inch_is_no_resolution(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "editor.tif"
    tifffile.imwrite(
        path, np.full((256, 256, 3), 200, np.uint8), tile=(256, 256), resolution=(72, 72), resolutionunit="INCH"
    )
    assert main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "MISSING" in shown
    assert "352.8 um" in shown


def test_one_bad_slide_does_not_hide_the_others(
    slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.svs").touch()
    broken = tmp_path / "broken.tif"
    broken.write_bytes(slide.read_bytes()[:2000])
    paths = [tmp_path / "empty.svs", slide, broken, tmp_path / "gone.svs"]
    assert main(["inspect", *map(str, paths)]) == 1
    captured = capsys.readouterr()
    assert "4 slides, 3 with a problem" in captured.out
    assert "512 x 768 pixels" in captured.out
    problems = [line for line in captured.err.splitlines() if "PROBLEM" in line]
    assert len(problems) == 3
    for name, problem in zip(("empty.svs", "broken.tif", "gone.svs"), problems, strict=True):
        assert name in problem


def test_a_mask_of_another_aspect_is_a_problem_of_that_slide(
    slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "mask.npy", np.ones((10, 10)))
    assert main(["inspect", str(slide), "--tissue", str(tmp_path / "mask.npy")]) == 1
    assert "10 x 10 (height x width), and the slide 512 x 768" in capsys.readouterr().err


def test_a_real_slide(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = shared("slides/CMU-1-Small-Region.svs")
    assert main(["inspect", str(path), "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "aperio" in shown
    assert "2967 x 2220 pixels" in shown
    assert "0.499 um per pixel: 1.48 x 1.11 mm" in shown
    (share,) = re.findall(r"tissue +([\d.]+)%", shown)
    assert 30 < float(share) < 50
    assert (tmp_path / "CMU-1-Small-Region.tissue.png").exists()
