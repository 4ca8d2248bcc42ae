"""The picture of a study: ROC of every seed, and counted against true numbers of nuclei."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

COLOURS = ("#2a5db0", "#d1702a", "#3a8f5c", "#8a4fa3")


def draw(path: Path, found: Sequence[dict[str, Any]], out: Path, on: str) -> None:
    """Draw what `evaluate` wrote for each result."""
    figure = Figure(figsize=(8, 3.8), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    roc, scatter = figure.subplots(1, 2)
    roc.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle=":")
    seeds = sorted({each["seed"] for each in found})
    most = 0.0
    for each in found:
        with (out / f"seed_{each['seed']}" / f"{each['task']}_{on}" / "predictions.csv").open() as file:
            rows = list(csv.DictReader(file))
        colour = COLOURS[seeds.index(each["seed"]) % len(COLOURS)]
        name = f"seed {each['seed']}: {each['value']:.3f}, mean colour {each['mean_colour']:.3f}"
        if each["task"] == "label":
            wrong, right, _ = roc_curve([row["label"] == "dense" for row in rows], [float(r["p_dense"]) for r in rows])
            roc.step(wrong, right, where="post", color=colour, label=name)
        else:
            true, said = [float(row["label"]) for row in rows], [float(row["answer"]) for row in rows]
            scatter.scatter(true, said, s=9, color=colour, alpha=0.7, linewidths=0, label=name)
            most = max(most, *true, *said)
    scatter.plot([0, most], [0, most], color="#999999", linewidth=1, linestyle=":")
    roc.set(title="dense patches or none: AUC", xlabel="false positive rate", ylabel="true positive rate")
    scatter.set(title="nuclei on a slide: Spearman", xlabel="true", ylabel="said")
    for axes, place in ((roc, "lower right"), (scatter, "upper left")):
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc=place, frameon=False, fontsize=8)
    figure.savefig(path)
