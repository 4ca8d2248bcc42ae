"""What a set of answers is worth, by task, each figure that stands for a study with its interval.

| task       | main figure, with interval | beside it                                                                |
|------------|----------------------------|--------------------------------------------------------------------------|
| binary     | AUC                        | balanced accuracy, F1, sensitivity and specificity at 0.5, confusion     |
| multiclass | AUC, mean over classes     | AUC, F1 of each class, balanced accuracy, macro F1, confusion            |
| ordinal    | quadratic kappa            | Spearman's correlation, balanced accuracy, mean distance, confusion      |
| regression | Spearman's correlation     | Pearson's, mean absolute and root mean squared error, R2                 |

An interval is of 95 %, from drawing the cases again with replacement; with groups (patients) whole groups are drawn,
since two slides of one patient are not two independent cases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streamingcnn.extras import require

__all__ = ["measure"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
#: Draws of the cases for an interval.
DRAWS = 1000


def measure(
    task: str,
    labels: ArrayLike,
    answers: ArrayLike,
    classes: Sequence[str] = (),
    *,
    groups: Sequence[str] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Any]:
    """The measures of a task, ready for JSON.

    >>> found = measure("binary", [0, 0, 1, 1], [[0.9, 0.1], [0.6, 0.4], [0.65, 0.35], [0.2, 0.8]], ["no", "yes"])
    >>> found["auc"], found["confusion"]
    (0.75, [[2, 0], [1, 1]])

    Args:
        task: binary, multiclass, ordinal or regression.
        labels: (n,) the number of each case's class; for a regression its value.
        answers: (n, classes) probabilities; for a regression (n,) or (n, 1) values.
        classes: names in the order of their numbers.
        groups: what belongs together (the patient of each case); None: every case by itself.
        draws, seed: of the interval.

    Returns:
        Names and figures; ``None`` where a figure cannot be had (the AUC of cases of one class), with the reason under
        ``notes``. ``auc_interval`` and the like are [low, high].

    Raises:
        ValueError: there is no case, or labels and answers do not fit together.
        ModuleNotFoundError: scikit-learn or SciPy is missing.
    """
    require("sklearn", "scipy")
    given, said = np.asarray(labels), np.asarray(answers, np.float64)
    said = said[:, None] if said.ndim == 1 else said
    if not len(given) or len(given) != len(said):
        raise ValueError(f"{len(given)} labels and {len(said)} answers; needed is one of each for at least one case")
    if task != "regression" and said.shape[1] != len(classes):
        raise ValueError(f"{said.shape[1]} probabilities for each case, and {len(classes)} classes")
    if not np.isfinite(said).all():
        raise ValueError(f"{int((~np.isfinite(said)).any(1).sum())} answers are infinite or no numbers")
    resample = _draws(len(given), groups, draws, seed)
    notes: list[str] = []
    result: dict[str, Any] = {"task": task, "cases": len(given), "notes": notes}
    if groups is not None:
        result["groups"] = len(set(groups))
    if task == "regression":
        result |= _regression(given.astype(np.float64), said[:, 0], resample, notes)
    else:
        number = given.astype(np.int64)
        if number.min() < 0 or number.max() >= len(classes):
            raise ValueError(f"labels from {number.min()} to {number.max()}; there are {len(classes)} classes")
        result |= _classes(number, said.argmax(1), list(classes))
        result |= _ordinal(number, said, resample, notes) if task == "ordinal" else {}
        result |= _auc(number, said, classes, resample, notes) if task != "ordinal" else {}
    return result


def _classes(labels: Ints, chosen: Ints, classes: list[str]) -> dict[str, Any]:
    from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score

    numbers = range(len(classes))
    confusion = confusion_matrix(labels, chosen, labels=numbers)
    f1 = f1_score(labels, chosen, labels=numbers, average=None, zero_division=0.0)
    present = np.isin(chosen, labels)  # scikit-learn warns of what was answered and never true; recall leaves it out
    balanced = (
        float(balanced_accuracy_score(labels, chosen))
        if present.all()
        else float(np.mean([(chosen[labels == number] == number).mean() for number in np.unique(labels)]))
    )
    result: dict[str, Any] = {
        "classes": classes,
        "accuracy": float((labels == chosen).mean()),
        "balanced_accuracy": balanced,
        "f1": float(f1[1]) if len(classes) == 2 else float(f1[np.unique(labels)].mean()),
        "confusion": confusion.tolist(),
    }
    if len(classes) == 2:
        (right_no, _), (_, right_yes) = confusion.tolist()
        result["sensitivity"] = right_yes / max(1, int((labels == 1).sum()))
        result["specificity"] = right_no / max(1, int((labels == 0).sum()))
    else:
        result["f1_of"] = {name: float(value) for name, value in zip(classes, f1, strict=True)}
    return result


def _auc(
    labels: Ints, answers: Floats, classes: Sequence[str], resample: list[Ints], notes: list[str]
) -> dict[str, Any]:
    if len(np.unique(labels)) < 2:
        notes.append(f"no AUC: all cases are '{classes[labels[0]]}'")
        return {"auc": None}
    wanted = [1] if len(classes) == 2 else [n for n in range(len(classes)) if 0 < (labels == n).sum() < len(labels)]

    def mean_auc(at: Ints) -> float:
        return float(np.mean([_area(labels[at] == number, answers[at, number]) for number in wanted]))

    everything = np.arange(len(labels))
    result: dict[str, Any] = {"auc": mean_auc(everything), "auc_interval": _interval(mean_auc, resample, notes)}
    if len(classes) > 2:
        result["auc_of"] = {classes[n]: _area(labels == n, answers[:, n]) for n in wanted}
    return result


def _area(positive: NDArray[np.bool_], scores: Floats) -> float:
    """The area under the ROC curve, nan where one kind is missing."""
    from scipy.stats import rankdata

    ones = int(positive.sum())
    zeros = len(positive) - ones
    if not ones or not zeros:
        return float("nan")
    above = float(rankdata(scores)[positive].sum()) - ones * (ones + 1) / 2
    return above / (ones * zeros)


def _ordinal(labels: Ints, answers: Floats, resample: list[Ints], notes: list[str]) -> dict[str, Any]:
    chosen, expected = answers.argmax(1), answers @ np.arange(answers.shape[1])

    def kappa(at: Ints) -> float:
        return _kappa(labels[at], chosen[at], answers.shape[1])

    found = kappa(np.arange(len(labels)))
    if np.isnan(found):
        notes.append("no quadratic kappa: labels and answers are all of one class")
    return {
        "quadratic_kappa": None if np.isnan(found) else found,
        "quadratic_kappa_interval": _interval(kappa, resample, notes),
        "spearman": _or_none(_spearman(labels.astype(np.float64), expected), "Spearman's correlation", notes),
        "mean_distance": float(np.abs(labels - chosen).mean()),
    }


def _kappa(a: Ints, b: Ints, classes: int) -> float:
    """Agreement beyond chance, errors weighed by the square of their distance; nan where chance alone agrees."""
    observed = np.zeros((classes, classes))
    np.add.at(observed, (a, b), 1)
    weight = np.subtract.outer(np.arange(classes), np.arange(classes)) ** 2
    by_chance = np.outer(observed.sum(1), observed.sum(0)) / len(a)
    chance = float((weight * by_chance).sum())
    return 1 - float((weight * observed).sum()) / chance if chance else float("nan")


def _regression(labels: Floats, values: Floats, resample: list[Ints], notes: list[str]) -> dict[str, Any]:
    difference = values - labels
    spread = float(((labels - labels.mean()) ** 2).sum())

    def correlation(at: Ints) -> float:
        return _spearman(labels[at], values[at])

    return {
        "spearman": _or_none(correlation(np.arange(len(labels))), "Spearman's correlation", notes),
        "spearman_interval": _interval(correlation, resample, notes),
        "pearson": _or_none(_pearson(labels, values), "Pearson's correlation", notes),
        "mean_absolute_error": float(np.abs(difference).mean()),
        "root_mean_squared_error": float(np.sqrt((difference**2).mean())),
        "r2": 1 - float((difference**2).sum()) / spread if spread else None,
    }


def _spearman(a: Floats, b: Floats) -> float:
    from scipy.stats import rankdata

    return _pearson(rankdata(a), rankdata(b))


def _pearson(a: Floats, b: Floats) -> float:
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / size if size else float("nan")


def _or_none(value: float, name: str, notes: list[str]) -> float | None:
    if np.isnan(value):
        notes.append(f"no {name}: all labels or all answers are equal")
        return None
    return value


def _draws(count: int, groups: Sequence[str] | None, draws: int, seed: int) -> list[Ints]:
    rng = np.random.default_rng(seed)
    if groups is None:
        return [rng.integers(0, count, count) for _ in range(draws)]
    _, of = np.unique(np.asarray(groups), return_inverse=True)
    members = [np.flatnonzero(of == number) for number in range(int(of.max()) + 1)]
    return [
        np.concatenate([members[number] for number in rng.integers(0, len(members), len(members))])
        for _ in range(draws)
    ]


def _interval(figure: Callable[[Ints], float], resample: list[Ints], notes: list[str]) -> list[float] | None:
    """The middle 95 % of a figure over the draws in which it can be had."""
    found = np.array([figure(at) for at in resample])
    found = found[~np.isnan(found)]
    if len(found) < len(resample) / 2 or len(found) < 20:
        notes.append("no interval: most draws of so few cases have one class, or one value, only")
        return None
    low, high = np.quantile(found, [0.025, 0.975])
    return [float(low), float(high)]
