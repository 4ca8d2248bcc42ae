"""Measures against numbers by hand and against scikit-learn; what an evaluation writes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, roc_auc_score

from streamingcnn.sources import ReadError
from streamingcnn.training.evaluate import Answer, evaluate, main_figure, write_evaluation
from streamingcnn.training.measures import measure

Floats = NDArray[np.float64]
RNG = np.random.default_rng(0)


def softmax(x: Floats) -> Floats:
    e = np.exp(x - x.max(1, keepdims=True))
    shares: Floats = e / e.sum(1, keepdims=True)
    return shares


def made(classes: int, count: int = 80, strength: float = 1.5) -> tuple[NDArray[np.int64], Floats]:
    rng = np.random.default_rng(classes)
    labels = rng.integers(0, classes, count)
    return labels, softmax(strength * np.eye(classes)[labels] + rng.normal(size=(count, classes)))


# ------------------------------------------------------------------------------------------------- by hand


def test_binary_by_hand() -> None:
    yes = np.array([0.9, 0.7, 0.4, 0.6, 0.3, 0.2])
    found = measure("binary", [1, 1, 1, 0, 0, 0], np.stack([1 - yes, yes], 1), ["normal", "tumour"])
    assert found["auc"] == pytest.approx(8 / 9)  # of nine pairs only 0.4 against 0.6 is the wrong way around
    assert found["confusion"] == [[2, 1], [1, 2]]
    assert found["sensitivity"] == found["specificity"] == found["balanced_accuracy"] == pytest.approx(2 / 3)
    assert found["f1"] == pytest.approx(2 / 3)
    low, high = found["auc_interval"]
    assert low < 8 / 9 < high <= 1


def test_ordinal_by_hand() -> None:
    # labels 0 0 1 2, answers 0 1 1 2: one error by one step. observed 1; by chance, row and column sums over four
    answers = np.eye(3)[[0, 1, 1, 2]]
    found = measure("ordinal", [0, 0, 1, 2], answers, ["a", "b", "c"])
    by_chance = (2 * 2 * 1 + 2 * 1 * 4 + 1 * 1 * 1 + 1 * 1 * 1 + 1 * 1 * 4 + 1 * 2 * 1) / 4
    assert found["quadratic_kappa"] == pytest.approx(1 - 1 / by_chance)
    assert found["mean_distance"] == 0.25


def test_regression_by_hand() -> None:
    found = measure("regression", [1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 15.0, 90.0])
    assert found["spearman"] == pytest.approx(0.8)  # one pair of neighbours swapped: 1 - 6 * 2 / (4 * 15)
    assert found["mean_absolute_error"] == pytest.approx((9 + 18 + 12 + 86) / 4)
    assert found["root_mean_squared_error"] == pytest.approx(np.sqrt((81 + 324 + 144 + 7396) / 4))


# ---------------------------------------------------------------------------------------- against scikit-learn


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_figures_are_scikit_learns(classes: int) -> None:
    labels, answers = made(classes)
    names = [f"class {n}" for n in range(classes)]
    found = measure("multiclass" if classes > 2 else "binary", labels, answers, names, draws=100)
    expected = (
        roc_auc_score(labels, answers[:, 1])
        if classes == 2
        else roc_auc_score(labels, answers, multi_class="ovr", average="macro")
    )
    assert found["auc"] == pytest.approx(expected)
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, answers.argmax(1)))
    ordinal = measure("ordinal", labels, answers, names, draws=100)
    kappa = cohen_kappa_score(labels, answers.argmax(1), weights="quadratic")
    assert ordinal["quadratic_kappa"] == pytest.approx(kappa)
    low, high = ordinal["quadratic_kappa_interval"]
    assert low < kappa < high


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Two normal distributions one deviation apart have an AUC of 0.760; 60 studies of 60 cases."""
    covered = 0
    for study in range(60):
        rng = np.random.default_rng(study)
        labels = np.arange(60) % 2
        score = rng.normal(size=60) + labels
        low, high = measure("binary", labels, np.stack([-score, score], 1), "ab", draws=200)["auc_interval"]
        covered += low <= 0.7602 <= high
    assert 51 <= covered <= 60  # of 57 expected


def test_with_groups_whole_groups_are_drawn() -> None:
    """Ten copies of each case are no ten cases: the interval is that of the single ones, and far from the copies'."""
    labels, answers = made(2, 30)
    single = measure("binary", labels, answers, "ab")["auc_interval"]
    copies = np.repeat(labels, 10), np.repeat(answers, 10, axis=0)
    naive = measure("binary", *copies, "ab")["auc_interval"]
    grouped = measure("binary", *copies, "ab", groups=[str(n) for n in np.repeat(np.arange(30), 10)])["auc_interval"]
    width = single[1] - single[0]
    assert grouped[1] - grouped[0] == pytest.approx(width, rel=0.15)
    assert naive[1] - naive[0] < 0.5 * width


def test_the_same_seed_gives_the_same_interval() -> None:
    labels, answers = made(2)
    first, again = (measure("binary", labels, answers, "ab", seed=3, draws=50) for _ in range(2))
    assert first == again


# --------------------------------------------------------------------------------------------- what cannot be had


def test_figures_that_cannot_be_had_are_none_and_say_why() -> None:
    found = measure("binary", [1, 1, 1], [[0.2, 0.8], [0.7, 0.3], [0.1, 0.9]], ["no", "yes"])
    assert found["auc"] is None
    assert found["notes"] == ["no AUC: all cases are 'yes'"]
    assert found["balanced_accuracy"] == pytest.approx(2 / 3)
    flat = measure("regression", [1.0, 2.0, 3.0], [5.0, 5.0, 5.0])
    assert flat["spearman"] is None
    assert "all answers are equal" in flat["notes"][0]
    few = measure("binary", [0, 1], [[1, 0], [0, 1]], "ab")
    assert few["auc"] == 1
    json.dumps([found, flat, few], allow_nan=False)


@pytest.mark.parametrize(
    "labels, answers, said",
    [
        ([], np.zeros((0, 2)), "0 labels and 0 answers"),
        ([0, 1], [[0.5, 0.5]], "2 labels and 1 answers"),
        ([0, 1], [[0.5], [0.5]], "1 probabilities for each case, and 2 classes"),
        ([0, 2], [[0.5, 0.5], [0.5, 0.5]], "labels from 0 to 2; there are 2 classes"),
        ([0, 1], [[0.5, 0.5], [np.nan, 0.5]], "1 answers are infinite or no numbers"),
    ],
)
def test_what_does_not_fit_is_refused(labels: list[int], answers: ArrayLike, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        measure("binary", labels, answers, ["a", "b"])


# ------------------------------------------------------------------------------------------------------ the files


def cases(count: int) -> list[SimpleNamespace]:
    return [SimpleNamespace(id=f"slide {n}") for n in range(count)]


def test_an_evaluation_goes_on_after_a_bad_case_and_lists_it(tmp_path: Path) -> None:
    labels, answers = made(3, 40)

    def answer(case: SimpleNamespace) -> Answer:
        number = int(case.id.split()[1])
        if number == 7:
            raise ReadError("slide 7.svs is damaged at ((0, 1), (0, 1))")
        label = None if number == 8 else int(labels[number])
        return Answer(case.id, f"{case.id}.svs", label, tuple(answers[number]), f"patient {number // 2}")

    result = evaluate(cases(40), answer, "multiclass", ["a", "b", "c"], draws=50)
    pictures = write_evaluation(result, tmp_path / "out")
    assert pictures == ["roc.png", "confusion.png"]
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["cases"] == 38
    assert metrics["groups"] == 20
    assert metrics["bad_cases"] == [{"id": "slide 7", "reason": "slide 7.svs is damaged at ((0, 1), (0, 1))"}]
    with (tmp_path / "out" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 39
    assert rows[0]["label"] == "abc"[labels[0]]
    assert rows[7]["label"] == ""  # slide 8 has none, and an answer all the same
    assert float(rows[0]["p_b"]) == pytest.approx(answers[0, 1], rel=1e-5)
    assert rows[0]["answer"] == "abc"[answers[0].argmax()]
    for picture in pictures:
        with Image.open(tmp_path / "out" / picture) as image:
            assert min(image.size) > 300
    assert main_figure(result.measures).startswith("AUC 0.")
    assert main_figure(result.measures).endswith("on 38 cases")


def test_a_regression_has_values_and_their_picture(tmp_path: Path) -> None:
    values = RNG.normal(size=20)
    result = evaluate(
        cases(20),
        lambda case: Answer(case.id, "p", float(case.id.split()[1]), (values[int(case.id.split()[1])],)),
        "regression",
        draws=50,
    )
    assert write_evaluation(result, tmp_path) == ["values.png"]
    with (tmp_path / "predictions.csv").open() as file:
        assert list(csv.DictReader(file))[3].keys() == {"id", "path", "group", "label", "answer"}


def test_when_nothing_can_be_read_the_reasons_are_listed() -> None:
    def answer(case: SimpleNamespace) -> Answer:
        raise ReadError(f"{case.id} is empty")

    with pytest.raises(ValueError, match=r"no case with a label .* of 3\n  - slide 0: slide 0 is empty"):
        evaluate(cases(3), answer, "binary", ["a", "b"])
