"""The example of dense patches and nuclei: what its slides are made of, and one small run of it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch import nn

from examples.nuclei_density import run, stitch
from examples.nuclei_density.patches import Patch, made_patches, read_patches, share_below, split_patches
from streamingcnn import StreamingModule
from streamingcnn.slides import standardised
from streamingcnn.slides.cases import read_table
from tests.shared import shared


@pytest.fixture(scope="module")
def made() -> list[Patch]:
    return made_patches(100)


def test_patches_of_bbbc038_are_counted_by_the_middles_of_their_nuclei(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 520, 3), np.uint8)
    places = [
        (30, 30),
        (200, 100),
        (100, 300),
        (2, 400),
        (100, 254),
    ]  # the fourth is above, the fifth is cut
    for name, image in (("colour", pixels), ("grey", np.repeat(pixels[..., :1], 3, 2)), ("small", pixels[:200])):
        (tmp_path / name / "images").mkdir(parents=True)
        (tmp_path / name / "masks").mkdir()
        Image.fromarray(image).save(tmp_path / name / "images" / f"{name}.png")
        for number, (y, x) in enumerate(places):
            mask = np.zeros(image.shape[:2], np.uint8)
            mask[y : y + 10, x : x + 10] = 255
            Image.fromarray(mask).save(tmp_path / name / "masks" / f"{number}.png")
    left, right = read_patches(tmp_path)
    assert (left.nuclei, right.nuclei, left.image) == (3, 1, "colour")
    assert (left.pixels == pixels[22:278, 4:260]).all() and (right.pixels == pixels[22:278, 260:516]).all()


def test_no_image_is_in_two_splits_and_each_has_its_dense_ones(made: list[Patch]) -> None:
    dense = share_below(made, 0.9)
    assert [sum(p.nuclei >= dense for p in found) for found in split_patches(made).values()] == [5, 2, 3]
    split = split_patches([Patch(p.pixels, p.nuclei, f"image_{number // 2}") for number, p in enumerate(made)])
    images = {name: {patch.image for patch in found} for name, found in split.items()}
    assert {name: len(found) for name, found in images.items()} == {"train": 25, "validation": 10, "test": 15}
    assert len(set.union(*images.values())) == 50
    assert sum(map(len, split.values())) == 100


def test_negatives_have_no_dense_patch_and_positives_one_or_two(made: list[Patch]) -> None:
    limits = share_below(made, 0.8), share_below(made, 0.9)
    rng = np.random.default_rng(0)
    for number in range(40):
        patches, label = stitch.by_label(made, limits, number, rng)
        dense = sum(patch.nuclei >= limits[1] for patch in patches)
        assert label == ("dense" if number % 2 else "sparse") and dense in ((1, 2) if number % 2 else (0,))
        assert sum(patch.nuclei < limits[0] for patch in patches) == 16 - dense


def test_counts_spread_and_are_those_of_the_slide(made: list[Patch], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    counts = np.array([float(stitch.by_count(made, rng)[1]) for _ in range(300)])
    assert counts.std() >= counts.mean() / 4
    one = {
        split: [Patch(np.full((256, 256, 3), shade, np.uint8), shade, "")] * 2 for split, shade in (("a", 3), ("b", 7))
    }
    table = stitch.write_slides(tmp_path / "slides", "count", one, (0, 0), {"a": 1, "b": 1}, 0)
    for row in csv.DictReader(table.read_text().splitlines()):
        pixels = tifffile.imread(table.parent / row["path"])
        assert pixels.shape == (1024, 1024, 3) and (pixels == int(row["label"]) // 16).all()
        assert pixels.flat[0] == {"a": 3, "b": 7}[row["split"]]


def test_real_patches_are_read() -> None:
    patches = read_patches(shared("he_nuclei"))
    assert len(patches) == 106
    assert sum(patch.nuclei >= share_below(patches, 0.9) for patch in patches) == 11


def test_statistics_taken_again_are_those_of_all_slides(made: list[Patch], tmp_path: Path) -> None:
    split = {"train": made[:20]}
    table = stitch.write_slides(tmp_path / "slides", "count", split, (0, 0), {"train": 4}, 0)
    cases = read_table(table, task="regression", classes=()).cases
    convolution, norm = nn.Conv2d(3, 4, 7, 4, 3), nn.BatchNorm2d(4)
    net = StreamingModule(nn.Sequential(convolution, norm), tile=512)
    run.statistics_again(net, list(cases), batch=2)
    with torch.no_grad():
        seen = convolution(torch.cat([standardised(run.pixels(case)[None]) for case in cases]))
    assert norm.momentum == 0.1 and net.training
    torch.testing.assert_close(norm.running_mean, seen.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)
    halves = torch.stack([half.var((0, 2, 3)) for half in seen.split(2)])
    torch.testing.assert_close(norm.running_var, halves.mean(0), atol=1e-5, rtol=1e-4)


SMALL = """
sparse = 0.8
dense = 0.9
tile = 512
[count]
head = "mean"
epoch = "last"
again = true
slides = { train = 2, validation = 1, test = 4 }
recipe = { epochs = 1, batch = 2 }
[label]
head = "top"
epoch = "best"
again = false
slides = { train = 2, validation = 1, test = 4 }
recipe = { epochs = 1, batch = 2 }
"""


def test_the_example_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "small.toml").write_text(SMALL)
    run.main(["--out", str(tmp_path), "--seeds", "3", "--config", str(tmp_path / "small.toml")])
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "results.json").read_text())
    assert [each["task"] for each in found] == ["count", "label"]
    for each in found:
        reached = each["value"] >= each["bar"] and each["value"] > each["mean_colour"]
        assert f"test {each['measure']} {each['value']:.3f}, mean colour {each['mean_colour']:.3f}" in printed
        assert each["reached"] == reached
    assert f"{sum(each['reached'] for each in found)} of 2 bars reached, on test slides" in printed
    with Image.open(tmp_path / "figure.png") as picture:
        assert picture.width == 880
