"""Outlines that a pathologist drew, as ASAP stores them.

Coordinates in the file are (x, y) in pixels of the full image, and stay so here; scale them when they are
drawn over a smaller picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

__all__ = ["Outline", "mask_of", "read_asap"]


@dataclass(frozen=True)
class Outline:
    """A closed line: its name, the group that it is part of, and its points (n, 2) as (x, y)."""

    name: str
    group: str
    points: NDArray[np.float64]


def read_asap(path: str | Path) -> list[Outline]:
    """The polygons of an ASAP annotation file, in its order.

    Example::

        for outline in read_asap("annotations/tumor_001.xml"):
            print(outline.group, outline.points.mean(0))

    Points and lines (fewer than three coordinates) are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not XML, or not ASAP's.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} is no XML file: {error}") from None
    if root.tag != "ASAP_Annotations":
        raise ValueError(f"{path} is no ASAP file: it starts with <{root.tag}>, not with <ASAP_Annotations>")
    outlines = []
    for annotation in root.iter("Annotation"):
        corners = sorted(annotation.iter("Coordinate"), key=lambda corner: float(corner.get("Order", 0)))
        points = np.array([(corner.get("X"), corner.get("Y")) for corner in corners], dtype=np.float64)
        if len(points) >= 3:
            outlines.append(Outline(annotation.get("Name", ""), annotation.get("PartOfGroup", ""), points))
    return outlines


def mask_of(outlines: list[Outline], size: tuple[int, int], scale: float = 1.0) -> NDArray[np.bool_]:
    """What lies inside the outlines, (height, width) of the full image times ``scale``."""
    picture = Image.new("1", (round(size[1] * scale), round(size[0] * scale)))
    draw = ImageDraw.Draw(picture)
    for outline in outlines:
        draw.polygon([(float(x), float(y)) for x, y in outline.points * scale], fill=1)
    return np.array(picture)
