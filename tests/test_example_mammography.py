"""`examples/mammography`: every way trains, is judged and is drawn; the table and its bars by hand."""

from __future__ import annotations

import csv
import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from examples.mammography import run, table
from examples.mammography.judge import best_cells
from streamingcnn.training.checkpoint import read_tensors

WAYS = [
    "GMIC",
    "GMIC, 1/4",
    "CAM",
    "GLAM",
    "U-Net",
    "ResNet-18",
    "ResNet-18, 1/4",
    "ResNet-34",
    "ResNet-34, 1/4",
    "GLAM, local at stride 4",
]


def tiny(folder: Path, memory: str = "") -> Path:
    """The real file with fewer and smaller images, and narrow networks."""
    lines = []
    for line in Path("examples/mammography/cpu.toml").read_text().splitlines():
        key = line.split("=")[0].strip()
        small = {
            "size": "[128, 96]",
            "train": "4",
            "validation": "4",
            "test": "4",
            "diameters": "[16.0, 20.0]",
            "crop": "64",
            "crops": "2",
            "percent_t": "0.3",
            "local_width": "4",
            "width": "4",
            "pictures": "1",
            "epochs": "1",
            "warm_epochs": "1",
            "memory": f'"{memory}"',
        }.get(key)
        lines.append(line if small is None else f"{key} = {small}")
    (folder / "tiny.toml").write_text("\n".join(lines))
    return folder / "tiny.toml"


def start(monkeypatch: pytest.MonkeyPatch, module: object, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
    module.main()  # type: ignore[attr-defined]


def test_every_way_is_trained_judged_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, out = tiny(tmp_path), tmp_path / "out"
    start(monkeypatch, run, "--config", config, "--out", out, "--seed", 3)
    results = json.loads((out / "seed_3" / "results.json").read_text())
    assert [name for name in results if name != "grid of GMIC's map"] == WAYS
    assert all(0 <= results[name]["auc"]["malignant"] <= 1 for name in WAYS)
    assert set(results["GLAM"]["dice"]) == {"GLAM global", "GLAM"} == set(results["GLAM"]["threshold"])
    with (out / "seed_3" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["benign_label"], row["malignant_label"]) for row in rows] == [
        ("0", "0"),
        ("1", "0"),
        ("0", "1"),
        ("1", "1"),
    ]
    pictures = sorted(path.name for path in (out / "seed_3" / "pictures").iterdir())
    assert pictures == ["glam_test_003.png", "gmic_test_003.png"]
    with Image.open(out / "seed_3" / "pictures" / pictures[0]) as picture:
        assert picture.height > 300
    # The second local network saw the crops of the first one's trunk, which stood still in both.
    one, other = (
        {k: v for k, v in read_tensors(out / "seed_3" / f"{name}.pt").items() if k.startswith("global_network")}
        for name in ("glam", "glam_local_at_stride_4")
    )
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    capsys.readouterr()
    start(monkeypatch, run, "--config", config, "--out", out, "--seed", 3)  # nothing is left to do
    assert capsys.readouterr().out == ""
    start(monkeypatch, run, "--config", config, "--out", out, "--seed", 3, "--again", "--only", "CAM")
    assert json.loads((out / "seed_3" / "results.json").read_text()) == results  # as judged when it was trained
    streamed = tmp_path / "streamed"
    start(monkeypatch, run, "--config", tiny(tmp_path, "64MiB"), "--out", streamed, "--seed", 3, "--only", "GMIC")
    with (streamed / "seed_3" / "predictions.csv").open() as file:
        again = list(csv.DictReader(file))
    assert [float(row["malignant_pred"]) for row in again] == pytest.approx(
        [float(row["malignant_pred"]) for row in rows], abs=0.005
    )
    capsys.readouterr()
    start(monkeypatch, table, out)
    shown = capsys.readouterr().out
    assert (
        "| GMIC, 1/4 |" in shown
        and "| ResNet-34, 1/4 | malignant |" in shown
        and "best choice of GMIC's 2x2 cells" in shown
    )
    dice = results["GLAM, local at stride 4"]["dice"]["GLAM"]
    assert f"for a crop of 128; Dice malignant {dice['malignant']:.3f}, benign {dice['benign']:.3f}" in shown
    assert (out / "table.md").read_text() == shown and (out / "table.csv").exists()


def test_the_file_has_the_agreed_numbers() -> None:
    config = tomllib.loads(Path("examples/mammography/cpu.toml").read_text())
    images = config["images"]
    assert (images["size"], images["train"], images["validation"], images["test"]) == ([512, 384], 160, 64, 200)
    assert config["gmic"]["crop"] == config["glam"]["crop"] == 128
    assert [d / 128 for d in images["diameters"]] == pytest.approx([0.25, 0.45], abs=0.005)


def test_means_seeds_and_bars_by_hand() -> None:
    def seed(area: float, glam: float) -> dict[str, Any]:
        dice = {"malignant": glam, "benign": 0.1}
        return {
            "GMIC": {"auc": {"malignant": area}, "dice": {"GMIC's map": {"malignant": 0.1875, "benign": 0.1}}},
            "GMIC, 1/4": {"auc": {"malignant": 0.5}},
            "GLAM": {"dice": {"GLAM": dice}},
        }

    results = {0: seed(1.0, 0.5), 1: seed(0.8125, 0.25)}
    said = table.bars(results)
    assert said[0].endswith("0.906, reached") and said[1].endswith("0.406, reached")
    assert said[2].endswith("2.000, reached") and said[4].endswith("1.000, MISSED")
    assert said[3].endswith("not run")  # no CAM
    assert table.shown([0.95, 0.85]) == "0.900 (0.950, 0.850)" and table.shown([]) == "not run"


def test_the_best_choice_of_cells() -> None:
    mask = np.zeros((8, 8), bool)
    mask[:4, :6] = True
    assert best_cells(mask, (2, 2)) == 2 * 24 / (32 + 24)  # both upper cells
    mask[:4, 5] = mask[:4, 4] = False
    assert best_cells(mask, (2, 2)) == 1.0
