"""The folder that a run writes: a line per step on the console and in log.csv, TensorBoard, checkpoints, bad cases.

What is in it is whole at any moment. Rows of log.csv that a killed process wrote after its last checkpoint are taken
back when the run goes on, so that every step stands there once.
"""

from __future__ import annotations

import csv
import json
import logging
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from streamingcnn.files import remove_partials, whole_file
from streamingcnn.memory import format_bytes
from streamingcnn.training.checkpoint import write_checkpoint
from streamingcnn.training.settings import Settings
from streamingcnn.training.watch import Epoch, Step, Watch, memory_in_use

__all__ = ["Folder", "write_bad_cases", "write_versions"]

logger = logging.getLogger("streamingcnn")
COLUMNS = ("step", "epoch", "loss", "lr", "images", "seconds", "waited", "memory", "bad", "epoch_loss", "validation")


@dataclass
class Folder(Watch):
    """Writes what a run leaves, and answers the loop's questions.

    Attributes:
        path: the folder.
        settings: of the run.
        extra: what checkpoints hold beside the state of the training.
        device: whose memory is logged.
        say: where lines for the user go.
        stopping: set from outside (a signal) to end after the step.
    """

    path: Path
    settings: Settings
    extra: dict[str, Any]
    device: torch.device
    say: Callable[[str], None]
    stopping: bool = False
    _saved: float = field(default_factory=time.monotonic)
    _board: Any = None
    _done: int = 0

    @property
    def last(self) -> Path:
        """The checkpoint to go on from."""
        return self.path / "checkpoints" / "last.pt"

    @property
    def best(self) -> Path:
        """The checkpoint with the lowest validation loss."""
        return self.path / "checkpoints" / "best.pt"

    def open(self, done: int) -> None:
        """Make what is missing, and take back what was logged after step ``done``.

        Raises:
            OSError: the folder cannot be written.
        """
        self.last.parent.mkdir(parents=True, exist_ok=True)
        for name in ("checkpoints/last.pt", "checkpoints/best.pt", "log.csv", "bad_cases.csv", "splits.csv"):
            remove_partials(self.path / name)
        kept = [row for row in read_log(self.path / "log.csv") if int(row["step"]) <= done]
        with whole_file(self.path / "log.csv") as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(kept)
        if find_spec("tensorboard") is None:
            logger.warning(
                "tensorboard is not installed, so only log.csv is written; pip install 'streamingcnn[train]'"
            )
            return
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(self.path / "tensorboard"), purge_step=done + 1)

    def close(self) -> None:
        """Close what is open."""
        if self._board is not None:
            self._board.close()

    def stop(self) -> bool:
        """Whether a signal came."""
        return self.stopping

    def due(self) -> bool:
        """Whether the last checkpoint is old enough."""
        return time.monotonic() - self._saved >= self.settings.checkpoint_seconds

    def step(self, report: Step) -> None:
        """Log a step."""
        memory = memory_in_use(self.device)
        loss = f"{report.loss:.4f}" if report.images else "-"
        left = f", {report.bad} bad" if report.bad else ""
        self.say(
            f"epoch {report.epoch} step {report.number}/{report.of}  loss {loss}  {report.seconds:.2f} s"
            f" ({report.waited:.2f} s for pixels)  {format_bytes(memory)}{left}"
        )
        self._row(
            step=report.number,
            epoch=report.epoch,
            loss=report.loss if report.images else "",
            lr=report.lr,
            images=report.images,
            seconds=round(report.seconds, 4),
            waited=round(report.waited, 4),
            memory=memory,
            bad=report.bad,
        )
        if self._board is not None:
            values = {"lr": report.lr, "seconds": report.seconds, "waited": report.waited, "memory": memory}
            if report.images:
                values["loss/step"] = report.loss
            self._scalars(values, report.number)
        self._done = report.number

    def epoch(self, report: Epoch, better: bool) -> None:
        """Log an epoch."""
        checked = "" if report.validation is None else f", validation {report.validation:.4f}"
        best = " (best so far)" if better and report.validation is not None else ""
        self.say(f"epoch {report.number} ended: loss {report.loss:.4f}{checked}{best}, {report.seconds:.1f} s")
        validation = "" if report.validation is None else report.validation
        self._row(step=self._done, epoch=report.number, epoch_loss=report.loss, validation=validation)
        if self._board is not None:
            values = {"loss/epoch": report.loss}
            if report.validation is not None:
                values["loss/validation"] = report.validation
            self._scalars(values, self._done)

    def save(self, state: dict[str, Any], best: bool) -> None:
        """Write the last checkpoint, and the best one where it is that too.

        Raises:
            OSError: they could not be written; the older ones are still there.
        """
        content = {**self.extra, "settings": self.settings.values(), **state}
        if best:  # first, so that a kill between the two makes it again, the same
            write_checkpoint(self.best, content)
        write_checkpoint(self.last, content)
        write_bad_cases(self.path / "bad_cases.csv", state["bad"])
        self._saved = time.monotonic()

    def _row(self, **values: Any) -> None:
        with (self.path / "log.csv").open("a", newline="") as file:
            csv.DictWriter(file, COLUMNS).writerow(values)

    def _scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        self._board.flush()


def read_log(path: Path) -> list[dict[str, str]]:
    """The rows of a log.csv; a last line that a killed process left unfinished is left out."""
    if not path.is_file():
        return []
    text = path.read_text()
    rows = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
    return [{name: row[name] for name in COLUMNS} for row in rows if None not in row and None not in row.values()]


def write_bad_cases(path: Path, bad: Mapping[str, str]) -> None:
    """Write which cases were left out, and why."""
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("id", "reason"), *sorted(bad.items())])


def write_versions(path: Path) -> None:
    """Write what a run ran with: versions, the device, and the state of the folder that it was started from."""
    found: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform()}
    for package in ("streamingcnn", "torch", "numpy", "tifffile", "openslide-python", "openslide-bin", "scikit-learn"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    found["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    found["git"] = _git("rev-parse", "HEAD")
    found["git_changed"] = bool(_git("status", "--porcelain"))
    with whole_file(path) as partial:
        partial.write_text(json.dumps(found, indent=2))


def _git(*arguments: str) -> str | None:
    """What git says of the current folder; None where it is no repository, or there is no git."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
