"""How well findings are placed: the FROC score of CAMELYON16.

A detection is a point with a score. In a lesion it finds it, and several in one lesion count once, with the highest of
their scores; outside all lesions it is a false positive. At each threshold on the score there is then a number of
false positives per slide and a share of lesions found, and the score is the mean of those shares at 1/4, 1/2, 1, 2, 4
and 8 false positives per slide (straight lines between the points).

As in the challenge's own evaluation a lesion is what is joined after its outline was widened by 37.5 um, and a lesion
less than 275 um long is a group of isolated tumour cells: it need not be found, and finding it is no error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamingcnn.boxes import full
from streamingcnn.extras import require
from streamingcnn.slides.annotations import Outline
from streamingcnn.slides.labels import LabelSource

__all__ = ["FALSE_POSITIVES", "Froc", "Lesions", "Matched", "froc", "lesions_of", "match", "peaks"]

#: False positives per slide at which the share of lesions found is read.
FALSE_POSITIVES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Lesions:
    """The lesions of a slide, as a small map.

    Attributes:
        labels: (rows, columns), 0 outside, 1 to ``len(counted)`` for the lesions.
        scale: pixels of level 0 to a pixel of the map, along (y, x).
        counted: for each lesion, whether it is to be found; others are neither hits nor errors.
    """

    labels: NDArray[np.int32]
    scale: tuple[float, float]
    counted: tuple[bool, ...]


@dataclass(frozen=True)
class Matched:
    """One slide's result: the highest score in each lesion (-inf where it was missed), and each false positive's."""

    found: tuple[float, ...]
    false_positives: tuple[float, ...]


@dataclass(frozen=True)
class Froc:
    """The curve, from no detection to all of them, and its score.

    Attributes:
        score: the mean of the sensitivities at `FALSE_POSITIVES`.
        at: those sensitivities.
        false_positives, sensitivity: the curve; per slide, and of all lesions.
        lesions: how many lesions there were.
        slides: how many slides.
    """

    score: float
    at: tuple[float, ...]
    false_positives: tuple[float, ...]
    sensitivity: tuple[float, ...]
    lesions: int
    slides: int


def froc(slides: Sequence[Matched]) -> Froc:
    """The FROC score of a set of slides, those without lesions among them.

    >>> tumour = Matched(found=(0.9, 0.3), false_positives=(0.5,))       # two lesions
    >>> normal = Matched(found=(), false_positives=(0.1,))
    >>> froc([tumour, normal]).at       # half the lesions without an error, all at one error in two slides
    (0.5, 1.0, 1.0, 1.0, 1.0, 1.0)

    Raises:
        ValueError: there is no lesion to be found.
    """
    found = np.array([score for slide in slides for score in slide.found], np.float64)
    wrong = np.array([score for slide in slides for score in slide.false_positives], np.float64)
    if not len(found):
        raise ValueError(f"none of the {len(slides)} slides has a lesion to be found; FROC needs at least one")
    thresholds = np.unique(np.concatenate([found[np.isfinite(found)], wrong]))[::-1]
    false_positives = [0.0] + [float((wrong >= t).sum() / len(slides)) for t in thresholds]
    sensitivity = [0.0] + [float((found >= t).sum() / len(found)) for t in thresholds]
    at = tuple(_at(wanted, false_positives, sensitivity) for wanted in FALSE_POSITIVES)
    return Froc(float(np.mean(at)), at, tuple(false_positives), tuple(sensitivity), len(found), len(slides))


def match(detections: Floats | Sequence[tuple[float, float, float]], lesions: Lesions) -> Matched:
    """Hits and false positives among detections (n, 3) of x, y in pixels of level 0, and score.

    >>> lesions = Lesions(np.array([[1, 0], [0, 2]], np.int32), (10.0, 10.0), (True, False))
    >>> match([(5, 5, 0.8), (6, 6, 0.9), (15, 5, 0.4), (15, 15, 0.7)], lesions)
    Matched(found=(0.9,), false_positives=(0.4,))
    """
    best = np.full(len(lesions.counted) + 1, -np.inf)
    wrong = []
    for x, y, score in np.asarray(detections, np.float64).reshape(-1, 3):
        row, column = int(y // lesions.scale[0]), int(x // lesions.scale[1])
        inside = 0 <= row < lesions.labels.shape[0] and 0 <= column < lesions.labels.shape[1]
        lesion = int(lesions.labels[row, column]) if inside else 0
        if lesion:
            best[lesion] = max(best[lesion], score)
        else:
            wrong.append(float(score))
    found = tuple(float(best[number]) for number, counts in enumerate(lesions.counted, 1) if counts)
    return Matched(found, tuple(wrong))


def lesions_of(
    outlines: Sequence[Outline],
    size: tuple[int, int],
    mpp: float,
    labels: Mapping[str, int | None] | None = None,
    *,
    margin: float = 37.5,
    smallest: float = 275.0,
    at: float = 8.0,
) -> Lesions:
    """The lesions that outlines enclose.

    Example::

        lesions = lesions_of(read_asap("test_001.xml"), (97_792, 221_184), 0.243, CAMELYON16)

    Args:
        outlines: in pixels of level 0.
        size: height and width of level 0.
        mpp: micrometres to a pixel of level 0.
        labels: as for `LabelSource`; anything but 0 is lesion.
        margin: micrometres by which lesions are widened before what touches is joined.
        smallest: micrometres of the longest axis of a lesion that counts.
        at: micrometres to a pixel of the map.
    """
    require("scipy", "skimage")
    from scipy.ndimage import binary_fill_holes, distance_transform_edt
    from skimage.measure import label, regionprops

    step = max(1.0, at / mpp)
    extents = (max(1, round(size[0] / step)), max(1, round(size[1] / step)))
    scale = (size[0] / extents[0], size[1] / extents[1])
    inside = LabelSource(outlines, extents, scale, labels).read(full(extents))[0].bool().numpy()
    if not inside.any():
        return Lesions(np.zeros((1, 1), np.int32), (float(size[0]), float(size[1])), ())
    widened = distance_transform_edt(~inside) < margin / (mpp * step)
    joined = label(binary_fill_holes(widened), connectivity=2).astype(np.int32)
    counted = tuple(bool(region.axis_major_length * mpp * step > smallest) for region in regionprops(joined))
    return Lesions(joined, scale, counted)


def peaks(heat: NDArray[np.floating], scale: tuple[float, float], *, apart: int = 2, above: float = 0.0) -> Floats:
    """The local maxima of a heatmap as detections (n, 3) of x, y in pixels of level 0, and score.

    Args:
        heat: (rows, columns).
        scale: pixels of level 0 to a pixel of it, along (y, x).
        apart: pixels of the heatmap between two peaks, at least.
        above: the lowest heat that is a detection.
    """
    require("skimage")
    from skimage.feature import peak_local_max

    places = peak_local_max(np.asarray(heat, np.float64), min_distance=apart, threshold_abs=above, exclude_border=False)
    rows, columns = places[:, 0], places[:, 1]
    return np.stack([(columns + 0.5) * scale[1], (rows + 0.5) * scale[0], heat[rows, columns]], axis=1)


def _at(wanted: float, false_positives: Sequence[float], sensitivity: Sequence[float]) -> float:
    """The sensitivity at a number of false positives: of several points there the best, else on the line between."""
    exact = [s for f, s in zip(false_positives, sensitivity, strict=True) if f == wanted]
    return max(exact) if exact else float(np.interp(wanted, *_best(false_positives, sensitivity)))


def _best(false_positives: Sequence[float], sensitivity: Sequence[float]) -> tuple[list[float], list[float]]:
    """The curve with the highest point of each number of false positives last, as `numpy.interp` wants it."""
    points = sorted(zip(false_positives, sensitivity, strict=True))
    return [f for f, _ in points], [s for _, s in points]
