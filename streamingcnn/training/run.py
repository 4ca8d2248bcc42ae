"""What a run leaves behind, and a network from it.

runs/x/
  settings.toml          every setting
  versions.json          what it ran with
  splits.csv             which case is in which split
  log.csv, tensorboard/  loss, rate, seconds and memory of every step
  bad_cases.csv          what could not be read, and why
  checkpoints/last.pt    to go on from
  checkpoints/best.pt    the lowest validation loss
"""

from __future__ import annotations

from pathlib import Path

from streamingcnn.models.named import MODELS
from streamingcnn.module import StreamingModule
from streamingcnn.training.checkpoint import read_checkpoint
from streamingcnn.training.network import make_network
from streamingcnn.training.settings import Settings

__all__ = ["load_run"]


def load_run(
    path: str | Path, *, model: str | None = None, memory: int | str | None = None, device: str = "cpu"
) -> tuple[StreamingModule, Settings]:
    """The trained network of a run's folder or of one of its checkpoints, streamed, in eval mode; and its settings.

    Example::

        net, settings = load_run("runs/x")                         # checkpoints/best.pt, else last.pt
        net, settings = load_run("runs/x/checkpoints/last.pt")
        task = settings.labels_as()
        task.probabilities(net(image))

    Args:
        path: the folder of a run, or a checkpoint.
        model: the factory, MODULE.PATH:FACTORY, where the run was made with one of your own. A checkpoint without its
            run folder names only networks of this package by itself: what it names is imported and called, and it may
            come from a stranger.
        memory: what a call may take (default: what the run had; "auto" for what is free here).
        device: where the network goes.

    Raises:
        FileNotFoundError: there is no such run or checkpoint.
        ValueError: the checkpoint is damaged, holds code, or does not fit its network.
    """
    path = Path(path)
    checkpoint = checkpoint_of(path)
    content = read_checkpoint(checkpoint)
    settings = Settings.of(content["settings"], str(checkpoint))
    settings = settings.with_(model=model or _trusted(settings, checkpoint))
    given = settings.memory if memory is None else memory
    net = make_network(settings).to(device)
    try:
        net.load_state_dict(content["net"])
    except RuntimeError as error:
        raise ValueError(f"{checkpoint} does not fit the network '{settings.model}': {error}") from error
    streamed = StreamingModule(net, tile=settings.tile, memory=None if settings.tile and memory is None else given)
    return streamed.eval(), settings


def checkpoint_of(path: Path) -> Path:
    """The checkpoint that a path means: a file itself, of a folder the best one, else the last.

    Raises:
        FileNotFoundError: there is none.
    """
    if path.is_file():
        return path
    candidates = [path / "checkpoints" / name for name in ("best.pt", "last.pt")]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"{path} is neither a checkpoint nor the folder of a run with checkpoints/last.pt")


def _trusted(settings: Settings, checkpoint: Path) -> str:
    """The model's name, where importing it is the user's own choice."""
    beside = checkpoint.parent.parent / "settings.toml"
    if settings.model in MODELS or (beside.is_file() and Settings.read(beside).get("model") == settings.model):
        return settings.model
    raise ValueError(
        f"{checkpoint} names the network '{settings.model}', which would have to be imported. If it is yours, say so: "
        f"load_run(..., model={settings.model!r}), or --model {settings.model}"
    )
