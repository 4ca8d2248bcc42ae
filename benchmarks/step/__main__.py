"""Time and bytes of one step: `python -m benchmarks.step` prints the table of README.md beside this file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks.measure import Measured, Run, Summary, arguments, machine, measure, read_csv, summarise, write_csv
from benchmarks.pages import ROOT, fill
from streamingcnn.memory import format_bytes

_RESNET = Run("resnet18", (1, 3, 1536, 1536), "plain", "channels_last")
_UNET = Run("unet3d", (1, 1, 128, 128, 128), "plain")
_CONV = Run("conv7x7", (1, 3, 3072, 3072), "plain", "channels_last")

#: Title, runs (the others are compared with the first), and the seconds that a run may take.
GROUPS: dict[str, tuple[str, list[Run], float]] = {
    "resnet18": (
        "ResNet-18 trunk, 3 x 1536 x 1536",
        [
            _RESNET,
            replace(_RESNET, way="checkpoint"),
            replace(_RESNET, way="streamed"),
            replace(_RESNET, way="streamed", memory="340MiB"),
        ],
        300,
    ),
    "unet3d": (
        "3-D U-Net, 16 filters, 4 levels, 128 x 128 x 128",
        [
            _UNET,
            replace(_UNET, memory_format="channels_last_3d"),
            replace(_UNET, way="checkpoint"),
            replace(_UNET, way="streamed"),
            replace(_UNET, way="streamed", memory="260MiB"),
        ],
        300,
    ),
    # The cliff: on large images the CPU's weight gradient falls back to a reference kernel; a plan knows and cuts.
    "conv7x7": (
        "7x7 convolution, stride 2, 3 x 3072 x 3072",
        [_CONV, replace(_CONV, way="streamed")],
        60,
    ),
}


def main() -> None:
    """Measures the groups, prints a table and writes `step.csv` and `step.png`; others stay as step.csv has them."""
    parser = arguments(__doc__ or "", Path(__file__).parent, rounds=5, limit=300)
    parser.add_argument("--only", nargs="+", choices=list(GROUPS), default=list(GROUPS), help="groups to measure")
    options = parser.parse_args()
    file = options.out / "step.csv"
    known = read_csv(file) if file.exists() else []
    results: list[Measured] = []
    tables: dict[str, list[Summary]] = {}
    for key, (title, runs, limit) in GROUPS.items():
        runs = [replace(run, threads=options.threads) for run in runs]
        measured = [each for each in known if each.run in runs]
        if key in options.only:
            measured = measure(runs, rounds=options.rounds, limit=min(limit, options.limit))
        if measured:
            results += measured
            tables[title] = summarise(measured)
    printed = f"{table(tables)}\n\n{machine(options.threads)}; {options.rounds} rounds."
    print(printed)
    options.out.mkdir(parents=True, exist_ok=True)
    write_csv(results, file)
    draw(tables, options.out / "step.png")
    if options.pages:
        for page in (ROOT / "README.md", Path(__file__).parent / "README.md"):
            fill(page, "step-table", printed)


def table(tables: dict[str, list[Summary]]) -> str:
    """The rows as Markdown; times and bytes with their share of the group's first row."""
    lines = [
        "| network and input | way | time | of plain (spread) | live bytes | of plain | process |",
        "|---|---|---|---|---|---|---|",
    ]
    for title, rows in tables.items():
        for row in rows:
            ratio = f"{row.ratio:.2f}x" if row.ratio is not None else "-"
            if row.ratio_spread and row.ratio != 1:
                ratio += " ({:.2f} - {:.2f})".format(*row.ratio_spread)
            live = format_bytes(row.live_bytes) if row.live_bytes is not None else "-"
            share = f"{row.live_ratio:.0%}" if row.live_ratio is not None else "-"
            rss = format_bytes(row.rss_bytes) if row.rss_bytes is not None else "-"
            lines.append(f"| {title} | {row.run.label} | {row.time} | {ratio} | {live} | {share} | {rss} |")
    return "\n".join(lines)


def draw(tables: dict[str, list[Summary]], path: Path) -> None:
    """One panel per group: time to the left, live bytes to the right, a bar per way."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    lines = [len(rows) for rows in tables.values()]
    figure, axes = plt.subplots(
        len(tables),
        2,
        figsize=(10, 1.1 * len(tables) + 0.5 * sum(lines)),
        squeeze=False,
        gridspec_kw={"height_ratios": [count + 1 for count in lines]},
    )
    for (left, right), (title, rows) in zip(axes, tables.items(), strict=True):
        names = [row.run.label.replace(", ", "\n", 1) for row in rows]
        colours = [{"plain": "#888888", "checkpoint": "#c9a227"}.get(row.run.way, "#1f6f8b") for row in rows]
        times = left.barh(names, [row.seconds or 0 for row in rows], color=colours)
        left.bar_label(times, [row.time for row in rows], padding=3)
        gib = [(row.live_bytes or 0) / 2**30 for row in rows]
        bars = right.barh(names, gib, color=colours)
        right.bar_label(bars, [f"{value:.2f}" if value else "" for value in gib], padding=3)
        right.set_yticks([])
        left.set_title(title, loc="left", fontsize=10)
        for axis in (left, right):
            axis.invert_yaxis()
            axis.margins(x=0.2)
            axis.spines[["top", "right"]].set_visible(False)
            axis.tick_params(labelsize=8)
    axes[-1][0].set_xlabel("seconds per step")
    axes[-1][1].set_xlabel("GiB of live tensors")
    figure.tight_layout()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
