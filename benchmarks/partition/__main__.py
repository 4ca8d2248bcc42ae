"""Two ranks against one, a thread each: `python -m benchmarks.partition` prints the table of README.md beside it.

How fast two ranks can be at all on a machine is shown by two independent jobs of half the size at once (the control):
they share its caches and its memory as ranks do, and exchange nothing. Rounds are interleaved; figures are the fastest.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import machine
from benchmarks.pages import fill
from streamingcnn.memory import format_bytes

_FOLDER = Path(__file__).parent

#: Network, shape, and the same at half its size along the axis that is divided.
CASES = {
    "resnet18": ("ResNet-18 trunk, 1536^2", (1, 3, 1536, 1536), (1, 3, 768, 1536)),
    "unet3d": ("3-D U-Net, 16 filters, 128^3", (1, 1, 128, 128, 128), (1, 1, 64, 128, 128)),
}


def main() -> None:
    """Measure, print, and put the table on the page if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="how often each is run (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES), help="networks to run")
    parser.add_argument("--pages", action="store_true", help="put the table on the page")
    options = parser.parse_args()
    lines = [
        "| network and input | one rank | two ranks | of one | control | of one | of the control | waited | "
        "live bytes, one | a rank of two | |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for key in options.only:
        title, whole, half = CASES[key]
        found: dict[str, list[list[dict[str, Any]]]] = {"one": [], "two": [], "control": []}
        for number in range(options.rounds):
            found["one"].append(_together(_alone(key, whole)))
            found["two"].append(_together(_ranks(key, whole)))
            found["control"].append(_together(_alone(key, half), _alone(key, half)))
            print(f"round {number + 1}/{options.rounds} of {key}", file=sys.stderr)
        one, two, control = (
            min(found[way], key=lambda seen: max(rank["seconds"] for rank in seen)) for way in ("one", "two", "control")
        )
        t1, t2, tc = (max(rank["seconds"] for rank in seen) for seen in (one, two, control))
        kept = t2 <= 0.60 * t1 if tc <= 0.53 * t1 else t2 <= 1.15 * tc
        lines.append(
            f"| {title} | {t1:.2f} s | {t2:.2f} s | {t2 / t1:.2f}x | {tc:.2f} s | {tc / t1:.2f}x | {t2 / tc:.2f}x | "
            f"{min(rank['waited'] for rank in two) / t2:.1%} | {format_bytes(one[0]['live'])} | "
            f"{format_bytes(max(rank['live'] for rank in two))} | {'met' if kept else '**missed**'} |"
        )
    said = f"{machine(1)}; {options.rounds} rounds; waited: of the rank that waited less, exchange and late peers."
    text = "\n".join(lines) + f"\n\n{said}"
    print(text)
    if options.pages:
        fill(_FOLDER / "README.md", "partition", text)


def _alone(network: str, shape: Sequence[int]) -> list[str]:
    return [sys.executable, "-m", "benchmarks.partition.rank", network, "x".join(map(str, shape))]


def _ranks(network: str, shape: Sequence[int]) -> list[str]:
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    return [*run, *_alone(network, shape)[2:]]


def _together(*commands: list[str]) -> list[dict[str, Any]]:
    """What processes that run at once say, one line of JSON per rank."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for command in commands
    ]
    seen: list[dict[str, Any]] = []
    for process in running:
        out, error = process.communicate(timeout=900)
        if process.returncode:
            raise RuntimeError(error[-3000:])
        seen += [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return seen


if __name__ == "__main__":
    main()
