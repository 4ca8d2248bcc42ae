"""Outlines that a pathologist drew: XML of ASAP and of Aperio's ImageScope, QuPath's GeoJSON.

Coordinates in the files are (x, y) in pixels of the full image (level 0), and stay so here; `labels.py` paints them
at any resolution. All files come from strangers: nothing in them is expanded, fetched or run, and a file that is far
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

__all__ = ["LIMIT", "Outline", "read_annotations", "read_aperio", "read_asap", "read_geojson"]

#: Bytes of an annotation file that is read without being told to; parsing takes some ten times as many of memory.
LIMIT = 64 * 2**20

#: What the files start with.
_ASAP, _APERIO = "ASAP_Annotations", "Annotations"
#: Types of Aperio's regions; 0 is drawn by hand and 1 a rectangle of four corners.
_ELLIPSE, _LINES = "2", ("3", "4")
#: Pairs of a region and a negative one that a layer may have: each may be cut from each, and takes memory.
_PAIRS = 10**7

Points = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Outline:
    """An area, or single points, that somebody drew.

    Attributes:
        name: of the annotation.
        group: ASAP's PartOfGroup, QuPath's classification (its name, where there is none), Aperio's layer.
        points: (n, 2) as (x, y); a closed line, whose last point need not repeat the first. One or two points
            enclose nothing: they are dots.
        holes: closed lines; what is inside one of them is not part of it.
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
    """The outlines of a file of ASAP or Aperio's ImageScope (.xml), or of QuPath (.geojson, .json).

    Example::

        for outline in read_annotations("annotations/tumor_001.xml"):
            print(outline.group, outline.points.mean(0))

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is none of them, it is damaged, or it is larger than ``limit`` bytes.
    """
    ending = Path(path).suffix.lower()
    if ending == ".xml":
        root = _root(path, limit)
        if root.tag not in (_ASAP, _APERIO):
            raise ValueError(
                f"{path} holds no annotations: it starts with <{root.tag}>, not with <{_ASAP}> (ASAP) or <{_APERIO}> "
                "(Aperio ImageScope)"
            )
        return _of_asap(path, root) if root.tag == _ASAP else _of_aperio(path, root)
    if ending in (".geojson", ".json"):
        return read_geojson(path, limit)
    raise ValueError(
        f"{path}: annotations are read from .xml (ASAP, Aperio ImageScope) and .geojson (QuPath); '{ending}' is neither"
    )


def read_asap(path: str | Path, limit: int = LIMIT) -> list[Outline]:
    """The polygons, splines, rectangles and dots of an ASAP annotation file, in its order.

    Example::

        read_asap("annotations/tumor_001.xml")[0].group          # "_0"

    A spline is taken as the polygon through its points. Lines (two coordinates) are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not XML, not ASAP's, larger than ``limit`` bytes, or holds entities.
    """
    root = _root(path, limit)
    if root.tag != _ASAP:
        raise ValueError(f"{path} is no ASAP file: it starts with <{root.tag}>, not with <{_ASAP}>")
    return _of_asap(path, root)


def _of_asap(path: str | Path, root: Element) -> list[Outline]:
    parents = {group.get("Name", ""): group.get("PartOfGroup", "None") for group in root.iter("Group")}
    outlines = []
    for number, annotation in enumerate(root.iter("Annotation")):
        corners = list(annotation.iter("Coordinate"))
        points = _corners(corners, f"{path}: annotation {number}")
        if len(points) == 1 or len(points) >= 3:
            group = annotation.get("PartOfGroup", "")
            name = annotation.get("Name", "")
            outlines.append(Outline(name, group, points, within=tuple(_ancestors(group, parents))))
    return outlines


def read_aperio(path: str | Path, limit: int = LIMIT) -> list[Outline]:
    """The regions of an annotation file of Aperio's ImageScope, in its order.

    Example::

        read_aperio("slide.xml")[0].group                        # "Tumor", or "#00ff00" where the layer has no name

    The group of a region is its layer: the layer's name, else its description, else the colour of its lines. An ellipse
    is taken as a polygon of 180 corners. What is inside a negative region is no part of the others of its layer. Arrows
    and rulers are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not XML, not Aperio's, larger than ``limit`` bytes, or holds entities.
    """
    root = _root(path, limit)
    if root.tag != _APERIO:
        raise ValueError(f"{path} is no file of Aperio's ImageScope: it starts with <{root.tag}>, not with <{_APERIO}>")
    return _of_aperio(path, root)


def _of_aperio(path: str | Path, root: Element) -> list[Outline]:
    outlines = []
    for layer in root.iter("Annotation"):
        group = _layer(layer)
        regions: list[tuple[str, Points]] = []
        negative: list[Points] = []
        for region in layer.iter("Region"):
            where = f"{path}: region {region.get('Id', '?')} of layer {layer.get('Id', '?')}"
            points = _corners(list(region.iter("Vertex")), where)
            kind = region.get("Type", "")
            if kind == _ELLIPSE and len(points) == 2:
                points = _ellipse(points)
            if kind in _LINES or len(points) in (0, 2):
                continue
            if region.get("NegativeROA") == "1":
                negative += [points] if len(points) >= 3 else []  # a dot takes nothing away
            else:
                regions.append((region.get("Text") or "", points))
        if len(regions) * len(negative) > _PAIRS:
            raise ValueError(
                f"{path}: a layer of {len(regions)} regions and {len(negative)} negative ones is not read: each may be "
                f"cut from each, and more than {_PAIRS} pairs are too many"
            )
        low, high = _boxes(negative)
        for name, points in regions:
            near = ((low <= points.max(0)) & (points.min(0) <= high)).all(1)
            outlines.append(Outline(name, group, points, tuple(negative[k] for k in np.flatnonzero(near))))
    return outlines


def _layer(annotation: Element) -> str:
    """What a layer is called: most are by their colour alone, which ImageScope writes as blue, green, red."""
    described = (
        each.get("Value") for each in annotation.findall("Attributes/Attribute") if each.get("Name") == "Description"
    )
    if said := annotation.get("Name") or next(described, None):
        return said
    colour = annotation.get("LineColor", "")
    return f"#{int(colour).to_bytes(3, 'little').hex()}" if colour.isdecimal() and int(colour) < 2**24 else colour


def _ellipse(corners: Points) -> Points:
    """The ellipse that fills the box between two corners."""
    angle = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    ellipse: Points = corners.mean(0) + circle * np.ptp(corners, axis=0) / 2
    return ellipse


def _boxes(lines: list[Points]) -> tuple[Points, Points]:
    """The lowest and the highest corner of the box around each line, (n, 2) each."""
    low = np.array([line.min(0) for line in lines], np.float64).reshape(-1, 2)
    high = np.array([line.max(0) for line in lines], np.float64).reshape(-1, 2)
    return low, high


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


def _root(path: str | Path, limit: int) -> Element:
    """The element that an XML file consists of."""
    _check_size(path, limit)
    try:
        root: Element = parse(path).getroot()
    except ParseError as error:
        raise ValueError(f"{path} is no XML file: {error}") from None
    except defusedxml.DefusedXmlException as error:
        raise ValueError(
            f"{path} declares entities, which no annotation needs and which can expand without end ({error}); it is "
            "not read"
        ) from None
    return root


def _check_size(path: str | Path, limit: int) -> None:
    size = Path(path).stat().st_size
    if size > limit:
        raise ValueError(
            f"{path} has {format_bytes(size)}; annotations of more than {format_bytes(limit)} are not read, because "
            f"parsing them takes some ten times as much memory. If it is meant, read it with limit={size} (bytes), or "
            "export the regions that are needed only"
        )


def _corners(corners: list[Element], where: str) -> Points:
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
