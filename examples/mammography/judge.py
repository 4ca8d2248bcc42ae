"""What a way is worth on a split: AUC, Dice and average precision of pixels by class, and the best a grid can do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from examples.mammography.data import Split
from examples.mammography.ways import Way
from streamingcnn.mammography import best_threshold, dice, pixel_average_precision
from streamingcnn.training.measures import measure

CLASSES = ("benign", "malignant")
#: Trained maps crowd at 0 and 1: thresholds are even in logits.
THRESHOLDS = tuple(float(t) for t in 1 / (1 + np.exp(-np.linspace(-8, 8, 49))))
#: Images that go through a network together where nothing is trained.
BATCH = 4

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Answers:
    """Probabilities (N, 2), and maps (N, 2, h, w) by name."""

    predictions: Floats
    maps: dict[str, Floats]


@torch.no_grad()
def answers_of(way: Way, split: Split) -> Answers:
    """Run a network in eval mode on every image of a split."""
    way.net.eval()
    predictions, maps = [], []
    for first in range(0, len(split.images), BATCH):
        found = way.net(torch.stack(split.images[first : first + BATCH]))
        predictions.append(way.answer(found).numpy())
        maps.append({name: each.numpy() for name, each in way.maps(found).items()})
    return Answers(
        np.concatenate(predictions), {name: np.concatenate([each[name] for each in maps]) for name in maps[0]}
    )


def aucs(predictions: Floats, split: Split) -> tuple[dict[str, float], dict[str, list[float]]]:
    """The area under the ROC curve of each class, and its interval of 95 %, from drawing the images again."""
    labels = split.labels.int().numpy()
    found = {
        name: measure("binary", labels[:, k], np.stack([1 - predictions[:, k], predictions[:, k]], 1), ("none", name))
        for k, name in enumerate(CLASSES)
    }
    return {name: f["auc"] for name, f in found.items()}, {name: f["auc_interval"] for name, f in found.items()}


def threshold_of(maps: Floats, split: Split) -> float:
    """The ONE threshold, of both classes, with the highest mean Dice; for validation images only."""
    return best_threshold(
        [one for each in maps for one in each], [one for each in split.masks for one in each], THRESHOLDS
    )


def dices(maps: Floats, split: Split, threshold: float) -> dict[str, float]:
    """The mean Dice of each class over the images that hold it."""
    return _means(maps, split, lambda saliency, mask: dice(saliency, mask, threshold))


def precisions(maps: Floats, split: Split) -> dict[str, float]:
    """The mean average precision of pixels of each class over the images that hold it; no threshold is chosen."""
    return _means(maps, split, pixel_average_precision)


def _means(maps: Floats, split: Split, of: Callable[[Floats, NDArray[np.bool_]], float]) -> dict[str, float]:
    return {
        name: float(np.mean([of(m[k], t[k]) for m, t in zip(maps, split.masks, strict=True) if t[k].any()]))
        for k, name in enumerate(CLASSES)
    }


def grid_limit(split: Split, cells: tuple[int, int]) -> dict[str, float]:
    """The mean Dice of the best choice of whole cells, image by image: what no map of this grid can exceed."""
    return {
        name: float(np.mean([best_cells(each[k], cells) for each in split.masks if each[k].any()]))
        for k, name in enumerate(CLASSES)
    }


def best_cells(mask: NDArray[np.bool_], cells: tuple[int, int]) -> float:
    """The highest Dice that whole cells of a grid have with a mask.

    >>> mask = np.zeros((4, 4), bool)
    >>> mask[0, 0] = mask[0, 1] = mask[0, 2] = True
    >>> best_cells(mask, (2, 2))  # the upper left cell, 2 of its 4 pixels right: 2 * 2 / (4 + 3)
    0.5714285714285714
    """
    of = [np.arange(extent) * count // extent for extent, count in zip(mask.shape, cells, strict=True)]
    cell = of[0][:, None] * cells[1] + of[1][None]
    sizes = np.bincount(cell.ravel(), minlength=cells[0] * cells[1])
    right = np.bincount(cell.ravel(), mask.ravel(), minlength=len(sizes))
    # The fullest cells first: no other choice of as many has more right (cells differ by a pixel's row at most).
    order = np.argsort(-right / sizes)
    return float((2 * right[order].cumsum() / (sizes[order].cumsum() + mask.sum())).max())
