"""The pictures: live bytes, and time per million pixels, against the side of the image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.measure import Summary

__all__ = ["draw"]

Rows = Mapping[int, Mapping[tuple[str, str | None], Summary]]
#: By way: colour and line. Streaming is one colour, darker with more memory.
STYLES = {
    "plain": ("#777777", "-"),
    "checkpoint": ("#c9a227", "-"),
    "lightstream": ("#a23b3b", "-"),
    "512MiB": ("#8fc1d4", "-"),
    "2GiB": ("#3f8fae", "-"),
    "8GiB": ("#12475c", "-"),
}


def draw(networks: Mapping[str, Rows], folder: Path) -> None:
    """Write `memory_vs_resolution` and `time_vs_resolution`, each as PNG and SVG."""

    def gib(side: int, space: int, row: Summary) -> float | None:
        return None if row.live_bytes is None else row.live_bytes / 2**30

    def pace(side: int, space: int, row: Summary) -> float | None:
        return None if row.seconds is None else row.seconds / side**space * 1e6

    _draw(networks, gib, "GiB of live tensors in a training step", folder / "memory_vs_resolution")
    _draw(networks, pace, "seconds per million pixels of a training step", folder / "time_vs_resolution")


def _draw(networks: Mapping[str, Rows], of: Callable[[int, int, Summary], float | None], what: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "streamingcnn"  # the same picture is the same file
    from matplotlib import pyplot as plt

    columns = min(4, len(networks))
    lines = -(-len(networks) // columns)
    height, legend = 3.1 * lines + 0.9, 0.45
    figure, axes = plt.subplots(lines, columns, figsize=(3.4 * columns, height), squeeze=False)
    handles: dict[str, Any] = {}
    for axis, (title, rows) in zip(axes.flat, networks.items(), strict=False):
        _panel(axis, title, rows, of, handles)
    for axis in axes.flat[len(networks) :]:
        axis.set_visible(False)
    figure.suptitle(what, x=0.01, ha="left", fontsize=11)
    figure.legend(handles.values(), handles, loc="lower center", ncols=3, frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, legend / height, 1, 1))
    for suffix, options in ((".png", {"dpi": 130}), (".svg", {"metadata": {"Date": None}})):
        figure.savefig(path.with_suffix(suffix), **options)
    plt.close(figure)


def _panel(
    axis: Any, title: str, rows: Rows, of: Callable[[int, int, Summary], float | None], handles: dict[str, Any]
) -> None:
    for name, (colour, line) in STYLES.items():
        points = []
        for side, by_way in rows.items():
            for (way, memory), row in by_way.items():
                value = of(side, len(row.run.shape) - 2, row) if name in (way, memory) else None
                if value is not None:
                    points.append((side, value))
        if points:
            label = f"streamed, {name}" if name.endswith("iB") else name
            (handles[label],) = axis.plot(*zip(*points, strict=True), marker="o", ms=3.5, color=colour, ls=line)
    from matplotlib.ticker import LogLocator

    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set_xticks(list(rows), [str(side) for side in rows], fontsize=8)
    axis.tick_params(axis="y", labelsize=8)
    axis.minorticks_off()
    axis.set_title(title, loc="left", fontsize=9)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
