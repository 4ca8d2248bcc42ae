"""Outlines as a map of labels, painted box by box at any resolution.

A map of a slide of 100,000 x 100,000 pixels is 10 GB; here it is a source, of which only boxes ever exist. A pixel is
inside an outline where its centre is: a ray from it to the left crosses the line an odd number of times. So a pixel has
the same label whatever box it is read in. What is inside a hole is taken out, also where holes overlap or reach over
the outline::

       crossing        crossing
    0 0 0 | 1 1 1 1 1 1 | 0 0 0      a row: every crossing turns what is right of it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from streamingcnn.boxes import Box, full
from streamingcnn.slides.annotations import Outline, Points
from streamingcnn.slides.level0 import level_0
from streamingcnn.sources.source import Source

__all__ = ["CAMELYON16", "CAMELYON17", "LabelSource", "mask_of"]

#: Labels are painted in the order of the map: what _2 excludes from a tumour of _0 or _1 is 0 again.
CAMELYON16 = {"_0": 1, "_1": 1, "Tumor": 1, "_2": 0, "Exclusion": 0}
CAMELYON17 = {"metastases": 1, "normal": 0}


class LabelSource:
    """A source of one label per pixel: 0 outside all outlines.

    Example::

        slide = open_image("tumor_001.tif", mpp=0.5)
        truth = LabelSource.over(slide, read_asap("tumor_001.xml"), CAMELYON16)
        truth.read(((0, 512), (0, 512)))                         # (1, 512, 512) uint8

    Args:
        outlines: in pixels of level 0.
        extents: rows and columns of the map.
        downsample: pixels of level 0 to a pixel of the map, one number or along (y, x).
        labels: the label of each group, painted in this order, the later over the earlier; None: 1 for everything.
            ``None`` as a label leaves a group out.

    Raises:
        ValueError: a group has no label, or a label is not between 0 and 255.
    """

    dtype = torch.uint8
    axes = "CYX"

    def __init__(
        self,
        outlines: Sequence[Outline],
        extents: tuple[int, int],
        downsample: float | tuple[float, float] = 1.0,
        labels: Mapping[str, int | None] | None = None,
    ) -> None:
        down, across = downsample if isinstance(downsample, tuple) else (downsample, downsample)
        self.shape = (1, *extents)
        self._painted: list[tuple[int, list[_Ring]]] = []
        for label, outline in _ordered(outlines, labels):
            self._painted.append((label, [_Ring(ring / (across, down)) for ring in outline.rings]))

    @classmethod
    def over(
        cls, image: Source, outlines: Sequence[Outline], labels: Mapping[str, int | None] | None = None
    ) -> LabelSource:
        """The labels of every pixel of an image, at the level or resolution that it was opened."""
        extents = (image.shape[-2], image.shape[-1])
        return cls(outlines, extents, level_0(image).per_pixel, labels)

    def read(self, box: Box) -> torch.Tensor:
        """The labels of a box, (1, rows, columns) uint8."""
        (top, bottom), (left, right) = box
        labels = np.zeros((bottom - top, right - left), np.uint8)
        for label, (line, *holes) in self._painted:
            if (here := line.part(box)) is None:
                continue
            inside = _inside(line.points, here)
            for hole in holes:
                if (there := hole.part(here)) is not None:
                    inside[_at(there, here)] &= ~_inside(hole.points, there)
            labels[_at(here, box)][inside] = label
        return torch.from_numpy(labels)[None]

    def __repr__(self) -> str:
        return f"LabelSource({self.shape[1]}x{self.shape[2]}, {len(self._painted)} outlines)"


def mask_of(outlines: Sequence[Outline], size: tuple[int, int], scale: float = 1.0) -> NDArray[np.bool_]:
    """What lies inside the outlines, (height, width) of the full image times ``scale``, in memory."""
    extents = (round(size[0] * scale), round(size[1] * scale))
    inside: NDArray[np.bool_] = LabelSource(outlines, extents, 1 / scale).read(full(extents))[0].bool().numpy()
    return inside


def _ordered(outlines: Sequence[Outline], labels: Mapping[str, int | None] | None) -> list[tuple[int, Outline]]:
    """Labels with what they are painted on, the first first."""
    if labels is None:
        return [(1, outline) for outline in outlines]
    if wrong := {group: label for group, label in labels.items() if label is not None and not 0 <= label <= 255}:
        raise ValueError(f"labels are numbers from 0 to 255; got {wrong}")
    order = {group: position for position, group in enumerate(labels)}
    found: list[tuple[int, int, Outline]] = []
    unknown: set[str] = set()
    for outline in outlines:
        group = next((each for each in (outline.group, *outline.within) if each in order), None)
        if group is None:
            unknown.add(outline.group)
        elif (label := labels[group]) is not None:
            found.append((order[group], label, outline))
    if unknown:
        raise ValueError(
            f"no label for the group(s) {', '.join(sorted(map(repr, unknown)))}; labels has "
            f"{', '.join(map(repr, labels)) or 'none'}. Give each a number, or None to leave it out"
        )
    found.sort(key=lambda each: each[0])  # stable: within a group the file's own order stays
    return [(label, outline) for _, label, outline in found]


class _Ring:
    """A closed line in the coordinates of the map."""

    def __init__(self, points: Points) -> None:
        self.points = points
        (left, top), (right, bottom) = np.floor(points.min(0)), np.floor(points.max(0)) + 1
        self._around = (int(top), int(bottom)), (int(left), int(right))

    def part(self, box: Box) -> Box | None:
        """What of a box may be inside."""
        part = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(box, self._around, strict=True))
        return part if all(low < high for low, high in part) else None


def _at(part: Box, box: Box) -> tuple[slice, ...]:
    return tuple(slice(a - start, b - start) for (a, b), (start, _) in zip(part, box, strict=True))


def _inside(ring: Points, box: Box) -> NDArray[np.bool_]:
    """Which pixels of a box have their centre inside a line, in the coordinates of the map."""
    (top, bottom), (left, right) = box
    if len(ring) < 3:
        return _dots(ring, box)
    starts, ends = ring, np.roll(ring, -1, axis=0)
    low, high = np.minimum(starts[:, 1], ends[:, 1]), np.maximum(starts[:, 1], ends[:, 1])
    # The rows whose centre lies in [low, high): a corner counts for one of its two edges.
    first = np.clip(np.ceil(low - 0.5), top, bottom).astype(np.int64)
    last = np.clip(np.ceil(high - 0.5), top, bottom).astype(np.int64)
    counts = last - first
    edge = np.repeat(np.arange(len(starts)), counts)
    row = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts) + first[edge]
    (x0, y0), (x1, y1) = starts[edge].T, ends[edge].T
    crossing = x0 + (row + 0.5 - y0) * (x1 - x0) / (y1 - y0)
    column = np.clip(np.floor(crossing + 0.5), left, right).astype(np.int64)
    turns = np.zeros((bottom - top, right - left + 1), np.int32)
    np.add.at(turns, (row - top, column - left), 1)
    inside: NDArray[np.bool_] = turns.cumsum(1)[:, :-1] % 2 == 1
    return inside


def _dots(points: Points, box: Box) -> NDArray[np.bool_]:
    """The pixels of a box that points lie in."""
    (top, bottom), (left, right) = box
    column, row = np.floor(points).astype(np.int64).T
    here = (row >= top) & (row < bottom) & (column >= left) & (column < right)
    inside = np.zeros((bottom - top, right - left), bool)
    inside[row[here] - top, column[here] - left] = True
    return inside
