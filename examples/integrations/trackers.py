"""Steps and epochs of a training to TensorBoard, Weights & Biases or MLflow, whichever is installed.

python examples/integrations/trackers.py --tracker tensorboard --out run

A tracker is a `Watch`: the loop tells it of every step and every epoch. Its library is imported when it is asked for.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from streamingcnn import StreamingModule
from streamingcnn.training.examples import Images
from streamingcnn.training.loop import Training
from streamingcnn.training.recipe import Recipe
from streamingcnn.training.watch import Epoch, Step, Watch

#: Takes figures by name, and the number of the step that they are of.
Log = Callable[[dict[str, float], int], None]


class Tracked(Watch):
    """Hands every step and epoch to a function."""

    def __init__(self, log: Log) -> None:
        self.log, self.steps = log, 0

    def step(self, report: Step) -> None:
        self.steps = report.number
        self.log({"loss": report.loss, "lr": report.lr, "seconds": report.seconds, "waited": report.waited}, self.steps)

    def epoch(self, report: Epoch, better: bool) -> None:
        figures = {"epoch": report.number, "epoch loss": report.loss}
        if report.validation is not None:
            figures["validation loss"] = report.validation
        self.log(figures, self.steps)


def tensorboard(out: Path) -> Log:
    """Event files in a folder."""
    from torch.utils.tensorboard import SummaryWriter

    board = SummaryWriter(str(out))

    def log(figures: dict[str, float], step: int) -> None:
        for name, value in figures.items():
            board.add_scalar(name, value, step)
        board.flush()

    return log


def wandb(out: Path) -> Log:
    """A run on this machine; `wandb sync` sends it."""
    import wandb

    run = wandb.init(dir=str(out), mode="offline")
    return lambda figures, step: run.log(figures, step=step)


def mlflow(out: Path) -> Log:
    """A run in a database beside it."""
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{out / 'mlflow.db'}")
    mlflow.start_run()
    return lambda figures, step: mlflow.log_metrics(figures, step=step)


def main() -> None:
    """Two epochs on noise with a colour."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tracker", choices=["tensorboard", "wandb", "mlflow"], default="tensorboard")
    parser.add_argument("--out", type=Path, default=Path("run"), help="folder of the run (%(default)s)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    log = {"tensorboard": tensorboard, "wandb": wandb, "mlflow": mlflow}[options.tracker](options.out)

    torch.manual_seed(0)
    net = StreamingModule(nn.Sequential(nn.Conv2d(3, 8, 5, 4, 2), nn.ReLU(), nn.Conv2d(8, 1, 3)), tile=64)
    images = [torch.randint(0, 128, (3, 96, 96), dtype=torch.uint8) + 100 * (number % 2) for number in range(4)]
    examples = Images(images, [0.0, 1.0, 0.0, 1.0])

    def loss(maps: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.binary_cross_entropy_with_logits(maps.mean((1, 2, 3)), labels)

    for epoch in Training(net, examples, loss, Recipe(epochs=2, batch=2)).run(Tracked(log)):
        print(f"epoch {epoch.number}: loss {epoch.loss:.4f}")


if __name__ == "__main__":
    main()
