"""The table of what a network said of each image, in the columns of the published code."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from streamingcnn.files import whole_file

__all__ = ["write_predictions"]


def write_predictions(
    path: str | Path,
    names: Sequence[str],
    predictions: ArrayLike,
    labels: ArrayLike,
    *,
    classes: Sequence[str] = ("benign", "malignant"),
) -> None:
    """Write a row per image (CSV): its name, a probability per class, a label per class; four decimals.

    Example::

        write_predictions("predictions.csv", ["a"], [[0.1, 0.93]], [[0, 1]])
        # image_index,benign_pred,malignant_pred,benign_label,malignant_label
        # a,0.1000,0.9300,0,1

    A label that is not known (NaN) is left empty.

    Raises:
        ValueError: names, predictions and labels do not fit together.
        OSError: it could not be written.
    """
    said, truth = np.asarray(predictions, np.float64), np.asarray(labels, np.float64)
    if said.shape != (len(names), len(classes)) or truth.shape != said.shape:
        raise ValueError(
            f"{len(names)} names, predictions of {said.shape} and labels of {truth.shape}; needed is one number per "
            f"image and class ({', '.join(classes)})"
        )
    header = ["image_index", *(f"{name}_pred" for name in classes), *(f"{name}_label" for name in classes)]
    rows = [
        [name, *(f"{p:.4f}" for p in p_row), *("" if np.isnan(y) else f"{y:g}" for y in y_row)]
        for name, p_row, y_row in zip(names, said, truth, strict=True)
    ]
    with whole_file(Path(path)) as partial, partial.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
