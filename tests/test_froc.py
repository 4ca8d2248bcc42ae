"""FROC by numbers worked out by hand, and lesions made from outlines."""

from __future__ import annotations

import numpy as np
import pytest

from streamingcnn.slides import CAMELYON16, Outline
from streamingcnn.slides.froc import FALSE_POSITIVES, Lesions, Matched, froc, lesions_of, match, peaks

MISSED = -np.inf


def test_the_points_are_the_challenges() -> None:
    assert FALSE_POSITIVES == (1 / 4, 1 / 2, 1, 2, 4, 8)


@pytest.mark.parametrize(
    "slides, at",
    [
        # everything found, no error: 1 everywhere
        ([Matched((0.9, 0.8), ()), Matched((), ())], (1, 1, 1, 1, 1, 1)),
        # nothing found
        ([Matched((MISSED,), (0.5, 0.4)), Matched((), (0.3,))], (0, 0, 0, 0, 0, 0)),
        # one slide. 0.9 hit, 0.8 error, 0.7 hit, 0.6 error: (0, 1/2) (1, 1/2) (1, 1) (2, 1)
        ([Matched((0.9, 0.7), (0.8, 0.6))], (1 / 2, 1 / 2, 1, 1, 1, 1)),
        # one slide, an error above its only hit at the 4th: (1, 0) (2, 0) (3, 0) (3, 1): at 2 still 0, at 4 all
        ([Matched((0.1,), (0.9, 0.8, 0.7))], (0, 0, 0, 0, 1, 1)),
        # a hit and an error of one score come together: (0, 0) (1, 1); on the line between
        ([Matched((0.5,), (0.5,))], (1 / 4, 1 / 2, 1, 1, 1, 1)),
        # four slides, one error: (0, 0) (1/4, 0) (1/4, 1/3) (1/4, 2/3); the third lesion was missed
        ([Matched((0.5, 0.4, MISSED), ()), Matched((), (0.9,)), *[Matched((), ())] * 2], (2 / 3,) * 6),
    ],
)
def test_sensitivities_worked_out_by_hand(slides: list[Matched], at: tuple[float, ...]) -> None:
    result = froc(slides)
    assert result.at == pytest.approx(at)
    assert result.score == pytest.approx(np.mean(at))
    assert result.slides == len(slides)


def test_without_a_lesion_there_is_no_froc() -> None:
    with pytest.raises(ValueError, match="none of the 2 slides has a lesion"):
        froc([Matched((), (0.1,)), Matched((), ())])


def test_the_best_of_several_hits_counts_once_and_isolated_cells_not_at_all() -> None:
    labels = np.zeros((10, 10), np.int32)
    labels[1:3, 1:3], labels[5:9, 5:9], labels[0, 9] = 1, 2, 3
    lesions = Lesions(labels, (100.0, 50.0), (True, True, False))
    hits = [(60, 150, 0.3), (140, 290, 0.6)]  # x in 50s, y in 100s: both in lesion 1
    cells = [(455, 10, 0.99)]
    outside = [(10, 10, 0.2), (-5, 10, 0.1), (5000, 10, 0.4)]
    matched = match(hits + cells + outside, lesions)
    assert matched.found == (0.6, MISSED)
    assert matched.false_positives == (0.2, 0.1, 0.4)
    assert match([], lesions) == Matched((MISSED, MISSED), ())


def disc(x: float, y: float, radius: float, group: str = "_0") -> Outline:
    angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    return Outline("", group, np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], axis=1))


def test_lesions_are_joined_when_near_and_counted_when_long_enough() -> None:
    # 0.5 um a pixel: radius 400 px = 200 um, so 400 + 75 um long; the cells: radius 100 px, 100 + 75 um
    outlines = [disc(1000, 1000, 400), disc(1860, 1000, 400), disc(4000, 1000, 400), disc(1000, 4000, 100)]
    lesions = lesions_of(outlines, (5000, 6000), 0.5, CAMELYON16)
    assert lesions.counted == (True, True, False)  # the first two are 30 um apart: one lesion
    detections = [(1000, 1000, 0.9), (1860, 1000, 0.8), (4000, 1450, 0.7), (4000, 1500, 0.6), (1000, 4000, 0.5)]
    matched = match(detections, lesions)
    assert matched.found == (0.9, 0.7)  # 25 um outside the line is a hit ...
    assert matched.false_positives == (0.6,)  # ... 50 um is not
    with_hole = [*outlines[:1], disc(1000, 1000, 100, "_2")]
    assert len(lesions_of(with_hole, (5000, 6000), 0.5, CAMELYON16).counted) == 1


def test_a_slide_without_outlines_has_no_lesions() -> None:
    lesions = lesions_of([], (100_000, 100_000), 0.25)
    assert lesions.counted == ()
    assert match([(5, 5, 1.0)], lesions) == Matched((), (1.0,))


def test_peaks_are_in_pixels_of_level_0() -> None:
    heat = np.zeros((20, 30))
    heat[4, 6], heat[4, 7], heat[15, 29] = 0.9, 0.8, 0.4
    found = peaks(heat, (16.0, 8.0), above=0.1)
    assert found.tolist() == [[6.5 * 8, 4.5 * 16, 0.9], [29.5 * 8, 15.5 * 16, 0.4]]
    assert len(peaks(heat, (16.0, 8.0), above=0.5)) == 1
