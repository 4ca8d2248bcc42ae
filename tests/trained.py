"""A small network that was trained by the command line, for tests of what comes after."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from streamingcnn.cli.main import main
from streamingcnn.synthetic import Cohort


def small() -> nn.Module:
    """A trunk of stride 8."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, 4, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()
    )


def train(folder: Path, *arguments: str) -> tuple[Path, Path]:
    """The folder of a run of one epoch and the table that it was trained on; four slides to test on."""
    table = Cohort(seed=1, train=4, test=4, size=(512, 512)).write(folder / "slides")
    out = folder / "run"
    model = ["--model", f"{__file__}:small", "--epochs", "1", "--tile", "256", "--accumulate", "2", "--level", "1"]
    assert main(["train", str(table), "--out", str(out), *model, *arguments]) == 0
    return out, table
