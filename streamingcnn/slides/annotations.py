"""Outlines that a pathologist drew: ASAP's XML and QuPath's GeoJSON.

Coordinates in the files are (x, y) in pixels of the full image (level 0), and stay so here; `labels.py` paints them
at any resolution. Both files come from strangers: nothing in them is expanded, fetched or run, and a file that is far
larger than outlines are is refused before it is parsed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import defusedxml
import numpy as np
from defusedxml.ElementTree import parse
from numpy.typing import NDArray

from streamingcnn.memory import format_bytes

__all__ = ["LIMIT", "Outline", "read_annotations", "read_asap", "read_geojson"]

#: Bytes of an annotation file that is read without being told to; parsing takes some ten times as many of memory.
LIMIT = 64 * 2**20

Points = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Outline:
    """An area, or single points, that somebody drew.

    Attributes:
        name: of the annotation.
        group: ASAP's PartOfGroup, or QuPath's classification (its name, where there is none).
        points: (n, 2) as (x, y); a closed line, whose last point need not repeat the first. One or two points
            enclose nothing: they are dots.
        holes: closed lines inside it that are not part of it.
        within: the groups that the group is part of, the nearest first (ASAP).
    """

    name: str
    group: str
    points: Points
    holes: tuple[Points, ...] = ()
    within: tuple[str, ...] = ()

    @property
    def rings(self) -> tuple[Points, ...]:
        """The line and its holes."""
        return (self.points, *self.holes)


def read_annotations(path: str | Path, limit: int = LIMIT) -> list[Outline]:
    """The outlines of an ASAP file (.xml) or a QuPath file (.geojson, .json).

    Example::

        for outline in read_annotations("annotations/tumor_001.xml"):
            print(outline.group, outline.points.mean(0))

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is neither, it is damaged, or it is larger than ``limit`` bytes.
    """
    ending = Path(path).suffix.lower()
    if ending == ".xml":
        return read_asap(path, limit)
    if ending in (".geojson", ".json"):
        return read_geojson(path, limit)
    raise ValueError(f"{path}: annotations are read from ASAP's .xml and QuPath's .geojson; '{ending}' is neither")


def read_asap(path: str | Path, limit: int = LIMIT) -> list[Outline]:
    """The polygons, splines, rectangles and dots of an ASAP annotation file, in its order.

    Example::

        read_asap("annotations/tumor_001.xml")[0].group          # "_0"

    A spline is taken as the polygon through its points. Lines (two coordinates) are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not XML, not ASAP's, larger than ``limit`` bytes, or holds entities.
    """
    _check_size(path, limit)
    try:
        root = parse(path).getroot()
    except ParseError as error:
        raise ValueError(f"{path} is no XML file: {error}") from None
    except defusedxml.DefusedXmlException as error:
        raise ValueError(
            f"{path} declares entities, which no annotation needs and which can expand without end ({error}); it is "
            "not read"
        ) from None
    if root.tag != "ASAP_Annotations":
        raise ValueError(f"{path} is no ASAP file: it starts with <{root.tag}>, not with <ASAP_Annotations>")
    parents = {group.get("Name", ""): group.get("PartOfGroup", "None") for group in root.iter("Group")}
    outlines = []
    for number, annotation in enumerate(root.iter("Annotation")):
        points = _corners(annotation, f"{path}: annotation {number}")
        if len(points) == 1 or len(points) >= 3:
            group = annotation.get("PartOfGroup", "")
            name = annotation.get("Name", "")
            outlines.append(Outline(name, group, points, within=tuple(_ancestors(group, parents))))
    return outlines


def read_geojson(path: str | Path, limit: int = LIMIT) -> list[Outline]:
    """The polygons and points of a GeoJSON file as QuPath exports it, in its order.

    Example::

        read_geojson("slide.geojson")[0].holes

    A MultiPolygon becomes an outline for each of its parts. Lines are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not GeoJSON, or larger than ``limit`` bytes.
    """
    _check_size(path, limit)
    try:
        content = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON file: {error}") from None
    if isinstance(content, dict) and content.get("type") == "FeatureCollection":
        content = content.get("features")
    features = content if isinstance(content, list) else [content]
    outlines: list[Outline] = []
    for number, feature in enumerate(features):
        if not isinstance(feature, dict) or feature.get("type") != "Feature":
            raise ValueError(f"{path} is no GeoJSON: its part {number} is no Feature, as QuPath's export has them")
        try:
            outlines.extend(_outlines(feature))
        except (TypeError, ValueError, KeyError, IndexError) as error:
            raise ValueError(f"{path}: feature {number} cannot be read: {error}") from None
    return outlines


def _check_size(path: str | Path, limit: int) -> None:
    size = Path(path).stat().st_size
    if size > limit:
        raise ValueError(
            f"{path} has {format_bytes(size)}; annotations of more than {format_bytes(limit)} are not read, because "
            f"parsing them takes some ten times as much memory. If it is meant, read it with limit={size} (bytes), or "
            "export the regions that are needed only"
        )


def _corners(annotation: Element, where: str) -> Points:
    corners = list(annotation.iter("Coordinate"))
    try:
        corners.sort(key=lambda corner: float(corner.get("Order", 0)))
        return _points([(corner.get("X"), corner.get("Y")) for corner in corners])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} has coordinates that are no numbers: {error}") from None


def _ancestors(group: str, parents: dict[str, str]) -> Iterator[str]:
    seen = {group, "None", ""}
    while (group := parents.get(group, "None")) not in seen:
        seen.add(group)
        yield group


def _outlines(feature: dict[str, Any]) -> Iterator[Outline]:
    properties = feature.get("properties") or {}
    name = str(properties.get("name") or "")
    kind = properties.get("classification")
    if isinstance(kind, dict):
        kind = kind.get("name") or ": ".join(kind.get("names") or ())
    group = str(kind or name)
    for shape, coordinates in _shapes(feature.get("geometry") or {}):
        if shape == "Polygon":
            rings = [_points(ring) for ring in coordinates]
            if rings and len(rings[0]) >= 3:
                yield Outline(name, group, rings[0], tuple(ring for ring in rings[1:] if len(ring) >= 3))
        elif shape == "Point":
            yield Outline(name, group, _points([coordinates]))


def _shapes(geometry: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The single shapes of a geometry with their coordinates."""
    shape = geometry.get("type", "")
    if shape == "GeometryCollection":
        for part in geometry["geometries"]:
            yield from _shapes(part)
    elif shape.startswith("Multi"):
        for coordinates in geometry["coordinates"]:
            yield shape.removeprefix("Multi"), coordinates
    elif shape:
        yield shape, geometry["coordinates"]


def _points(pairs: Any) -> Points:
    points = np.array([(float(pair[0]), float(pair[1])) for pair in pairs], np.float64).reshape(-1, 2)
    if not np.isfinite(points).all():
        raise ValueError("a coordinate is infinite or not a number")
    return points
