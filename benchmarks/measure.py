"""Times of steps on a busy machine, each in a process of its own.

    round 1    plain    checkpoint    streamed      every box: a fresh process
    round 2    plain    checkpoint    streamed                 a step, counting bytes (it also warms up)
    ...                                                        0.2 s of a reference matrix product
                                                               a step, timed

Other programs slow a whole round or one box of it. The reference product was slowed as well, so a box whose
product took over 10 % more than the best one of all is dropped. What is compared is the ratio of the
fastest steps; the spread of the ratios within rounds says how far to trust it.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from benchmarks.networks import NETWORKS, PEERS, WAYS, Slices, prepare
from streamingcnn import StreamingModule
from streamingcnn.memory import LiveBytes, format_bytes
from streamingcnn.plan.search import BudgetError

__all__ = [
    "FORMATS",
    "Measured",
    "Run",
    "Summary",
    "arguments",
    "machine",
    "measure",
    "read_csv",
    "step",
    "summarise",
    "write_csv",
]

_Number = TypeVar("_Number", int, float)

FORMATS = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
    "channels_last_3d": torch.channels_last_3d,
}
#: A box of a round is dropped when its reference product took this much longer than the best.
_SLOWED = 1.10
#: Seconds from which a step is not made twice: to count its bytes costs nothing beside it, nor what only the first has.
#: (Of hundreds of small slices it costs as much as they do.)
_LONG = 20.0


@dataclass(frozen=True)
class Run:
    """One way to make one step: a network of `NETWORKS`, an input of `shape` and a way of `WAYS` or `PEERS`.

    `tile` and `memory` are the options of the streamed way; without them the plan is automatic. `asked` is how a
    table names the memory, where bytes say little: "35 % of plain".
    """

    network: str
    shape: tuple[int, ...]
    way: str
    memory_format: str = "contiguous"
    tile: int | None = None
    memory: str | None = None
    asked: str | None = None
    threads: int = 1

    @property
    def label(self) -> str:
        """The way, its memory format, and what the plan was asked for."""
        if self.way != "streamed":
            return f"{self.way}, {self.memory_format}"
        asked = [f"tile={self.tile}"] if self.tile else []
        asked += [self.asked or f"memory={self.memory}"] if self.memory else []
        return f"streamed, {self.memory_format}, {' '.join(asked) or 'automatic'}"


@dataclass(frozen=True)
class Measured:
    """What one process saw. Where it did not end by itself, the numbers are None and `ended` says why."""

    run: Run
    round: int
    ended: str = "ok"
    seconds: float | None = None
    product_seconds: float | None = None
    live_bytes: int | None = None
    rss_bytes: int | None = None
    #: What the plan said beforehand; None for other ways, and for a time that it does not know.
    predicted_bytes: int | None = None
    predicted_seconds: float | None = None


@dataclass(frozen=True)
class Summary:
    """A run over its rounds; ratios are to the first run of its group, None where that one did not end.

    `busy` says that no round was quiet: the time then is the fastest all the same, and printed with a "~".
    """

    run: Run
    ended: str
    busy: bool
    seconds: float | None
    ratio: float | None
    ratio_spread: tuple[float, float] | None
    live_bytes: int | None
    live_ratio: float | None
    rss_bytes: int | None
    predicted_bytes: int | None
    predicted_seconds: float | None

    @property
    def time(self) -> str:
        """The fastest step as text, or why there is none."""
        return self.ended if self.seconds is None else f"{'~' * self.busy}{self.seconds:.2f} s"


def step(run: Run) -> Measured:
    """Makes the run here, in this process: one step that counts bytes, then one that is timed, if steps are short."""
    torch.set_num_threads(run.threads)
    net, forward = prepare(run.network, run.way, run.tile, run.memory)
    memory_format = FORMATS[run.memory_format]
    net.to(memory_format=memory_format)  # type: ignore[call-overload]
    x = torch.randn(run.shape, generator=torch.Generator().manual_seed(1)).to(memory_format=memory_format)
    try:
        return _step(run, net, forward, x)
    except BudgetError as error:
        return Measured(run, 0, ended=f"needs {format_bytes(error.smallest)}")
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            return Measured(run, 0, ended="out of memory")
        raise


def _step(run: Run, net: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> Measured:
    plan = forward.plan(x) if isinstance(forward, StreamingModule) else None

    def once() -> None:
        net.zero_grad(set_to_none=True)
        y = forward(x)  # held until the step is over, as a caller may do: a plan counts it
        y.backward(torch.full_like(y, 1 / y.numel()))  # the gradient of its mean, without a loss of four bytes

    start = time.perf_counter()
    with LiveBytes() as live:
        once()
    seconds = time.perf_counter() - start
    product_seconds = _reference_product()
    if seconds < _LONG or isinstance(net, Slices):
        start = time.perf_counter()
        once()
        seconds = time.perf_counter() - start
    rss_unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return Measured(
        run=run,
        round=0,
        seconds=seconds,
        product_seconds=product_seconds,
        live_bytes=live.peak,
        rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * rss_unit,
        predicted_bytes=None if plan is None else plan.peak_bytes,
        predicted_seconds=getattr(plan, "seconds", None),
    )


def measure(
    runs: Sequence[Run], *, rounds: int, limit: float, once: Collection[Run] = (), memory: int | None = None
) -> list[Measured]:
    """Every run once per round, interleaved, each in its own process that may take `limit` seconds and `memory` bytes.

    A run that does not end in its first round is not tried again, and neither is one that is wanted `once`.
    """
    results: list[Measured] = []
    given_up: set[Run] = set()
    for number in range(rounds):
        for run in runs:
            if run in given_up:
                continue
            result = replace(_in_own_process(run, limit, memory), round=number)
            if result.ended != "ok" or run in once:
                given_up.add(run)
            results.append(result)
            took = f"{result.seconds:.2f} s" if result.seconds is not None else result.ended
            print(f"round {number + 1}/{rounds}  {run.network} {run.shape} {run.label}: {took}", file=sys.stderr)
    return results


def summarise(results: Iterable[Measured]) -> list[Summary]:
    """One row per run, in the order they were made. The first run is what the others are compared with."""
    results = list(results)
    by_run: dict[Run, list[Measured]] = {}
    for result in results:
        by_run.setdefault(result.run, []).append(result)
    fastest_product = min((r.product_seconds for r in results if r.product_seconds is not None), default=0.0)

    def quiet_seconds(measured: list[Measured]) -> dict[int, float]:
        return {
            r.round: r.seconds
            for r in measured
            if r.seconds and r.product_seconds and r.product_seconds <= _SLOWED * fastest_product
        }

    first = next(iter(by_run.values()))
    first_quiet, first_seconds = quiet_seconds(first), _least(r.seconds for r in first)
    first_seconds = min(first_quiet.values(), default=first_seconds)
    first_bytes = _most(r.live_bytes for r in first)
    rows = []
    for run, measured in by_run.items():
        quiet = quiet_seconds(measured)
        seconds = min(quiet.values(), default=_least(r.seconds for r in measured))
        live_bytes = _most(r.live_bytes for r in measured)
        in_rounds = [quiet[number] / first_quiet[number] for number in quiet.keys() & first_quiet.keys()]
        rows.append(
            Summary(
                run=run,
                ended=next((r.ended for r in measured if r.ended != "ok"), "ok"),
                busy=not quiet,
                seconds=seconds,
                ratio=seconds / first_seconds if seconds and first_seconds else None,
                ratio_spread=(min(in_rounds), max(in_rounds)) if in_rounds else None,
                live_bytes=live_bytes,
                live_ratio=live_bytes / first_bytes if live_bytes and first_bytes else None,
                rss_bytes=_most(r.rss_bytes for r in measured),
                predicted_bytes=_most(r.predicted_bytes for r in measured),
                predicted_seconds=_least(r.predicted_seconds for r in measured),
            )
        )
    return rows


def machine(threads: int) -> str:
    """What the numbers were measured on, in one line."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    # The same name is given to processors of which one computes twice as many numbers at once as the other.
    name = f"{name} ({torch.backends.cpu.get_cpu_capability()})"
    return f"{name}, {threads} thread(s), Python {platform.python_version()}, torch {torch.__version__}"


def write_csv(results: Iterable[Measured], path: Path) -> None:
    """Every single measurement, none dropped, so that others may judge it their own way."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([field.name for field in (*fields(Run), *fields(Measured)[1:])])
        for result in results:
            run, *seen = (getattr(result, field.name) for field in fields(Measured))
            writer.writerow([*asdict(replace(run, shape="x".join(map(str, run.shape)))).values(), *seen])


def read_csv(path: Path) -> list[Measured]:
    """What :func:`write_csv` wrote."""
    results = []
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            shape = tuple(map(int, row["shape"].split("x")))
            run = Run(**{**_fields_of(Run, row), "shape": shape})
            results.append(Measured(**{**_fields_of(Measured, row), "run": run}))
    return results


def _fields_of(record: type, row: dict[str, str]) -> dict[str, Any]:
    """The fields that a row has, each as what its annotation names first; an empty cell is None."""
    makers = {"int": int, "float": float, "str": str}
    return {
        field.name: makers[str(field.type).split(" ")[0]](row[field.name]) if row[field.name] else None
        for field in fields(record)
        if str(field.type).split(" ")[0] in makers and field.name in row
    }


def arguments(description: str, folder: Path, *, rounds: int, limit: float) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=rounds, help="how often every run is made (%(default)s)")
    parser.add_argument("--limit", type=float, default=limit, help="seconds that one run may take (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of a run (%(default)s)")
    parser.add_argument("--out", type=Path, default=folder, help="folder of the CSV and the picture")
    parser.add_argument("--pages", action="store_true", help="put the table on the project's pages")
    return parser


def _least(values: Iterable[_Number | None]) -> _Number | None:
    return min((value for value in values if value is not None), default=None)


def _most(values: Iterable[_Number | None]) -> _Number | None:
    return max((value for value in values if value is not None), default=None)


def _in_own_process(run: Run, limit: float, memory: int | None = None) -> Measured:
    command = [
        sys.executable,
        "-m",
        "benchmarks.measure",
        json.dumps(asdict(run)),
        *([] if memory is None else [str(memory)]),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return Measured(run, 0, ended=f"> {limit:.0f} s")
    if done.returncode < 0:  # by a signal: on Linux most often the kernel, for want of memory
        return Measured(run, 0, ended="killed")
    if done.returncode > 0 and run.way in PEERS:
        last = done.stderr.rstrip().rpartition("\n")[2]
        return Measured(run, 0, ended=f"fails ({last.partition(':')[0]})")
    if done.returncode > 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return Measured(**{**json.loads(done.stdout), "run": run})


def _reference_product() -> float:
    """Seconds of a matrix product, over 0.2 s of them: how much of the machine is ours just now."""
    a = torch.randn(512, 512)
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < 0.2:
        torch.mm(a, a)
        count += 1
    return elapsed / count


def _main() -> None:
    given = json.loads(sys.argv[1])
    run = Run(**{**given, "shape": tuple(given["shape"])})
    ways = (*WAYS, *PEERS)
    if run.network not in NETWORKS or run.way not in ways:
        raise SystemExit(f"unknown run {run}: networks are {', '.join(NETWORKS)}; ways are {', '.join(ways)}")
    if len(sys.argv) > 2:  # what it may allocate; on Linux that is more than the heap
        resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[2]),) * 2)
    print(json.dumps(asdict(step(run))))


if __name__ == "__main__":
    _main()
