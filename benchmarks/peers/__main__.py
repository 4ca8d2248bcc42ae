"""Ours beside lightstream: gradient errors, what each refuses, time and bytes: `python -m benchmarks.peers`."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from benchmarks.measure import Run, Summary, arguments, machine, measure, summarise, write_csv
from benchmarks.pages import fill
from benchmarks.peers.cases import EXACTNESS, REFUSALS
from benchmarks.peers.wrapped import TILE
from streamingcnn.memory import format_bytes

#: How many times faster, at equal or less memory.
BAR = 6.0
#: Above this error a gradient is of another function, not of another order of summation.
WRONG = {"float64": 1e-10, "float32": 1e-2}


def main() -> None:
    """Runs every case and prints three tables, one after the other."""
    parser = arguments(__doc__ or "", Path(__file__).parent, rounds=3, limit=600)
    parser.add_argument("--size", type=int, default=2048, help="side of the image that is timed (%(default)s)")
    parser.add_argument("--only", choices=["exactness", "refusals", "speed"], help="one of the tables")
    options = parser.parse_args()
    tables = [options.only] if options.only else ["exactness", "refusals", "speed"]
    for name in tables:
        if name == "speed":
            shape = (1, 3, options.size, options.size)
            runs = [
                Run("resnet18", shape, "lightstream", tile=TILE, threads=options.threads),
                Run("resnet18", shape, "streamed", memory="720MiB", threads=options.threads),
                Run("resnet18", shape, "plain", threads=options.threads),
            ]
            measured = measure(runs, rounds=options.rounds, limit=options.limit)
            options.out.mkdir(parents=True, exist_ok=True)
            write_csv(measured, options.out / "peers.csv")
            text = f"{speed(summarise(measured))}\n\n{machine(options.threads)}; {options.rounds} rounds, the fastest."
        else:
            text = exactness() if name == "exactness" else refusals()
        text += f" lightstream {version('lightstream')}."
        print(text, end="\n\n", flush=True)
        if options.pages:
            fill(Path(__file__).parent / "README.md", f"peers-{name}", text)


def exactness() -> str:
    """The largest error of each kind of tensor where both run."""
    lines = ["| network | numbers | tensor | plain | lightstream | streamed |", "|---|---|---|---|---|---|"]
    for name, case in EXACTNESS.items():
        for dtype in ("float64", "float32"):
            ways = {way: _answer(name, way, dtype) for way in ("plain", "lightstream", "streamed")}
            for way, found in ways.items():
                if isinstance(found, str):
                    raise RuntimeError(f"{name} by {way}: {found}")
            for kind in ways["plain"]:
                errors = [f"{found[kind]:.1e}" for found in ways.values() if not isinstance(found, str)]
                marks = [f"**{e}**" if float(e) > WRONG[dtype] else e for e in errors]
                lines.append(f"| {case.what}, {_sides(case.shape)} | {dtype} | {kind} | {' | '.join(marks)} |")
    return "\n".join(lines) + "\n\nBold: another function's gradient."


def refusals() -> str:
    """What each library makes of networks and sizes that not everyone streams, in float64."""
    lines = ["| network and input | lightstream | streamed |", "|---|---|---|"]
    for name, case in REFUSALS.items():
        cells = []
        for way in ("lightstream", "streamed"):
            found = _answer(name, way, "float64")
            if isinstance(found, str):
                cells.append(found if found.startswith("a result") else f"`{found[:110]}`")
            else:
                kind = max(found, key=lambda kind: found[kind])
                right = found[kind] <= WRONG["float64"]
                cells.append(f"exact ({found[kind]:.0e})" if right else f"**wrong**: {kind} by {found[kind]:.2g}")
        lines.append(f"| {case.what} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\nErrors are the largest of all tensors, in float64."


def speed(rows: list[Summary]) -> str:
    """Time and bytes of a step, and whether the bar was met."""
    lines = ["| ResNet-18 trunk, float32 | time | live bytes | process |", "|---|---|---|---|"]
    for row in rows:
        tile = f", tile {row.run.tile}" if row.run.tile else ""
        live, rss = (format_bytes(n) if n is not None else "-" for n in (row.live_bytes, row.rss_bytes))
        lines.append(f"| {row.run.way}{tile}, {_sides(row.run.shape)} | {row.time} | {live} | {rss} |")
    peer, ours = rows[0], rows[1]
    if not (peer.seconds and ours.seconds and peer.live_bytes and ours.live_bytes):
        return "\n".join(lines)
    times, less = peer.seconds / ours.seconds, ours.live_bytes <= peer.live_bytes
    met = "met" if times >= BAR and less else "**missed**"
    share = f"{ours.live_bytes / peer.live_bytes:.0%} of its live bytes"
    return "\n".join(lines) + f"\n\nStreamed is {times:.1f} times as fast at {share}; the bar is {BAR:g} times: {met}."


def _sides(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _answer(name: str, way: str, dtype: str) -> dict[str, float] | str:
    command = [sys.executable, "-m", "benchmarks.peers.cases", name, way, dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    print(f"{name} {way} {dtype}: {done.stdout.strip()}", file=sys.stderr)
    found: dict[str, float] | str = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    main()
