"""Outlines read from files of ASAP, Aperio and QuPath, and painted box by box."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from streamingcnn.slides import (
    CAMELYON16,
    CAMELYON17,
    LabelSource,
    Outline,
    mask_of,
    read_annotations,
    read_aperio,
    read_asap,
    read_geojson,
)
from streamingcnn.sources import open_image
from streamingcnn.synthetic import make_slide, write_slide

from .shared import shared

Floats = NDArray[np.float64]


def square(low: float, high: float, group: str = "", holes: Iterable[Floats] = (), name: str = "") -> Outline:
    return Outline(name, group, corners(low, high), tuple(holes))


def corners(low: float, high: float) -> Floats:
    return np.array([[low, low], [high, low], [high, high], [low, high]], float)


def asap(*annotations: tuple[str, str, str, Sequence[tuple[float | str, float]]], groups: str = "") -> str:
    parts = [
        f'<Annotation Name="{name}" Type="{kind}" PartOfGroup="{group}"><Coordinates>'
        + "".join(f'<Coordinate Order="{n}" X="{x}" Y="{y}" />' for n, (x, y) in enumerate(points))
        + "</Coordinates></Annotation>"
        for name, kind, group, points in annotations
    ]
    return (
        f'<?xml version="1.0"?><ASAP_Annotations><Annotations>{"".join(parts)}</Annotations>'
        f"<AnnotationGroups>{groups}</AnnotationGroups></ASAP_Annotations>"
    )


def brute(outline: Outline, rows: int, columns: int, downsample: float = 1.0) -> NDArray[np.bool_]:
    """A pixel at a time: rays to the right of its centre, in plain Python."""
    made = np.zeros((rows, columns), bool)
    for row in range(rows):
        for column in range(columns):
            x, y = (column + 0.5) * downsample, (row + 0.5) * downsample
            crossed = [0] * len(outline.rings)
            for number, ring in enumerate(outline.rings):
                for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
                    if (y0 > y) != (y1 > y) and x < x0 + (y - y0) * (x1 - x0) / (y1 - y0):
                        crossed[number] += 1
            made[row, column] = crossed[0] % 2 and not any(count % 2 for count in crossed[1:])
    return made


# ------------------------------------------------------------------------------------------------------- painting


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("downsample", [1.0, 0.7, 3.3])
def test_painted_as_counting_rays_pixel_by_pixel_does(seed: int, downsample: float) -> None:
    rng = np.random.default_rng(seed)
    holes = rng.uniform(5, 30, (5, 2)), rng.uniform(10, 45, (3, 2))  # which reach over each other and the line
    outline = Outline("", "", rng.uniform(-5, 45, (9, 2)), holes)  # crosses itself, too
    rows, columns = int(40 / downsample), int(37 / downsample)
    labels = LabelSource([outline], (rows, columns), downsample)
    painted = labels.read(((0, rows), (0, columns)))
    assert painted.shape == (1, rows, columns)
    assert (painted[0].bool().numpy() == brute(outline, rows, columns, downsample)).all()


def test_a_pixel_has_one_label_whatever_box_it_is_read_in() -> None:
    rng = np.random.default_rng(5)
    outlines = [Outline("", str(n % 3), rng.uniform(0, 300, (20, 2))) for n in range(6)]
    labels = LabelSource(outlines, (100, 90), 3.17, {"0": 1, "1": 2, "2": 3})
    whole = labels.read(((0, 100), (0, 90)))
    for top in range(0, 100, 23):
        for left in range(0, 90, 17):
            box = (top, min(top + 23, 100)), (left, min(left + 17, 90))
            assert torch.equal(labels.read(box), whole[:, top : box[0][1], left : box[1][1]])
    assert len(whole.unique()) == 4


def test_a_map_of_100_000_squared_is_never_made() -> None:
    outline = square(50_000.0, 60_000.0, holes=[corners(54_000.0, 56_000.0)])
    labels = LabelSource([outline], (100_000, 100_000))
    tracemalloc.start()
    try:
        assert labels.read(((49_000, 50_000), (49_000, 50_000))).sum() == 0
        edge = labels.read(((49_900, 50_100), (49_900, 50_100)))[0]
        assert edge.sum() == 100 * 100
        assert edge[100:, 100:].all()
        assert labels.read(((54_000, 54_500), (54_000, 54_500))).sum() == 0
        assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    finally:
        tracemalloc.stop()


def test_holes_are_outside_and_dots_are_one_pixel() -> None:
    labels = LabelSource(
        [square(2, 12, "a", [corners(5, 8)]), Outline("", "b", np.array([[6.9, 5.1]]))], (16, 16), 1, {"a": 1, "b": 2}
    )
    made = labels.read(((0, 16), (0, 16)))[0].numpy()
    assert (made == 1).sum() == 100 - 9
    assert made[5, 6] == 2
    assert (made == 2).sum() == 1
    assert LabelSource([Outline("", "", np.array([[-1.0, 3.0]]))], (4, 4)).read(((0, 4), (0, 4))).sum() == 0


def test_exclusions_are_painted_last_whatever_the_order_of_the_file() -> None:
    outlines = [square(4, 6, "_2"), square(0, 10, "_0"), square(8, 14, "_1")]
    made = LabelSource(outlines, (16, 16), 1, CAMELYON16).read(((0, 16), (0, 16)))[0]
    assert made.sum() == 100 + 36 - 4 - 4
    assert made[5, 5] == 0
    assert made.max() == 1
    seventeen = LabelSource([square(0, 9, "normal"), square(0, 4, "metastases")], (9, 9), 1, CAMELYON17)
    assert seventeen.read(((0, 9), (0, 9))).sum() == 0  # the map's order: normal tissue is painted over it


def test_a_group_without_a_label_is_named_and_may_be_left_out() -> None:
    outlines = [square(0, 4, "tumor"), square(4, 8, "artefact")]
    with pytest.raises(ValueError, match=r"no label for the group\(s\) 'artefact'; labels has 'tumor'"):
        LabelSource(outlines, (8, 8), 1, {"tumor": 1})
    assert LabelSource(outlines, (8, 8), 1, {"tumor": 1, "artefact": None}).read(((0, 8), (0, 8))).sum() == 16
    with pytest.raises(ValueError, match="from 0 to 255"):
        LabelSource(outlines, (8, 8), 1, {"tumor": 256})


def test_labels_lie_over_the_image_at_every_level(tmp_path: Path) -> None:
    slide = make_slide(1, tumour=True, size=(512, 512))
    write_slide(slide, tmp_path / "slide.tif")
    outlines = [Outline("", "Tumor", ring) for ring in slide.lesions]
    truth = slide.lesion_mask()
    for level in (0, 1, 2):
        image = open_image(tmp_path / "slide.tif", level=level)
        made = LabelSource.over(image, outlines, CAMELYON16).read(tuple((0, e) for e in image.shape[1:]))[0].numpy()
        step = 2**level
        expected = truth.reshape(512 // step, step, 512 // step, step).mean((1, 3))
        assert made.shape == expected.shape
        assert ((made > 0) == (expected > 0.5)).mean() > 0.995
    assert (mask_of(outlines, slide.size) == truth).all()


# --------------------------------------------------------------------------------------------------------- reading


def test_asap_has_polygons_splines_rectangles_and_dots(tmp_path: Path) -> None:
    four = [(2, 2), (8, 2), (8, 8), (2, 8)]
    group = '<Group Name="inner" PartOfGroup="outer" /><Group Name="outer" PartOfGroup="None" />'
    text = asap(
        ("p", "Polygon", "inner", four),
        ("s", "Spline", "_1", four[:3]),
        ("r", "Rectangle", "_2", four),
        ("d", "Dot", "_0", four[:1]),
        ("line", "Polygon", "_0", four[:2]),
        groups=group,
    )
    (tmp_path / "a.xml").write_text(text)
    outlines = read_annotations(tmp_path / "a.xml")
    assert [(o.name, o.group, len(o.points)) for o in outlines] == [
        ("p", "inner", 4),
        ("s", "_1", 3),
        ("r", "_2", 4),
        ("d", "_0", 1),
    ]
    assert outlines[0].within == ("outer",)
    by_parent = LabelSource(outlines[:1], (10, 10), 1, {"outer": 7}).read(((0, 10), (0, 10)))
    assert (by_parent == 7).sum() == 36


def aperio(*layers: str) -> str:
    return f'<Annotations MicronsPerPixel="0.499000">{"".join(layers)}</Annotations>'


def layer(*regions: str, name: str = "", colour: int = 65280, described: str = "") -> str:
    about = f'<Attributes><Attribute Name="Description" Id="0" Value="{described}"/></Attributes>'
    headers = (
        '<RegionAttributeHeaders><AttributeHeader Id="9999" Name="Region" ColumnWidth="-1"/></RegionAttributeHeaders>'
    )
    return (
        f'<Annotation Id="1" Name="{name}" ReadOnly="0" Type="4" LineColor="{colour}" Visible="1">{about}'
        f"<Regions>{headers}{''.join(regions)}</Regions><Plots/></Annotation>"
    )


def region(kind: int, points: Sequence[tuple[float | str, float]], negative: int = 0, text: str = "") -> str:
    corners = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in points)
    return (
        f'<Region Id="7" Type="{kind}" Zoom="0.5" Text="{text}" NegativeROA="{negative}" Analyze="1"><Attributes/>'
        f"<Vertices>{corners}</Vertices></Region>"
    )


FOUR = [(2, 2), (12, 2), (12, 12), (2, 12)]


def test_aperio_has_layers_with_outlines_rectangles_ellipses_and_dots(tmp_path: Path) -> None:
    text = aperio(
        layer(region(0, FOUR, text="one"), region(1, FOUR), name="Tumor"),
        layer(region(2, [(30, 10), (10, 20)]), described="stroma"),
        layer(region(5, [(3, 4)]), region(3, [(1, 1), (9, 9)]), region(4, [(1, 1), (5, 5), (9, 9)]), colour=0x4080FF),
        layer(),
    )
    (tmp_path / "a.xml").write_text(text)
    outlines = read_annotations(tmp_path / "a.xml")
    assert [(o.name, o.group, len(o.points)) for o in outlines] == [
        ("one", "Tumor", 4),
        ("", "Tumor", 4),
        ("", "stroma", 180),
        ("", "#ff8040", 1),  # red comes first in a colour's name, last in ImageScope's number
    ]
    assert [o.points.tolist() for o in read_aperio(tmp_path / "a.xml")] == [o.points.tolist() for o in outlines]
    ellipse = LabelSource([outlines[2]], (40, 40)).read(((0, 40), (0, 40)))[0].numpy()
    y, x = np.mgrid[:40, :40] + 0.5
    assert (ellipse == (((x - 20) / 10) ** 2 + ((y - 15) / 5) ** 2 < 1)).mean() > 0.995
    assert ellipse.sum() == pytest.approx(np.pi * 10 * 5, rel=0.02)


def test_a_negative_region_is_cut_from_its_layer_wherever_it_lies(tmp_path: Path) -> None:
    far = [(x + 20, y) for x, y in FOUR]
    over = [(8, 8), (24, 8), (24, 10), (8, 10)]  # reaches from the one over the gap into the other
    text = aperio(
        layer(region(0, FOUR), region(0, over, negative=1), region(0, far), region(0, [(9, 9)], negative=1), name="a"),
        layer(region(0, [(0, 14), (4, 14), (4, 18), (0, 18)]), region(0, [(5, 14), (8, 14), (8, 18)], 1), name="b"),
    )
    (tmp_path / "a.xml").write_text(text)
    outlines = read_annotations(tmp_path / "a.xml")
    assert [(o.group, len(o.holes)) for o in outlines] == [("a", 1), ("a", 1), ("b", 0)]
    made = LabelSource(outlines, (20, 40), 1, {"a": 1, "b": 2}).read(((0, 20), (0, 40)))[0]
    assert (made == 1).sum() == 2 * 100 - 4 * 2 - 2 * 2
    assert made[8:10, 8:24].sum() == 0
    assert (made == 2).sum() == 16


def test_a_layer_in_which_everything_may_be_cut_from_everything_is_refused(tmp_path: Path) -> None:
    triangle = [(0, 0), (9, 0), (0, 9)]
    many = [region(0, triangle, negative) for negative in (0, 1) for _ in range(3200)]
    (tmp_path / "a.xml").write_text(aperio(layer(*many)))
    with pytest.raises(ValueError, match="a layer of 3200 regions and 3200 negative ones"):
        read_annotations(tmp_path / "a.xml")


def test_aperio_and_asap_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "aperio.xml").write_text(aperio(layer(region(0, FOUR))))
    (tmp_path / "asap.xml").write_text(asap(("p", "Polygon", "_0", [(0, 0), (1, 0), (1, 1)])))
    (tmp_path / "other.xml").write_text("<html/>")
    with pytest.raises(ValueError, match="no ASAP file: it starts with <Annotations>"):
        read_asap(tmp_path / "aperio.xml")
    with pytest.raises(ValueError, match="no file of Aperio's ImageScope: it starts with <ASAP_Annotations>"):
        read_aperio(tmp_path / "asap.xml")
    with pytest.raises(ValueError, match=r"starts with <html>, not with <ASAP_Annotations> \(ASAP\) or <Annotations>"):
        read_annotations(tmp_path / "other.xml")


def test_holes_that_reach_over_each_other_stay_holes() -> None:
    """Of one ray through all lines, what lay in two holes was inside again."""
    outline = square(0, 10, holes=[corners(2, 6), corners(4, 8)])
    made = LabelSource([outline], (10, 10)).read(((0, 10), (0, 10)))[0]
    assert made.sum() == 100 - 16 - 16 + 4
    assert made[4:6, 4:6].sum() == 0


def test_groups_that_are_part_of_each_other_end(tmp_path: Path) -> None:
    group = '<Group Name="a" PartOfGroup="b" /><Group Name="b" PartOfGroup="a" />'
    (tmp_path / "a.xml").write_text(asap(("p", "Polygon", "a", [(0, 0), (1, 0), (1, 1)]), groups=group))
    assert read_asap(tmp_path / "a.xml")[0].within == ("b",)


def geojson(geometry: dict[str, Any], **properties: Any) -> dict[str, Any]:
    return {"type": "Feature", "geometry": geometry, "properties": properties}


RING = [[2, 2], [12, 2], [12, 12], [2, 12], [2, 2]]
HOLE = [[5, 5], [5, 8], [8, 8], [8, 5], [5, 5]]


@pytest.mark.parametrize("wrapped", [lambda f: {"type": "FeatureCollection", "features": f}, lambda f: f])
def test_geojson_has_polygons_parts_holes_points_and_classes(
    tmp_path: Path, wrapped: Callable[[list[Any]], Any]
) -> None:
    features = [
        geojson({"type": "Polygon", "coordinates": [RING, HOLE]}, classification={"name": "Tumor"}, name="one"),
        geojson(
            {"type": "MultiPolygon", "coordinates": [[RING], [[[20, 20], [25, 20], [25, 25]]]]},
            classification={"names": ["Stroma", "dense"]},
        ),
        geojson({"type": "MultiPoint", "coordinates": [[1, 1], [3, 1]]}, classification="Cell"),
        geojson({"type": "LineString", "coordinates": [[1, 1], [3, 1]]}),
        geojson({"type": "GeometryCollection", "geometries": [{"type": "Point", "coordinates": [9, 9]}]}, name="x"),
        {"type": "Feature", "geometry": None, "properties": None},
    ]
    (tmp_path / "a.geojson").write_text(json.dumps(wrapped(features)))
    outlines = read_annotations(tmp_path / "a.geojson")
    assert [o.group for o in outlines] == ["Tumor", "Stroma: dense", "Stroma: dense", "Cell", "Cell", "x"]
    assert outlines[0].name == "one"
    assert len(outlines[0].holes) == 1
    labels = {"Stroma: dense": 2, "Tumor": 1, "Cell": 3, "x": None}
    made = LabelSource(outlines, (30, 30), 1, labels).read(((0, 30), (0, 30)))[0]
    assert (made == 1).sum() == 100 - 9
    assert (made[5:8, 5:8] == 2).all()  # through the hole in the tumour
    assert (made[20:, 20:] == 2).sum() == 4 + 3 + 2 + 1  # of a triangle; its long side meets centres
    assert (made == 3).sum() == 2


# ------------------------------------------------------------------------------------------------ what is refused


BOMB = """<?xml version="1.0"?>
<!DOCTYPE lolz [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">
<!ENTITY d "&c;&c;&c;&c;&c;&c;&c;&c;&c;&c;"><!ENTITY e "&d;&d;&d;&d;&d;&d;&d;&d;&d;&d;&d;&d;&d;&d;">]>
<ASAP_Annotations>&e;</ASAP_Annotations>"""
OUTSIDE = """<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]>
<ASAP_Annotations>&x;</ASAP_Annotations>"""


@pytest.mark.parametrize("text", [BOMB, OUTSIDE, BOMB.replace("ASAP_", ""), OUTSIDE.replace("ASAP_", "")])
def test_entities_are_refused_unread(tmp_path: Path, text: str) -> None:
    (tmp_path / "bomb.xml").write_text(text)
    with pytest.raises(ValueError, match="declares entities"):
        read_annotations(tmp_path / "bomb.xml")


@pytest.mark.parametrize("name", ["large.geojson", "large.xml"])
def test_a_file_of_100_mb_is_refused_before_it_is_read_and_how_to_raise_the_limit_is_said(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    with path.open("wb") as file:
        file.truncate(100 * 2**20)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"has 100 MiB; annotations of more than 64.0 MiB .* limit=104857600"):
            read_annotations(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_the_limit_can_be_raised(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps([geojson({"type": "Polygon", "coordinates": [RING]})]))
    with pytest.raises(ValueError, match="not read"):
        read_geojson(path, limit=10)
    assert len(read_geojson(path, limit=10_000)) == 1


@pytest.mark.parametrize(
    "name, text, said",
    [
        ("a.geojson", "{", "no JSON"),
        ("a.geojson", "[" * 100_000, "no JSON"),
        ("a.geojson", '{"type": "Polygon"}', "part 0 is no Feature"),
        ("a.geojson", json.dumps([geojson({"type": "Polygon", "coordinates": [[["x", 1]]]})]), "feature 0"),
        ("a.geojson", json.dumps([geojson({"type": "Polygon"})]), "feature 0"),
        ("a.geojson", '[{"type":"Feature","geometry":{"type":"Point","coordinates":[NaN,1]}}]', "not a number"),
        ("a.xml", "<ASAP_Annotations", "no XML"),
        ("a.xml", asap(("p", "Polygon", "_0", [("a", 1)])), "annotation 0 has coordinates that are no numbers"),
        ("a.xml", asap(("p", "Polygon", "_0", [("inf", 1)])), "annotation 0 has coordinates"),
        ("a.xml", aperio(layer(region(0, [("b", 1), (2, 3), (4, 5)]))), "region 7 of layer 1 has coordinates"),
        ("a.xml", aperio(layer(region(2, [("nan", 1), (2, 3)]))), "region 7 of layer 1 has coordinates"),
        ("a.txt", "", "'.txt' is neither"),
    ],
)
def test_what_is_no_annotation_is_named_with_the_place(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=said):
        read_annotations(tmp_path / name)


# ------------------------------------------------------------------------------------------------------ real files


def test_a_real_asap_file() -> None:
    outlines = read_annotations(shared("annotations/CMU-1_classification_asap.xml"))
    assert {o.group for o in outlines} == {"malignant", "benign"}
    assert [len(o.points) for o in outlines].count(1) == 1  # a dot
    x, y = outlines[0].points.min(0)
    top, left = int(y // 32), int(x // 32)
    labels = LabelSource(outlines, (33_000 // 32, 46_000 // 32), 32, {"malignant": 1, "benign": 2})
    made = labels.read(((top, top + 200), (left, left + 200)))
    assert set(made.unique().tolist()) >= {0, 1}


def test_a_real_qupath_file_covers_what_its_coordinates_enclose() -> None:
    polygons = pytest.importorskip("shapely")
    outlines = read_annotations(shared("annotations/qupath05.geojson"))
    assert [o.group for o in outlines] == ["UT", "I", "I"]
    for outline in outlines:
        low, high = np.floor(outline.points.min(0)).astype(int), np.ceil(outline.points.max(0)).astype(int)
        labels = LabelSource([outline], (20_000, 20_000))
        area = int(labels.read(((low[1], high[1]), (low[0], high[0]))).sum())
        assert area == pytest.approx(polygons.Polygon(outline.points).area, rel=0.01)
