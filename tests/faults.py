"""Kill a training again and again, at random moments, and see that nothing is lost.

    make faults

The run is `streamingcnn train` with a checkpoint after each step, in a process of its own, forked from a server that
has imported everything, so that most of its life is training. Every second kill waits for a write of a checkpoint to
begin, and then for a random part of the time that a write takes. A kill was inside a write where the unfinished file of
that very process is still there when it is dead. After each kill the checkpoint must load; at the end the weights, the
optimiser and every step's loss must be those of a run that was left in peace, to the bit.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from streamingcnn.cli.main import main
from streamingcnn.training.checkpoint import read_checkpoint
from streamingcnn.training.folder import read_log
from tests import forked

SLIDES, SIDE = 6, 64
#: Seconds that an aimed kill waits for a write to begin; a process takes so long to start only beside many others.
PATIENCE = 60.0
#: What two runs must have in common, beside the numbers in log.csv.
PARTS = ("net", "plans", "optimizer", "schedule", "scaler", "generators", "epoch", "step", "finished", "best", "bad")


def small() -> nn.Module:
    """A trunk whose checkpoint (12 MB with its optimiser) takes about as long to write as a step to compute."""
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 5, 4, 2), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.2)),
        *(nn.Conv2d(16, 400, 3, 2, 1), nn.ReLU(), nn.Conv2d(400, 256, 3, 2, 1), nn.ReLU()),
    )


def prepare(folder: Path) -> Path:
    """A table of small pictures of two kinds."""
    draw = np.random.default_rng(0)
    rows = []
    for number in range(SLIDES):
        pixels = draw.integers(100, 180, (SIDE, SIDE, 3), np.uint8)
        pixels[: SIDE // 2] //= 1 + number % 2
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append((f"{number}.png", number % 2, "validation" if number >= SLIDES - 2 else "train"))
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    return folder / "labels.csv"


def command(table: Path, out: Path, epochs: int) -> list[str]:
    """The command line of the run."""
    given = ["train", str(table), "--out", str(out), "--model", "tests.faults:small", "--head", "mean", "--tile", "32"]
    return [*given, "--epochs", str(epochs), "--accumulate", "2", "--checkpoint-seconds", "0", "--tissue", "none"]


def child(arguments: list[str], spent: Path | None = None) -> None:
    """The process that is killed; where it is not, it may leave how long it computed."""
    torch.set_num_threads(1)
    begun = time.process_time()
    with open(os.devnull, "w") as nothing:
        sys.stdout = sys.stderr = nothing
        code = main(arguments)
        if spent is not None:
            spent.write_text(str(time.process_time() - begun))
        sys.exit(code)


@dataclass
class Result:
    """What happened."""

    kills: int = 0
    inside: int = 0
    """How many of them came while a checkpoint was written."""
    moved: int = 0
    """After how many of them the checkpoint was further than before."""
    runs: int = 0
    seconds: float = 0.0
    """Of the run that was left in peace, from its first checkpoint on."""
    computing: float = 0.0
    """Seconds of a processor that it took, its start included."""
    identical: bool = True


def faults(folder: Path, kills: int, epochs: int, seed: int = 0, inside: int = 0) -> Result:
    """Kill so often, and go on until so many were inside a write, for at most five times as many kills.

    It is an error where a checkpoint is torn.
    """
    table, choose, result = prepare(folder), random.Random(seed), Result()

    def start(out: Path) -> Any:
        return forked.process(child, command(table, out, epochs), folder / "spent")

    forked.process(id, 0).join()  # the server imports everything now
    peace = folder / "peace"
    begun, process = time.monotonic(), start(peace)
    while not (peace / "checkpoints" / "last.pt").exists() and process.is_alive():
        time.sleep(0.001)
    first = time.monotonic()
    write = _length_of_a_write(peace, process)
    process.join()
    assert process.exitcode == 0, f"the run that was left in peace ended with {process.exitcode}"
    result.seconds = time.monotonic() - first
    result.computing = float((folder / "spent").read_text())
    life = 2 * (first - begun + result.seconds / kills)

    def enough() -> bool:
        return result.kills >= kills and (result.inside >= inside or result.kills >= 5 * kills)

    while not enough():
        out = folder / f"killed_{result.runs}"
        result.runs += 1
        reached = (1, 0)  # epoch and step of the first checkpoint, which is written before any
        while not enough():
            process = start(out)
            process.join(choose.uniform(0, life))
            if process.is_alive() and result.kills % 2:
                _await_write(out, process)
                time.sleep(choose.uniform(0, write))
            process.kill()
            process.join()
            if process.exitcode == 0:
                break  # it came to its end; the next one starts anew
            assert process.exitcode == -9, f"the run ended by itself with {process.exitcode}"
            result.kills += 1
            result.inside += _unfinished(out, process)
            for name in ("last.pt", "best.pt"):
                if (out / "checkpoints" / name).exists():
                    found = read_checkpoint(out / "checkpoints" / name)
                    if name == "last.pt":
                        before, reached = reached, (found["epoch"], found["step"])
                        assert reached >= before, f"the checkpoint of {before} became one of {reached}"
                        result.moved += reached > before
        process = start(out)
        process.join()
        assert process.exitcode == 0, f"the last run ended with {process.exitcode}"
        result.identical &= _same(peace, out)
    return result


def _await_write(out: Path, process: Any) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.is_alive() and not _unfinished(out, process):
        time.sleep(0.0005)


def _length_of_a_write(out: Path, process: Any) -> float:
    """Seconds, the middle one of those that are seen until the process ends."""
    lengths, since = [0.0], None
    while process.is_alive():
        writing, now = _unfinished(out, process), time.monotonic()
        if since is not None and not writing:
            lengths.append(now - since)
        since = (since or now) if writing else None
        time.sleep(0.0005)
    return sorted(lengths)[len(lengths) // 2]


def _unfinished(out: Path, process: Any) -> bool:
    """Whether there is an unfinished checkpoint of this process.

    By its number: an earlier one's lies there until a process has come as far as to remove it.
    """
    folder = out / "checkpoints"
    return folder.exists() and any(name.endswith(f".{process.pid}.partial") for name in os.listdir(folder))


def _same(a: Path, b: Path) -> bool:
    """Whether two runs have the same weights, optimisers and losses, every step once."""
    for name in ("last.pt", "best.pt"):
        first, second = (read_checkpoint(run / "checkpoints" / name) for run in (a, b))
        for part in PARTS:
            if not _equal(first[part], second[part]):
                print(f"{b.name}: another {part} in {name}", file=sys.stderr)
                return False
    first_log, second_log = ([_numbers(row) for row in read_log(run / "log.csv")] for run in (a, b))
    if first_log != second_log:
        print(f"{b.name}: another log.csv", file=sys.stderr)
    return first_log == second_log


def _numbers(row: dict[str, str]) -> tuple[str, ...]:
    return row["step"], row["loss"], row["lr"], row["epoch_loss"], row["validation"]


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def run() -> int:
    """The command; its exit code says whether all was well."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="how many (%(default)s)")
    parser.add_argument("--epochs", type=int, default=200, help="of two steps and a validation each (%(default)s)")
    parser.add_argument("--seconds", type=float, default=30, help="the run must take so long (%(default)s)")
    parser.add_argument("--inside", type=float, default=0.2, help="share of kills inside a write (%(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = faults(Path(folder), arguments.kills, arguments.epochs)
    print(
        f"{result.kills} kills, {result.inside} of them inside a write, {result.moved} after a step or more, over "
        f"{result.runs} run(s) of {result.seconds:.1f} s ({result.computing:.1f} s of a processor): "
        f"no torn checkpoint, final state {'identical' if result.identical else 'DIFFERENT'}"
    )
    long_enough = result.seconds >= arguments.seconds
    if not long_enough:
        print(f"the run took less than {arguments.seconds:.0f} s: raise --epochs")
    return 0 if result.identical and long_enough and result.inside >= arguments.inside * result.kills else 1
