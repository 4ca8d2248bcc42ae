"""A set of synthetic slides on disk, laid out like CAMELYON: images, outlines, one table.

slides/
  labels.csv                 path,label,split
  cohort.json                what it was made from, so that the same set is not made twice
  images/test_001.tif        pyramidal TIFF
  annotations/test_001.xml   ASAP outlines of the lesions, for slides with a tumour
"""

from __future__ import annotations

import csv
import errno
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.etree import ElementTree

from streamingcnn.files import whole_file, whole_folder
from streamingcnn.synthetic.slides import Polygon, Slide, make_slide
from streamingcnn.synthetic.tiff import write_slide

__all__ = ["Cohort"]

#: Raised when the same recipe gives other pixels than before.
_VERSION = 1


@dataclass(frozen=True)
class Cohort:
    """The recipe of a set of slides, half of them with lesions; :meth:`write` makes it.

    Example::

        Cohort(seed=0, train=40, test=32).write(Path("slides"))

    ``size`` is height and width of a slide in pixels of 0.5 um. No two slides of a cohort and no two
    cohorts of different seeds share anything random.
    """

    seed: int = 0
    train: int = 40
    test: int = 32
    size: tuple[int, int] = (768, 768)

    def slide(self, split: str, number: int) -> Slide:
        """One slide of the set; odd numbers have a tumour."""
        draw = ((self.seed * 2 + (split == "test")) * 100_000) + number
        return make_slide(draw, tumour=number % 2 == 1, size=self.size)

    def write(self, folder: Path, on_slide: Callable[[], object] = lambda: None) -> Path:
        """Write the set, or keep it where the folder already holds this very one; returns its ``labels.csv``.

        ``on_slide`` is called after each slide.

        Raises:
            OSError: the folder holds something else, or cannot be written; nothing half-written is left.
        """
        table = folder / "labels.csv"
        recipe = json.dumps({"version": _VERSION, **asdict(self)})
        if folder.exists():
            if not (folder / "cohort.json").is_file():
                what = "holds something else than synthetic slides; choose another folder"
                raise FileExistsError(errno.EEXIST, what, str(folder))
            if (folder / "cohort.json").read_text() == recipe:
                return table
        with whole_folder(folder) as partial:
            (partial / "images").mkdir()
            (partial / "annotations").mkdir()
            rows = []
            for split, count in (("train", self.train), ("test", self.test)):
                for number in range(count):
                    slide = self.slide(split, number)
                    name = f"{split}_{number:03d}"
                    write_slide(slide, partial / "images" / f"{name}.tif")
                    if slide.tumour:
                        write_asap(slide.lesions, partial / "annotations" / f"{name}.xml")
                    rows.append((f"images/{name}.tif", int(slide.tumour), split))
                    on_slide()
            with (partial / table.name).open("w", newline="") as file:
                csv.writer(file).writerows([("path", "label", "split"), *rows])
            (partial / "cohort.json").write_text(recipe)
        return table


def write_asap(outlines: tuple[Polygon, ...], path: Path) -> None:
    """Write outlines, each (points, 2) as (x, y) in pixels of the full slide, as ASAP does."""
    root = ElementTree.Element("ASAP_Annotations")
    annotations = ElementTree.SubElement(root, "Annotations")
    for number, outline in enumerate(outlines):
        attributes = {
            "Name": f"Annotation {number}",
            "Type": "Polygon",
            "PartOfGroup": "Tumor",
            "Color": "#F4FA58",
        }
        annotation = ElementTree.SubElement(annotations, "Annotation", attributes)
        coordinates = ElementTree.SubElement(annotation, "Coordinates")
        for order, (x, y) in enumerate(outline):
            ElementTree.SubElement(coordinates, "Coordinate", Order=str(order), X=f"{x:.3f}", Y=f"{y:.3f}")
    groups = ElementTree.SubElement(root, "AnnotationGroups")
    group = ElementTree.SubElement(groups, "Group", Name="Tumor", PartOfGroup="None", Color="#00ff00")
    ElementTree.SubElement(group, "Attributes")
    ElementTree.indent(root)
    with whole_file(path) as partial:
        ElementTree.ElementTree(root).write(partial, encoding="utf-8", xml_declaration=True)
