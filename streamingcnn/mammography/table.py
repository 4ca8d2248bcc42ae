"""Images with their labels: a table with one row per image.

    path,benign,malignant,split,patient,view,faces,benign_mask,malignant_mask
    L_CC.png,0,1,train,p1,CC,right,,L_CC_malignant.png

``path``, ``benign`` and ``malignant`` are needed; an empty label is not known. Paths are from the table's own folder.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Exam", "read_exams"]

_CLASSES = ("benign", "malignant")


@dataclass(frozen=True)
class Exam:
    """One image of a table; a label that is not known is NaN, a mask that is not there None."""

    path: Path
    labels: tuple[float, float]
    split: str
    patient: str
    view: str
    faces: str
    masks: tuple[Path | None, Path | None]


def read_exams(table: str | Path) -> list[Exam]:
    """The images of a table (CSV).

    Example::

        exams = read_exams("labels.csv")
        exams[0].path, exams[0].labels                   # Path("data/L_CC.png"), (0.0, 1.0)

    Raises:
        FileNotFoundError: the table, an image or a mask is not there.
        ValueError: a column is missing, or a label is something else than 0, 1 or nothing.
    """
    table = Path(table)
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
        missing = {"path", *_CLASSES} - set(reader.fieldnames or ())
    if missing:
        raise ValueError(
            f"{table} has no column {', '.join(sorted(missing))}; it has {', '.join(reader.fieldnames or ())}"
        )
    return [_exam(table, number, row) for number, row in enumerate(rows, start=2)]


def _exam(table: Path, number: int, row: dict[str, str]) -> Exam:
    where = f"{table}, line {number}"

    def file(name: str) -> Path | None:
        if not row.get(name):
            return None
        path = table.parent / row[name]
        if not path.exists():
            raise FileNotFoundError(f"{where}: there is no {name} at {path.absolute()}")
        return path

    labels = []
    for name in _CLASSES:
        said = (row[name] or "").strip()
        if said not in ("0", "1", ""):
            raise ValueError(f"{where}: {name} is '{said}'; needed is 0, 1, or nothing where it is not known")
        labels.append(float(said or "nan"))
    path = file("path")
    if path is None:
        raise ValueError(f"{where}: the path is empty")
    return Exam(
        path,
        (labels[0], labels[1]),
        row.get("split") or "",
        row.get("patient") or path.stem,
        (row.get("view") or "CC").upper(),
        row.get("faces") or "right",
        (file("benign_mask"), file("malignant_mask")),
    )
