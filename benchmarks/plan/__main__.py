"""Promises of the planner: `python -m benchmarks.plan` prints the tables of README.md beside this file.

Budgets are shares of what plain PyTorch takes, so plain is measured first, in a process of its own; then every run
takes its turn in each round. Groups that are not measured again keep what plan.csv holds of them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import (
    FORMATS,
    Run,
    Summary,
    arguments,
    machine,
    measure,
    read_csv,
    summarise,
    write_csv,
)
from benchmarks.networks import prepare
from benchmarks.pages import fill
from streamingcnn.memory import format_bytes
from streamingcnn.plan.calibrate import calibrate
from streamingcnn.plan.search import BudgetError

#: Larger than any step here: the fastest plan there is.
NO_LIMIT = "1TiB"
#: What the tables call the smallest plan. It can be very slow and nobody is promised a time: one round is enough.
LEAST = "the minimum"


@dataclass(frozen=True)
class Ask:
    """A budget: a share of plain's bytes, `inf` for no limit, 0 for the least that works; and how slow it may be."""

    share: float
    bound: float | None = None

    @property
    def label(self) -> str:
        """As the tables call it."""
        if self.share == float("inf"):
            return "no limit"
        return f"{self.share:.0%} of plain" if self.share else LEAST


@dataclass(frozen=True)
class Group:
    """One network at one size: plain and the budgets."""

    title: str
    plain: Run
    asks: tuple[Ask, ...]


def asks(*shares: float, **bounds: float) -> tuple[Ask, ...]:
    """Budgets with a bound on time (`at_35=1.0`, `no_limit=0.9`) and without, the largest first, then the minimum."""
    bounded = {float("inf") if k == "no_limit" else int(k.removeprefix("at_")) / 100: b for k, b in bounds.items()}
    shown = sorted({*shares, *bounded}, reverse=True)
    return (*(Ask(share, bounded.get(share)) for share in shown), Ask(0))


_PLANE = Run("resnet18", (1, 3, 2048, 2048), "plain", "channels_last")
_VOLUME = Run("unet3d", (1, 1, 128, 128, 128), "plain")

GROUPS = {
    "resnet18": Group(
        "ResNet-18 trunk, 2048^2",
        _PLANE,
        asks(0.6, 0.2, no_limit=0.90, at_50=0.95, at_35=1.0, at_22=1.15, at_10=2.0),
    ),
    "resnet34": Group(
        "ResNet-34 trunk, 2048^2",
        replace(_PLANE, network="resnet34"),
        asks(at_50=0.95, at_40=1.0, at_22=1.2, at_10=2.0),
    ),
    "resnet50": Group(
        "ResNet-50 trunk, 2048^2",
        replace(_PLANE, network="resnet50"),
        asks(0.6, 0.35, 0.2, at_50=0.65, at_15=0.80, at_10=2.0),
    ),
    "unet3d": Group("3-D U-Net, 16 filters, 128^3", _VOLUME, asks(0.6, 0.35, at_20=0.95)),
    "unet3d-channels-last": Group(
        "3-D U-Net, 16 filters, 128^3, channels_last_3d",
        replace(_VOLUME, memory_format="channels_last_3d"),
        asks(at_25=1.1),
    ),
    "resnet18-train": Group(
        "ResNet-18 trunk, batch norm in training, 2048^2",
        replace(_PLANE, network="resnet18 train"),
        asks(0.35, 0.2, at_60=1.1),
    ),
    "convnext-t": Group(
        "ConvNeXt-T trunk, 1536^2",
        Run("convnext-t", (1, 3, 1536, 1536), "plain", "channels_last"),
        asks(0.6, 0.35, 0.2),
    ),
    "densenet121": Group(
        "DenseNet-121 (MONAI), 1024^2", Run("densenet121", (1, 3, 1024, 1024), "plain"), asks(0.6, 0.35, 0.2)
    ),
    "dynunet": Group("DynUNet (MONAI), 96^3", Run("dynunet", (1, 1, 96, 96, 96), "plain"), asks(0.6, 0.35, 0.2)),
    "segresnet": Group("SegResNet (MONAI), 96^3", Run("segresnet", (1, 1, 96, 96, 96), "plain"), asks(0.6, 0.35, 0.2)),
}


def main() -> None:
    """Measures the groups, prints the tables and writes `plan.csv`."""
    parser = arguments(__doc__ or "", Path(__file__).parent, rounds=5, limit=600)
    parser.add_argument(
        "--only", nargs="*", choices=list(GROUPS), default=list(GROUPS), help="groups to measure; none: print again"
    )
    parser.add_argument("--calibrate", action="store_true", help="measure the device's constants first, and keep them")
    parser.add_argument("--no-minimum", action="store_true", help="leave out the smallest plans")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.calibrate:
        calibrate("cpu")
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "plan.csv"
    known = read_csv(file) if file.exists() else []
    plains = {key: replace(group.plain, threads=options.threads) for key, group in GROUPS.items()}
    groups = {key: [each for each in known if belongs(each.run, plain)] for key, plain in plains.items()}
    for key in options.only:
        wanted = [ask for ask in GROUPS[key].asks if ask.share or not options.no_minimum]
        runs = [plains[key], *streamed(plains[key], wanted, options.limit)]
        once = [run for run in runs if run.asked == LEAST]
        groups[key] = measure(runs, rounds=options.rounds, limit=options.limit, once=once)
        # Hours of measuring are not lost with the one group that is under way.
        write_csv([each for group in groups.values() for each in group], file)
    measured = {key: summarise(group) for key, group in groups.items() if group}
    rounds = sorted({1 + max(each.round for each in group) for group in groups.values() if group})
    said = f"{machine(options.threads)}; rounds: {' to '.join(map(str, dict.fromkeys((rounds[0], rounds[-1]))))}."
    tables = {"plan-prediction": predictions(measured), "plan-speed": speeds(measured)}
    print("\n\n".join([*tables.values(), said]))
    if options.pages:
        for figure, table in tables.items():
            fill(Path(__file__).parent / "README.md", figure, f"{table}\n\n{said}")


def belongs(run: Run, plain: Run) -> bool:
    """Whether a run is one of the group of so and so measured."""
    same = ("network", "shape", "memory_format", "threads")
    return all(getattr(run, field) == getattr(plain, field) for field in same)


def streamed(plain: Run, wanted: Sequence[Ask], limit: float) -> list[Run]:
    """The streamed runs of a group, their budgets in bytes."""
    (first,) = measure([plain], rounds=1, limit=limit)
    if first.live_bytes is None:
        print(f"{plain.label}: {first.ended}; budgets are shares of its bytes", file=sys.stderr)
        return []
    runs = []
    for ask in wanted:
        if ask.share == float("inf"):
            memory = NO_LIMIT
        else:
            memory = str(int(ask.share * first.live_bytes) if ask.share else smallest(plain))
        runs.append(replace(plain, way="streamed", memory=memory, asked=ask.label))
    return runs


def smallest(plain: Run) -> int:
    """The least bytes that a plan of this network takes, as the planner's own error names it."""
    how: Any = {"memory_format": FORMATS[plain.memory_format]}
    net, forward = prepare(plain.network, "streamed", memory="1 B")
    net.to(**how)
    try:
        forward.plan(torch.empty(plain.shape, device="meta").to(**how))  # type: ignore[attr-defined]
    except BudgetError as error:
        return error.smallest
    raise AssertionError("a plan of one byte")


def predictions(measured: dict[str, list[Summary]]) -> str:
    """What was predicted against what was seen: bytes never below and within 2 %, time within 30 %."""
    lines = [
        "| network and input | budget | bytes | predicted | of measured | | time | predicted | of measured | |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for key, rows in measured.items():
        for row in rows[1:]:
            start = f"| {GROUPS[key].title} | {row.run.asked} "
            if row.live_bytes is None or row.predicted_bytes is None:
                lines.append(f"{start}| {row.ended} | - | - | - | - | - | - | - |")
                continue
            ratio = row.predicted_bytes / row.live_bytes
            kept = row.live_bytes <= budget_of(row.run) and 1 <= ratio <= 1.02
            cells = [
                format_bytes(row.live_bytes),
                format_bytes(row.predicted_bytes),
                f"{ratio:.4f}",
                met(kept),
                row.time,
            ]
            if row.predicted_seconds is None or row.seconds is None:
                cells += ["-", "-", "-"]
            else:
                slower = row.predicted_seconds / row.seconds
                cells += [f"{row.predicted_seconds:.2f} s", f"{slower:.2f}", met(1 / 1.3 <= slower <= 1.3)]
            lines.append(f"{start}| {' | '.join(cells)} |")
    return "\n".join(lines)


def speeds(measured: dict[str, list[Summary]]) -> str:
    """The time of each budget against plain's, and the bound where there is one."""
    lines = [
        "| network and input | way | time | of plain (spread) | live bytes | of plain | bound | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, rows in measured.items():
        bounds = {ask.label: ask.bound for ask in GROUPS[key].asks}
        for row in rows:
            ratio = f"{row.ratio:.2f}x" if row.ratio is not None else "-"
            if row.ratio_spread and row.run.way != "plain":
                ratio += " ({:.2f} - {:.2f})".format(*row.ratio_spread)
            live = format_bytes(row.live_bytes) if row.live_bytes is not None else "-"
            share = f"{row.live_ratio:.0%}" if row.live_ratio is not None else "-"
            bound = bounds.get(row.run.asked or "")
            judged = "" if bound is None else met(row.ratio is not None and row.ratio <= bound)
            cells = [row.run.label, row.time, ratio, live, share, "" if bound is None else f"{bound:.2f}x", judged]
            lines.append(f"| {GROUPS[key].title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def budget_of(run: Run) -> float:
    """The bytes that a run was given."""
    return float("inf") if run.memory in (None, NO_LIMIT) else float(run.memory)


def met(kept: bool) -> str:
    """A promise in one word."""
    return "met" if kept else "**missed**"


if __name__ == "__main__":
    main()
