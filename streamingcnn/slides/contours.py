"""Where a heatmap is hot, as polygons that QuPath takes by drag and drop.

A contour runs where the heat, taken at the middles of the cells and linear between them, crosses a threshold. Rings
around what is hotter are borders; rings around what is colder are holes of the smallest border that holds them.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamingcnn.extras import require
from streamingcnn.slides.annotations import Outline
from streamingcnn.slides.heatmaps import Heatmap, colour_of
from streamingcnn.slides.labels import LabelSource

__all__ = ["contours", "geojson"]

#: Heat at which contours are drawn.
THRESHOLDS = (0.5, 0.75)

Points = NDArray[np.float64]


def contours(heatmap: Heatmap, threshold: float) -> list[Outline]:
    """The areas where a heatmap is above a threshold, in pixels of level 0, the largest first.

    Example::

        for area in contours(heatmap, 0.5):
            area.points, area.holes
    """
    require("skimage")
    from skimage.measure import find_contours, points_in_poly

    heat = heatmap.heat.astype(np.float64)
    if (heat == threshold).any():  # a ring through the middle of a cell could touch itself
        above = heat[heat > threshold]
        threshold = (threshold + float(above.min() if len(above) else threshold + 1)) / 2
    # Cells around the map that are colder than all: rings end at the border of the slide instead of beyond it.
    padded = np.pad(heat, 1, constant_values=min(float(heat.min()), threshold) - 1)
    borders: list[Points] = []
    holes: list[Points] = []
    for line in find_contours(padded, threshold):
        ring = _on_slide(line, heatmap)
        if len(ring) >= 3 and (area := _area(ring)):
            (borders if area > 0 else holes).append(ring)
    borders.sort(key=lambda ring: -_area(ring))
    inside: list[list[Points]] = [[] for _ in borders]
    for hole in holes:
        holding = [n for n, border in enumerate(borders) if points_in_poly(hole[:1], border)[0]]
        if holding:
            inside[holding[-1]].append(hole)  # of several the smallest: they lie in each other
    name = f"heat above {threshold:.2f}"
    return [Outline(name, name, border, tuple(own)) for border, own in zip(borders, inside, strict=True)]


def geojson(heatmap: Heatmap, thresholds: Sequence[float] = THRESHOLDS) -> dict[str, Any]:
    """A FeatureCollection of a heatmap's contours, each an annotation with its class, colour and measurements.

    Example::

        json.dump(geojson(heatmap), open("slide.geojson", "w"))

    Measurements are the highest and the mean heat inside, and the area in square pixels of level 0 (and in um^2, where
    the slide says its resolution).
    """
    features = []
    for threshold in sorted(thresholds):
        kind = f"heat above {threshold:.2f}"
        for number, area in enumerate(contours(heatmap, threshold), 1):
            rings = [[*ring.tolist(), ring[0].tolist()] for ring in (area.points, *area.holes)]
            features.append(
                {
                    "type": "Feature",
                    "id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{kind} {number} {area.points.tolist()}")),
                    "geometry": {"type": "Polygon", "coordinates": rings},
                    "properties": {
                        "objectType": "annotation",
                        "name": f"{kind}, {number}",
                        "isLocked": True,
                        "classification": {"name": kind, "color": list(colour_of(threshold))},
                        "measurements": _measurements(heatmap, area),
                    },
                }
            )
    return {"type": "FeatureCollection", "features": features}


def _measurements(heatmap: Heatmap, area: Outline) -> dict[str, float]:
    scale = heatmap.scale
    low = np.floor(area.points.min(0)[::-1] / scale).astype(int)
    high = np.ceil(area.points.max(0)[::-1] / scale).astype(int)
    high = np.minimum(np.maximum(high, low + 1), heatmap.heat.shape)
    box = (int(low[0]), int(high[0])), (int(low[1]), int(high[1]))
    within = LabelSource([area], heatmap.heat.shape, scale).read(box)[0].bool().numpy()
    part = heatmap.heat[box[0][0] : box[0][1], box[1][0] : box[1][1]]
    values = part[within] if within.any() else part.reshape(-1)
    pixels = _area(area.points) + sum(_area(hole) for hole in area.holes)  # holes run the other way around
    found = {"highest heat": float(values.max()), "mean heat": float(values.mean()), "area px^2": pixels}
    if heatmap.mpp is not None:
        found["area um^2"] = pixels * heatmap.mpp[0] * heatmap.mpp[1]
    return {name: round(value, 4) for name, value in found.items()}


def _on_slide(line: Points, heatmap: Heatmap) -> Points:
    """A line of (row, column) in the padded map, as (x, y) in pixels of level 0 within the slide."""
    middle = line[:, ::-1] - 0.5  # one cell of padding, half a cell to the middle
    ring = np.clip(middle * heatmap.scale[::-1], 0, heatmap.size[::-1])
    ring = ring[:-1] if (ring[0] == ring[-1]).all() else ring
    kept = (ring != np.roll(ring, 1, axis=0)).any(1)
    return np.asarray(np.round(ring[kept], 2), np.float64)


def _area(ring: Points) -> float:
    """The area inside a ring, in square pixels; negative where it runs the other way around."""
    x, y = (ring - ring[0]).T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
