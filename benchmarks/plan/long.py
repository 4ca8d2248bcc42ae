"""One step that takes minutes: counted, timed, and with a log that says how far it is."""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from streamingcnn import StreamingModule
from streamingcnn.memory import LiveBytes, format_bytes, parse_bytes
from streamingcnn.plan.plan import Plan
from streamingcnn.plan.stages import Stage

__all__ = ["LongStep", "logged", "long_step"]

_LOG = logging.getLogger("benchmarks.plan")
#: Seconds between two lines of the log.
_EVERY = 60.0


@dataclass(frozen=True)
class LongStep:
    """What was asked, what was predicted and what was seen."""

    memory: str
    predicted_bytes: int
    predicted_seconds: float | None
    planning_seconds: float
    seconds: float
    live_bytes: int
    rss_bytes: int
    result: Tensor

    @property
    def kept(self) -> bool:
        """Whether the step stayed within its budget, and within what was predicted."""
        return self.live_bytes <= self.predicted_bytes <= parse_bytes(self.memory)

    @property
    def row(self) -> str:
        """The cells of a table: budget, predicted bytes, bytes, process, predicted time, time, met or missed."""
        predicted = f"{self.predicted_seconds:.0f} s" if self.predicted_seconds is not None else "-"
        cells = [self.memory, *map(format_bytes, (self.predicted_bytes, self.live_bytes, self.rss_bytes)), predicted]
        return " | ".join([*cells, f"{self.seconds:.0f} s", "met" if self.kept else "**missed**"])


#: The head of the table whose rows these are; the first column is the caller's.
HEAD = (
    "| step | budget | predicted | live bytes | process | predicted time | time | |\n|---|---|---|---|---|---|---|---|"
)


def long_step(net: StreamingModule, *inputs: Tensor, memory: str) -> LongStep:
    """One forward and backward of the result's mean; every minute a line says which stage runs, and the bytes."""
    start = time.perf_counter()
    plan = net.plan(*inputs)
    predicted = plan.peak_bytes
    planned = time.perf_counter() - start
    _LOG.info("%s", plan)
    _LOG.info("planned in %.1f s; %s predicted, %s allowed", planned, format_bytes(predicted), memory)
    tiles = _Tiles(plan)
    live = LiveBytes()
    start = time.perf_counter()
    with tiles.counted(lambda: f"{format_bytes(live.current)} live, {format_bytes(live.peak)} at most"), live:
        result = net(*inputs)
        _LOG.info("forward: %.0f s, %s live", time.perf_counter() - start, format_bytes(live.current))
        result.backward(torch.full_like(result, 1 / result.numel()))
    seconds = time.perf_counter() - start
    step = LongStep(
        memory,
        predicted,
        getattr(plan, "seconds", None),
        planned,
        seconds,
        live.peak,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        result.detach(),
    )
    _LOG.info("step: %.0f s, %s live at most, process %s", seconds, *map(format_bytes, (live.peak, step.rss_bytes)))
    finite = all(bool(p.grad.isfinite().all()) for p in net.parameters() if p.grad is not None)
    _LOG.info("every gradient is finite: %s", finite)
    return step


class _Tiles:
    """Counts the tiles that a plan has begun, forward and backward."""

    def __init__(self, plan: Plan) -> None:
        stages = plan.stages
        self.names: dict[Any, str] = {stage: f"{k + 1}/{len(stages)} {stage.layer}" for k, stage in enumerate(stages)}
        self.all, self.begun, self.said = 2 * plan.tiles, 0, time.perf_counter()

    @contextmanager
    def counted(self, more: Callable[[], str]) -> Iterator[None]:
        """Watch every stage's tiles, and log a line now and then."""
        program = {stage: stage.program for stage in self.names}

        def watched(stage: Stage) -> Callable[[Any], Any]:
            def begin(box: Any) -> Any:
                self.begun += 1
                if time.perf_counter() - self.said > _EVERY:
                    self.said = time.perf_counter()
                    _LOG.info("tile %d of %d, stage %s; %s", self.begun, self.all, self.names[stage], more())
                return program[stage](box)

            return begin

        for stage in self.names:
            stage.program = watched(stage)
        try:
            yield
        finally:
            for stage in self.names:
                stage.program = program[stage]


def logged(path: Path, threads: int) -> None:
    """Send the log to a file and to the terminal, with the time of each line; and set torch's threads."""
    torch.set_num_threads(threads)
    path.parent.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [logging.FileHandler(path, mode="w"), logging.StreamHandler()]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", handlers=handlers)
