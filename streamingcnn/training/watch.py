"""Who looks on while a network is trained: told of every step and epoch, asked whether to stop or to save."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from streamingcnn.memory import format_bytes
from streamingcnn.module import StreamingModule

__all__ = ["Bar", "Epoch", "Step", "Watch", "memory_in_use"]


@dataclass(frozen=True)
class Epoch:
    """One pass over the images: its number from 1, the mean loss, its seconds, the loss on the validation images."""

    number: int
    loss: float
    seconds: float
    validation: float | None = None


@dataclass(frozen=True)
class Step:
    """One step of the optimiser.

    Attributes:
        number, of: from 1, and how many there will be at most.
        epoch: from 1.
        loss: the mean over its images; NaN where none could be read.
        lr: the rate that it was taken with.
        images: how many could be read, over all processes.
        seconds: of the whole step.
        waited: seconds of it that the first process waited for pixels.
        bad: images left out so far.
        stop, save: what the watch asked for.
    """

    number: int
    of: int
    epoch: int
    loss: float
    lr: float
    images: int
    seconds: float
    waited: float
    bad: int
    stop: bool = False
    save: bool = False


class Watch:
    """Looks on and asks for nothing; what a watch may answer and be told."""

    def stop(self) -> bool:
        """Whether to end after this step."""
        return False

    def due(self) -> bool:
        """Whether to save after this step."""
        return False

    def step(self, report: Step) -> None:
        """A step was taken."""

    def epoch(self, report: Epoch, better: bool) -> None:
        """An epoch has ended, with a validation loss that is the lowest so far, or not."""

    def save(self, state: dict[str, Any], best: bool) -> None:
        """Here is the state that was asked for, or that of an epoch's end."""


class Bar(Watch):
    """A bar with loss, speed and memory.

    Example::

        with Bar(net, (1, 3, 1024, 1024)) as bar:
            training.run(bar)
    """

    def __init__(self, net: nn.Module, shape: tuple[int, ...]) -> None:
        self.net, self.shape = net, shape
        self._bar: Any = None

    def __enter__(self) -> Bar:
        self._bar = tqdm(unit="step", mininterval=1.0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def step(self, report: Step) -> None:
        """Move on by one."""
        self._bar.total = report.of
        if isinstance(self.net, StreamingModule):
            tiles = self.net.plan(self.shape).tiles * report.images / self.shape[0]  # the plan is remembered
            speed = f"{tiles / report.seconds:.0f} tiles/s"
        else:
            speed = f"{report.images / report.seconds:.1f} slides/s"
        memory = format_bytes(memory_in_use(next(self.net.parameters()).device))
        self._bar.set_description(f"epoch {report.epoch}", refresh=False)
        self._bar.set_postfix_str(f"loss {report.loss:.3f}, {speed}, {memory}", refresh=False)
        self._bar.update()


def memory_in_use(device: torch.device) -> int:
    """The most bytes held so far: by tensors on CUDA, by the whole process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
