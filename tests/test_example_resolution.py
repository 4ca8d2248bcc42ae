"""The example of four resolutions: one small run, and that its table says what its predictions say."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from examples.resolution_matters import run


def test_the_example_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run.main(["--out", str(tmp_path), "--train", "4", "--test", "4", "--size", "512", "--epochs", "2"])
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [(row["level"], row["mpp"], row["epochs"]) for row in rows] == [
        (3, 4, 12),
        (2, 2, 12),
        (1, 1, 12),
        (0, 0.5, 2),
    ]
    table = (tmp_path / "table.md").read_text()
    for row in rows:
        with (tmp_path / f"level_{row['level']}" / "predictions.csv").open() as file:
            said = list(csv.DictReader(file))
        auc = roc_auc_score([int(each["label"]) for each in said], [float(each["score"]) for each in said])
        low, high = row["interval"]
        assert len(said) == row["slides"] == 4 and row["auc"] == auc and low <= auc <= high
        assert f"| {auc:.3f} ({low:.3f} to {high:.3f}) | 4 |" in table
    assert table in capsys.readouterr().out
    with Image.open(tmp_path / "figure.png") as picture:
        assert picture.size == (880, 594)
