"""The pictures of a study: the ROC curve, the confusion, values against labels, FROC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamingcnn.extras import require
from streamingcnn.files import whole_file
from streamingcnn.slides.froc import FALSE_POSITIVES, Froc

__all__ = ["draw_confusion", "draw_froc", "draw_roc", "draw_values"]

_BLUE, _GREY = "#2a5db0", "#999999"


def draw_roc(path: Path, labels: Sequence[int], answers: NDArray[np.float64], measures: Mapping[str, Any]) -> None:
    """The ROC curve, one for each class where there are more than two."""
    require("matplotlib", "sklearn")
    from sklearn.metrics import roc_curve

    figure, axes = _square()
    classes = measures["classes"]
    for number, name in enumerate(classes) if len(classes) > 2 else [(1, classes[1])]:
        positive = np.asarray(labels) == number
        if 0 < positive.sum() < len(positive):
            wrong, right, _ = roc_curve(positive, answers[:, number])
            one = len(classes) == 2
            said = f"AUC {measures['auc']:.3f}" if one else f"{name}: {measures['auc_of'][name]:.3f}"
            if one and measures.get("auc_interval"):
                said += " ({:.3f} to {:.3f})".format(*measures["auc_interval"])
            axes.step(wrong, right, where="post", label=said, **({"color": _BLUE} if one else {}))
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle=":")
    axes.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_title(f"{classes[1]} against {classes[0]}" if len(classes) == 2 else "each class against the rest")
    axes.legend(loc="lower right", frameon=False)
    _save(figure, path)


def draw_confusion(path: Path, measures: Mapping[str, Any]) -> None:
    """How often each class was taken for each."""
    counts = np.asarray(measures["confusion"])
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure, axes = _square()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if share[row, column] > 0.6 else "black"
        axes.text(column, row, f"{count}\n{share[row, column]:.0%}", ha="center", va="center", color=colour)
    ticks = range(len(counts))
    axes.set_xticks(ticks, measures["classes"], rotation=30 if len(counts) > 3 else 0)
    axes.set_yticks(ticks, measures["classes"])
    axes.set(xlabel="answer", ylabel="label")
    axes.set_title(f"balanced accuracy {measures['balanced_accuracy']:.3f}")
    _save(figure, path)


def draw_values(path: Path, labels: Sequence[float], values: Sequence[float], measures: Mapping[str, Any]) -> None:
    """Answers of a regression against their labels."""
    figure, axes = _square()
    axes.scatter(labels, values, color=_BLUE, alpha=0.6, s=18)
    ends = [min(*labels, *values), max(*labels, *values)]
    axes.plot(ends, ends, color=_GREY, linewidth=1, linestyle=":")
    axes.set(xlabel="label", ylabel="answer")
    found = measures["spearman"]
    axes.set_title("" if found is None else f"Spearman {found:.3f}")
    _save(figure, path)


def draw_froc(path: Path, result: Froc) -> None:
    """Lesions found against false positives per slide, with the points that the score is the mean of."""
    figure, axes = _square()
    axes.plot(result.false_positives, result.sensitivity, color=_BLUE)
    axes.plot(FALSE_POSITIVES, result.at, "o", color=_BLUE, markersize=4)
    axes.set(xlabel="false positives per slide", ylabel="share of lesions found", ylim=(-0.02, 1.02), xlim=(0, 8.2))
    axes.set_title(f"FROC {result.score:.3f}, {result.lesions} lesions in {result.slides} slides")
    _save(figure, path)


def _square() -> tuple[Any, Any]:
    require("matplotlib")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    with whole_file(path) as partial:
        figure.savefig(partial, format="png", dpi=110)
