"""The programs of examples/integrations, run as their users would."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_streamed_trunk_trains_under_lightning(tmp_path: Path) -> None:
    if find_spec("lightning") is None:
        pytest.skip("pip install lightning")
    printed = run("examples/integrations/lightning_module.py", "--out", str(tmp_path))
    losses = [float(line.split()[1]) for line in printed.splitlines() if line.startswith("loss")]
    assert len(losses) == 4
    assert len(set(losses)) == 4  # the weights moved
    assert list(tmp_path.rglob("*.ckpt"))


def test_steps_and_epochs_go_to_tensorboard(tmp_path: Path) -> None:
    assert run("examples/integrations/trackers.py", "--out", str(tmp_path)).count("epoch") == 2
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reading.EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert [event.step for event in events.Scalars("epoch loss")] == [2, 4]
