"""Bytes and time of a step by image size, for seven networks: `python -m benchmarks.memory_vs_resolution`.

Each way of a network goes up the sizes until it fails: out of memory, or without an answer within the limit. What is
larger than that is not tried. Networks that are not measured again keep what memory_vs_resolution.csv holds of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from benchmarks.measure import Measured, Run, Summary, arguments, machine, measure, read_csv, summarise, write_csv
from benchmarks.memory_vs_resolution.picture import draw
from benchmarks.pages import ROOT, fill
from streamingcnn.memory import format_bytes

PLANES, VOLUMES = (512, 1024, 2048, 4096, 8192, 16384), (64, 128, 256, 512)
BUDGETS = ("512MiB", "2GiB", "8GiB")
#: The longest time per megapixel over the shortest, at most, where it is called flat.
FLAT = 1.15


@dataclass(frozen=True)
class Network:
    """A network, the sides of its images, and their channels."""

    title: str
    name: str
    sides: tuple[int, ...] = PLANES
    channels: int = 3

    def run(self, side: int, way: str, memory: str | None, threads: int) -> Run:
        """One step of it."""
        space = 2 if self.sides is PLANES else 3
        return Run(self.name, (1, self.channels, *(side,) * space), way, memory=memory, threads=threads)


NETWORKS = (
    Network("ResNet-18 trunk", "resnet18"),
    Network("ResNet-34 trunk", "resnet34"),
    Network("ResNet-50 trunk", "resnet50"),
    Network("ConvNeXt-T trunk", "convnext-t"),
    Network("U-Net, 2-D (MONAI), 16 filters", "unet2d"),
    Network("U-Net, 3-D, 16 filters", "unet3d", VOLUMES, 1),
    Network("3D-GMIC trunk, slice by slice", "gmic3d trunk", VOLUMES, 1),
)
#: Per column: the way and its budget.
Way = tuple[str, str | None]


def ways_of(network: Network) -> list[Way]:
    """Plain, checkpointed, lightstream where it is installed and can (2-D), and streamed at three budgets."""
    peers = ["lightstream"] if network.sides is PLANES and find_spec("lightstream") else []
    return [(way, None) for way in ("plain", "checkpoint", *peers)] + [("streamed", budget) for budget in BUDGETS]


def main() -> None:
    """Measures, prints a table per network, and writes the CSV and the pictures."""
    parser = arguments(__doc__ or "", Path(__file__).parent, rounds=1, limit=300)
    names = [network.name for network in NETWORKS]
    parser.add_argument(
        "--only", nargs="*", choices=names, default=names, help="networks to measure; none: print and draw again"
    )
    parser.add_argument("--sides", type=int, nargs="+", help="of these sizes only")
    parser.add_argument("--memory-limit", type=float, default=20, help="GiB that a run may take (%(default)s)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "memory_vs_resolution.csv"
    known = read_csv(file) if file.exists() else []
    measured = {network.name: [each for each in known if each.run.network == network.name] for network in NETWORKS}
    for network in NETWORKS:
        if network.name in options.only:
            sides = [side for side in network.sides if options.sides is None or side in options.sides]
            measured[network.name] = climbed(
                network, sides, options.rounds, options.limit, options.memory_limit, options.threads
            )
            write_csv([each for results in measured.values() for each in results], file)
    tables = {n: table(n, measured[n.name]) for n in NETWORKS if measured[n.name]}
    said = f"{machine(options.threads)}; contiguous float32, batch 1."
    printed = "\n\n".join(f"**{network.title}**\n\n{text}" for network, text in tables.items())
    print(f"{printed}\n\n{said}")
    draw({network.title: summarised(measured[network.name]) for network in tables}, options.out)
    if options.pages:
        fill(Path(__file__).parent / "README.md", "memory-tables", f"{printed}\n\n{said}")
        fill(ROOT / "README.md", "memory-table", f"{next(iter(tables.values()))}\n\n{said}")


def climbed(
    network: Network, sides: Sequence[int], rounds: int, limit: float, gib: float, threads: int
) -> list[Measured]:
    """Every way of a network, size after size until it fails."""
    results: list[Measured] = []
    failed: set[Way] = set()
    for side in sides:
        runs = {way: network.run(side, *way, threads=threads) for way in ways_of(network) if way not in failed}
        found = measure(list(runs.values()), rounds=rounds, limit=limit, memory=int(gib * 2**30))
        results += [replace(each, ended=said(each.ended)) for each in found]
        failed |= {way for way, run in runs.items() if any(r.run == run and r.seconds is None for r in found)}
    return results


def said(ended: str) -> str:
    """Why there is no number, in words."""
    late = re.fullmatch(r"> (\d+) s", ended)
    return f"no answer in {late[1]} s" if late else ended


def summarised(results: Sequence[Measured]) -> dict[int, dict[Way, Summary]]:
    """By side and way what was seen."""
    found: dict[int, dict[Way, Summary]] = {}
    for side in dict.fromkeys(each.run.shape[-1] for each in results):
        rows = summarise([each for each in results if each.run.shape[-1] == side])
        found[side] = {(row.run.way, row.run.memory): row for row in rows}
    return found


def table(network: Network, results: Sequence[Measured]) -> str:
    """Live bytes and seconds of each way, a row per size, as Markdown; below it how flat streaming is."""
    by_side = summarised(results)
    ways = list(dict.fromkeys(way for rows in by_side.values() for way in rows))
    lines = [f"| image | {' | '.join(map(title, ways))} |", "|---" * (1 + len(ways)) + "|"]
    space = 2 if network.sides is PLANES else 3
    for side, rows in by_side.items():
        cells = [cell(rows.get(way)) for way in ways]
        lines.append(f"| {' x '.join([str(side)] * space)} | {' | '.join(cells)} |")
    lines += ["", flatness(network, by_side)]
    return "\n".join(lines)


def title(way: Way) -> str:
    """How a table names a way."""
    return way[0] if way[1] is None else f"{way[0]}, {way[1]}"


def cell(row: Summary | None) -> str:
    """Bytes and time, or why there are none; nothing where it was not tried, after a smaller image failed."""
    if row is None:
        return ""
    if row.live_bytes is None:
        return row.ended
    return f"{format_bytes(row.live_bytes)}, {row.time}"


def flatness(network: Network, by_side: dict[int, dict[Way, Summary]]) -> str:
    """Seconds per megapixel (a million voxels in 3-D) of streaming within each budget, least and most, and if flat."""
    unit, least = ("megapixel", 1024) if network.sides is PLANES else ("million voxels", 64)
    said = []
    for budget in BUDGETS:
        times = []
        for side, rows in by_side.items():
            row = rows.get(("streamed", budget))
            if side >= least and row is not None and row.seconds is not None:
                times.append(row.seconds / side ** (2 if network.sides is PLANES else 3) * 1e6)
        if times:
            flat = max(times) <= FLAT * min(times)
            said.append(f"{min(times):.2f} to {max(times):.2f} s within {budget} ({'flat' if flat else 'not flat'})")
    return f"Streamed seconds per {unit}, from {least} up: {'; '.join(said) or 'none'}."


if __name__ == "__main__":
    main()
