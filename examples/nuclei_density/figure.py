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
    tasks = [task for task in ("label", "count") if any(each["task"] == task for each in found)]
    figure = Figure(figsize=(4 * len(tasks), 3.8), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    seeds = sorted({each["seed"] for each in found})
    for number, task in enumerate(tasks):
        axes = figure.add_subplot(1, len(tasks), number + 1)
        most = 1.0
        for each in (each for each in found if each["task"] == task):
            with (out / f"seed_{each['seed']}" / f"{task}_{on}" / "predictions.csv").open() as file:
                rows = list(csv.DictReader(file))
            colour = COLOURS[seeds.index(each["seed"]) % len(COLOURS)]
            name = f"seed {each['seed']}: {each['value']:.3f}, mean colour {each['mean_colour']:.3f}"
            if task == "label":
                dense, said = [row["label"] == "dense" for row in rows], [float(row["p_dense"]) for row in rows]
                wrong, right, _ = roc_curve(dense, said)
                axes.step(wrong, right, where="post", color=colour, label=name)
            else:
                true, said = [float(row["label"]) for row in rows], [float(row["answer"]) for row in rows]
                axes.scatter(true, said, s=9, color=colour, alpha=0.7, linewidths=0, label=name)
                most = max(most, *true, *said)
        axes.plot([0, most], [0, most], color="#999999", linewidth=1, linestyle=":")
        if task == "label":
            axes.set(title="dense patches or none: AUC", xlabel="false positive rate", ylabel="true positive rate")
        else:
            axes.set(title="nuclei on a slide: Spearman", xlabel="true", ylabel="said")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="lower right" if task == "label" else "upper left", frameon=False, fontsize=8)
    figure.savefig(path)
