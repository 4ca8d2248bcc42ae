"""Tables of cases: which slide, which label, which part of the study.

    path,label,split
    images/train_000.tif,0,train
    images/train_001.tif,1,train

Paths are relative to the table. All that is wrong with a table is said at once, with its line: a study of
hundreds of slides is not mended one error at a time.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Case", "read_cases"]


@dataclass(frozen=True)
class Case:
    """One slide of a study: where it is, 0 or 1 for its label, and the split that it belongs to."""

    path: Path
    label: int
    split: str

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.path.stem

    @property
    def outlines(self) -> Path:
        """Where ASAP outlines of this slide lie: ``../annotations/NAME.xml``; they may be missing."""
        return self.path.parent.parent / "annotations" / f"{self.name}.xml"


def read_cases(table: str | Path) -> list[Case]:
    """The cases of a CSV table with the columns path, label and split.

    Example::

        train = [case for case in read_cases("slides/labels.csv") if case.split == "train"]

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: columns are missing, a label is not 0 or 1, a slide is absent or named twice; every such
            line is listed.
    """
    table = Path(table)
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = {"path", "label", "split"} - set(reader.fieldnames or ())
        if missing:
            have = ", ".join(reader.fieldnames or ()) or "nothing"
            raise ValueError(f"{table}: the first line must name the columns path,label,split; it has {have}")
        cases: list[Case] = []
        problems: list[str] = []
        seen: dict[Path, int] = {}
        for row in reader:
            path = table.parent / row["path"]
            line = f"line {reader.line_num}"
            if path in seen:
                problems.append(f"{line}: {row['path']} is already on line {seen[path]}")
            elif not path.is_file():
                problems.append(f"{line}: there is no slide at {path}")
            if row["label"] not in ("0", "1"):
                problems.append(f"{line}: the label must be 0 or 1, it is {row['label']!r}")
                continue
            seen[path] = reader.line_num
            cases.append(Case(path, int(row["label"]), row["split"] or ""))
    if problems:
        raise ValueError(f"{table} has {len(problems)} problem(s):\n" + "\n".join(f"  - {each}" for each in problems))
    return cases
