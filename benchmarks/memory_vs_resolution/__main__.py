"""Bytes and time of a ResNet-18 step by image size: `python -m benchmarks.memory_vs_resolution`."""

from __future__ import annotations

from pathlib import Path

from benchmarks.measure import Measured, Run, Summary, arguments, machine, measure, summarise, write_csv
from benchmarks.networks import WAYS
from benchmarks.pages import ROOT, fill
from streamingcnn.memory import format_bytes

SIZES = (512, 1024, 1536, 2048, 3072, 4096)


def main() -> None:
    """Measures every size in every way, prints a table and writes a CSV and a picture."""
    parser = arguments(__doc__ or "", Path(__file__).parent, rounds=3, limit=600)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="image sizes in pixels")
    parser.add_argument("--tile", type=int, help="tile of the streamed network (default: automatic)")
    parser.add_argument("--memory-format", default="contiguous", choices=["contiguous", "channels_last"])
    options = parser.parse_args()
    results: list[Measured] = []
    by_size: dict[int, list[Summary]] = {}
    for size in options.sizes:
        runs = [
            Run(
                "resnet18",
                (1, 3, size, size),
                way,
                options.memory_format,
                tile=options.tile if way == "streamed" else None,
                threads=options.threads,
            )
            for way in WAYS
        ]
        measured = measure(runs, rounds=options.rounds, limit=options.limit)
        results += measured
        by_size[size] = summarise(measured)
    printed = f"{table(by_size)}\n\n{machine(options.threads)}; {options.memory_format}."
    print(printed)
    options.out.mkdir(parents=True, exist_ok=True)
    write_csv(results, options.out / "memory_vs_resolution.csv")
    draw(by_size, options.out / "memory_vs_resolution.png")
    if options.pages:
        for page in (ROOT / "README.md", Path(__file__).parent / "README.md"):
            fill(page, "memory-table", printed)


def table(by_size: dict[int, list[Summary]]) -> str:
    """Live bytes and seconds of each way, a row per size, as Markdown."""
    head = " | ".join(f"{way}: live bytes | {way}: time" for way in WAYS)
    lines = [f"| image | {head} |", "|---" * (1 + 2 * len(WAYS)) + "|"]
    for size, rows in by_size.items():
        cells = []
        for row in rows:
            cells.append(format_bytes(row.live_bytes) if row.live_bytes is not None else "-")
            cells.append(row.time)
        lines.append(f"| {size} x {size} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(by_size: dict[int, list[Summary]], path: Path) -> None:
    """Live bytes and seconds against the image's side, a line per way, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for index, way in enumerate(WAYS):
        colour = {"plain": "#888888", "checkpoint": "#c9a227"}.get(way, "#1f6f8b")
        rows = [(size, rows[index]) for size, rows in by_size.items()]
        gib = [(size, row.live_bytes / 2**30) for size, row in rows if row.live_bytes is not None]
        seconds = [(size, row.seconds) for size, row in rows if row.seconds is not None]
        for axis, points in ((left, gib), (right, seconds)):
            axis.plot(*zip(*points, strict=True), "o-", color=colour, label=way)
    for axis, label in ((left, "GiB of live tensors in a step"), (right, "seconds per step")):
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.set_xticks(list(by_size), [str(size) for size in by_size])
        axis.minorticks_off()
        axis.set_xlabel("side of the image, pixels")
        axis.set_title(label, loc="left", fontsize=10)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
