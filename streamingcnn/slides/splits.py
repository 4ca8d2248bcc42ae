"""Which case trains, which one chooses, which one tests: by patient, with each class in its share, always the same."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from streamingcnn.extras import require
from streamingcnn.files import whole_file
from streamingcnn.slides.cases import Case
from streamingcnn.slides.rows import read_rows

__all__ = ["read_splits", "split_cases", "write_splits"]

#: Numbers are split as so many classes, from low to high.
_BINS = 4


def split_cases(
    cases: Sequence[Case],
    *,
    validation: float = 0.15,
    test: float = 0.15,
    folds: int = 0,
    fold: int = 0,
    numbers: bool = False,
    seed: int = 0,
) -> list[Case]:
    """Cases with their splits set: no patient in two, every class in each about as often as in all.

    Example::

        cases = split_cases(read_cases("labels.csv"), validation=0.15, test=0.15)
        fold_2 = split_cases(read_cases("labels.csv"), folds=5, fold=2)

    Args:
        cases: of a study; splits that they have are replaced.
        validation, test: shares of the patients; 0 for none. Shares are met as 1/2, 1/3, 1/4, ... of what there is.
        folds: for cross-validation: the patients are dealt into so many parts, and part ``fold`` is the test;
            validation is taken from the rest.
        fold: from 0.
        numbers: whether labels are numbers, not classes; they are split by quartile.
        seed: of the dealing. Cases in another order, the same seed: the same splits.

    Raises:
        ValueError: there are fewer patients than parts.
        ModuleNotFoundError: scikit-learn is missing.
    """
    ordered = sorted(cases, key=lambda case: case.name)
    kinds = _kinds(ordered, numbers)
    split = dict.fromkeys((case.name for case in ordered), "train")
    rest = np.arange(len(ordered))
    parts = folds or _parts(test)
    if parts:
        chosen = _dealt(ordered, kinds, rest, parts, seed)[fold]
        split |= {ordered[k].name: "test" for k in chosen}
        rest = np.setdiff1d(rest, chosen)
    parts = _parts(validation / (1 - test) if not folds and test < 1 else validation)
    if parts:
        chosen = _dealt(ordered, kinds, rest, parts, seed + 1)[0]
        split |= {ordered[k].name: "validation" for k in chosen}
    return [replace(case, split=split[case.name]) for case in cases]


def _parts(share: float) -> int:
    return max(2, round(1 / share)) if share > 0 else 0


def _kinds(cases: Sequence[Case], numbers: bool) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    labels = np.array([case.label for case in cases], np.float64)
    if not numbers:
        return labels
    edges = np.quantile(labels, np.linspace(0, 1, _BINS + 1)[1:-1])
    return np.searchsorted(edges, labels).astype(np.float64)


def _dealt(
    cases: Sequence[Case],
    kinds: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    among: np.ndarray[tuple[int, ...], np.dtype[np.intp]],
    parts: int,
    seed: int,
) -> list[np.ndarray[tuple[int, ...], np.dtype[np.intp]]]:
    """The cases of each part, as indices."""
    require("sklearn")
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    groups = np.array([cases[k].group or cases[k].name for k in among])
    patients = len(set(groups.tolist()))
    if patients < parts:
        raise ValueError(
            f"{patients} patient(s) cannot be dealt into {parts} parts; take fewer folds or a larger share, or say in "
            "a column split which case belongs where"
        )
    counts = np.unique(kinds[among], return_counts=True)[1]
    stratified = counts.max() >= parts  # else no class is in every part, and there is nothing to keep
    dealer = (StratifiedGroupKFold if stratified else GroupKFold)(parts, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer cases than parts is in fewer parts, of course
        return [among[found] for _, found in dealer.split(among, kinds[among], groups)]


def write_splits(path: Path, cases: Sequence[Case], classes: Sequence[str] = ()) -> None:
    """Write which case is where: id, path, label, group, split.

    Raises:
        OSError: the file could not be written.
    """
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("id", "path", "label", "group", "split"))
        for case in cases:
            label = classes[int(case.label)] if classes else case.label
            writer.writerow((case.name, case.path, label, case.group, case.split))


def read_splits(path: Path, cases: Sequence[Case]) -> list[Case]:
    """Cases with the splits that a file of :func:`write_splits` gives them.

    Raises:
        ValueError: a case is not in the file, or the file has others; all are listed.
    """
    _, rows = read_rows(path)
    split = {row.values["id"]: row.values["split"] for row in rows}
    names = {case.name for case in cases}
    problems = [f"{name} is in the table and not in {path.name}" for name in sorted(names - split.keys())]
    problems += [f"{name} is in {path.name} and not in the table" for name in sorted(split.keys() - names)]
    if problems:
        shown = "\n".join(f"  - {each}" for each in problems[:20])
        raise ValueError(f"{path} is of another table ({len(problems)} difference(s)):\n{shown}")
    return [replace(case, split=split[case.name]) for case in cases]
