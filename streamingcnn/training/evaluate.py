"""A trained network against a table of cases: what it answers for each, and what that is worth.

out/
  metrics.json          the measures of the task, and what could not be read
  predictions.csv       a line for each case: label, answer, probabilities
  roc.png, confusion.png, values.png, froc.png      as the task has them
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streamingcnn.files import whole_file
from streamingcnn.slides.froc import Froc
from streamingcnn.training.charts import draw_confusion, draw_froc, draw_roc, draw_values
from streamingcnn.training.measures import measure

__all__ = ["Answer", "Evaluation", "evaluate", "main_figure", "worst_first", "write_evaluation"]


@dataclass(frozen=True)
class Answer:
    """What a network says of one case.

    Attributes:
        id: of the case.
        path: of its slide.
        label: the number of its class, or its value; None where it is not known.
        values: a probability for each class; for a regression the one value.
        group: the patient, where the table says.
    """

    id: str
    path: str
    label: float | None
    values: tuple[float, ...]
    group: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """Answers, what they are worth, and the cases that could not be read, with the reason."""

    task: str
    classes: tuple[str, ...]
    answers: tuple[Answer, ...]
    bad: tuple[tuple[str, str], ...]
    measures: dict[str, Any]
    froc: Froc | None = None


def evaluate(
    cases: Iterable[Any],
    answer: Callable[[Any], Answer],
    task: str,
    classes: Sequence[str] = (),
    *,
    draws: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Ask for an answer to every case and measure them; a case that cannot be read is left out and listed.

    Example::

        result = evaluate(cases, lambda case: Answer(case.id, str(case.path), case.label, ask(net, case)), "binary")
        write_evaluation(result, Path("out"))

    Args:
        cases: anything with an ``id``.
        answer: of one case; what it raises as an OSError or ValueError makes the case a bad one.
        task, classes: as in `measure`.
        draws, seed: of the intervals.

    Raises:
        ValueError: not one case with a label could be read; the reasons are listed.
    """
    answers: list[Answer] = []
    bad: list[tuple[str, str]] = []
    for case in cases:
        try:
            answers.append(answer(case))
        except (OSError, ValueError) as error:
            bad.append((str(case.id), str(error)))
    known = [each for each in answers if each.label is not None]
    if not known:
        reasons = "".join(f"\n  - {name}: {reason}" for name, reason in bad[:20])
        raise ValueError(f"no case with a label could be evaluated, of {len(answers) + len(bad)}{reasons}")
    groups = [each.group for each in known]
    together = [group for group in groups if group is not None]
    measures = measure(
        task,
        [float(each.label) for each in known if each.label is not None],
        np.array([each.values for each in known]),
        classes,
        groups=together if len(together) == len(known) and len(set(together)) < len(known) else None,
        draws=draws,
        seed=seed,
    )
    return Evaluation(task, tuple(classes), tuple(answers), tuple(bad), measures)


def main_figure(measures: dict[str, Any]) -> str:
    """The figure that stands for a task, with its interval.

    >>> main_figure({"task": "binary", "auc": 0.912, "auc_interval": [0.85, 0.96], "cases": 80})
    'AUC 0.912 (0.850 to 0.960) on 80 cases'
    """
    key, name = {
        "ordinal": ("quadratic_kappa", "quadratic kappa"),
        "regression": ("spearman", "Spearman"),
    }.get(measures["task"], ("auc", "AUC"))
    value, interval = measures.get(key), measures.get(f"{key}_interval")
    said = "not to be had" if value is None else f"{value:.3f}"
    if interval:
        said += f" ({interval[0]:.3f} to {interval[1]:.3f})"
    return f"{name} {said} on {measures['cases']} cases"


def worst_first(result: Evaluation) -> list[Answer]:
    """Answers to labelled cases, those first that give least to what is true or err by most."""

    def error(each: Answer) -> float:
        assert each.label is not None
        return 1 - each.values[int(each.label)] if result.classes else abs(each.values[0] - each.label)

    return sorted((each for each in result.answers if each.label is not None), key=lambda each: -error(each))


def write_evaluation(result: Evaluation, out: Path) -> list[str]:
    """Write the files above; returns the names of the pictures.

    Raises:
        OSError: one could not be written; none is half-written.
    """
    out.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        **result.measures,
        "bad_cases": [{"id": name, "reason": reason} for name, reason in result.bad],
    }
    if result.froc is not None:
        content["froc"] = {"score": result.froc.score, "at": list(result.froc.at), "lesions": result.froc.lesions}
    with whole_file(out / "metrics.json") as partial:
        partial.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    with whole_file(out / "predictions.csv") as partial, partial.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(_table(result))
    return _pictures(result, out)


def _table(result: Evaluation) -> list[list[object]]:
    classes = result.classes
    names = [f"p_{name}" for name in classes] if classes else ["answer"]
    rows: list[list[object]] = [["id", "path", "group", "label", *(["answer"] if classes else []), *names]]
    for each in result.answers:
        label: object = "" if each.label is None else each.label
        chosen: list[object] = []
        if classes:
            label = "" if each.label is None else classes[int(each.label)]
            chosen = [classes[int(np.argmax(each.values))]]
        rows.append([each.id, each.path, each.group or "", label, *chosen, *(f"{v:.6g}" for v in each.values)])
    return rows


def _pictures(result: Evaluation, out: Path) -> list[str]:
    known = [each for each in result.answers if each.label is not None]
    labels = [float(each.label) for each in known if each.label is not None]
    drawn: list[str] = []
    if result.task == "regression":
        draw_values(out / "values.png", labels, [each.values[0] for each in known], result.measures)
        drawn.append("values.png")
    else:
        numbers = [int(label) for label in labels]
        if result.measures.get("auc") is not None:
            draw_roc(out / "roc.png", numbers, np.array([each.values for each in known]), result.measures)
            drawn.append("roc.png")
        draw_confusion(out / "confusion.png", result.measures)
        drawn.append("confusion.png")
    if result.froc is not None:
        draw_froc(out / "froc.png", result.froc)
        drawn.append("froc.png")
    return drawn
