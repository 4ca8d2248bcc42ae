"""Tables of cases: which slide, which label, which patient, which part of the study.

    path,label,split                          slide_id,case_id,outcome,mpp
    images/train_000.tif,0,train              S-0001,P-17,metastasis,0.25
    images/train_001.tif,1,train              S-0002,P-17,normal,

Any header goes, by the names of its columns. All that is wrong with a table is said at once, with its line: a study of
hundreds of slides is not mended one error at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from streamingcnn.slides.rows import Row, read_rows

__all__ = ["Case", "CaseTable", "read_cases", "read_table"]

#: How people write the three parts of a study.
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev", "tune"),
    "test": ("test", "testing"),
}
_SPLIT_OF = {name: split for split, names in SPLITS.items() for name in names}
#: What a label or a number looks like that is not there.
_NOTHING = {"", "nan", "na", "n/a", "none", "null", "-", "?"}
#: No slide is scanned finer or coarser than this, in micrometres per pixel.
_MPP = (0.02, 20.0)


@dataclass(frozen=True)
class Case:
    """One slide of a study.

    Attributes:
        path: the file.
        label: the index of its class, or a number.
        split: train, validation or test; empty where the table does not say.
        id: its name in the study; no other case has it.
        group: the patient, or whatever must not be in two splits; the id where the table does not say.
        mpp: micrometres per pixel of the full image, in place of what the file says.
        mask: a file that says where its tissue is.
        annotation: a file of outlines.
    """

    path: Path
    label: float
    split: str
    id: str = ""
    group: str = ""
    mpp: float | None = None
    mask: Path | None = None
    annotation: Path | None = None

    @property
    def name(self) -> str:
        """The id, or the file's name without its ending."""
        return self.id or self.path.stem

    @property
    def outlines(self) -> Path:
        """The annotation, or where ASAP's would lie: ``../annotations/NAME.xml``; it may be missing."""
        return self.annotation or self.path.parent.parent / "annotations" / f"{self.path.stem}.xml"


@dataclass(frozen=True)
class CaseTable:
    """The cases of a table in its order, and the names of their classes (none where labels are numbers)."""

    cases: tuple[Case, ...]
    classes: tuple[str, ...]


def read_cases(table: str | Path, **columns: str | None) -> list[Case]:
    """The cases of a table; see :func:`read_table`, whose arguments it takes.

    Example::

        train = [case for case in read_cases("slides/labels.csv") if case.split == "train"]
    """
    return list(read_table(table, **columns).cases)  # type: ignore[arg-type]


def read_table(
    table: str | Path,
    *,
    path_col: str = "path",
    id_col: str | None = None,
    label_col: str = "label",
    group_col: str | None = None,
    split_col: str = "split",
    images: str | Path | None = None,
    task: str = "binary",
    classes: Sequence[str] = (),
) -> CaseTable:
    """Read a CSV or XLSX table of cases, and check all of it before anything is computed.

    Example::

        table = read_table("slides.xlsx", id_col="slide_id", label_col="outcome", images="/data/slides")
        table.classes                                    # ('metastasis', 'normal')

    Columns mpp, mask and annotation are used where the table has them. Files are relative to the table.

    Args:
        table: .csv (with commas, semicolons or tabs) or .xlsx (its first sheet).
        path_col: the column with the slide's file.
        id_col: the column with its name; None: ``id`` or ``slide_id`` where there is one, else the file's name.
        label_col: the column with the label.
        group_col: the column with the patient; None: ``patient``, ``group`` or ``case_id`` where there is one.
        split_col: the column with train, validation or test; it may be missing.
        images: a folder; where the table has no column of files, a slide is the file there that is named by its id.
        task: binary, multiclass, ordinal (labels are classes) or regression (they are numbers).
        classes: the names of the classes in their order; empty: those that the table has, sorted.

    Raises:
        FileNotFoundError: there is no such table.
        ModuleNotFoundError: it is XLSX, and openpyxl is missing.
        ValueError: a column is missing, or rows are wrong: a file is absent, a label is missing or unknown, a split
            unknown, an id used twice, a patient in two splits, a resolution that no slide has. Every one is listed.
    """
    table = Path(table)
    header, rows = read_rows(table)
    id_col = id_col or _first(header, ("id", "slide_id", "slide", "image_id"), "id")
    group_col = group_col or _first(header, ("patient", "group", "patient_id", "case_id"), "")
    by_id = path_col not in header and images is not None and id_col in header
    needed = {id_col if by_id else path_col, label_col}
    missing = sorted(needed - set(header))
    if missing:
        raise ValueError(
            f"{table} has no column {' and '.join(map(repr, missing))}; it has {', '.join(header) or 'nothing'}. Name "
            "your own with --path-col, --label-col and so on; for slides named by an id only: --id-col and --images"
        )
    found = [_Reading(row, table.parent, Path(images) if by_id and images else None) for row in rows]
    for each in found:
        each.read(path_col, id_col, label_col, group_col, split_col, split_col in header)
    problems = [*_alike(found), *_in_two_splits(found)]
    names = _number_labels(found) if task == "regression" else _class_labels(found, task, tuple(classes), problems)
    listed = sorted([*problems, *((each.row.line, said) for each in found for said in each.problems)])
    if not found:
        listed = [(1, "there is no row below the header")]
    if listed:
        text = "\n".join(f"  - line {line}: {said}" if line else f"  - {said}" for line, said in listed)
        raise ValueError(f"{table} has {len(listed)} problem(s):\n{text}")
    return CaseTable(tuple(each.case() for each in found), names)


def _first(header: Sequence[str], names: Sequence[str], otherwise: str) -> str:
    return next((name for name in names if name in header), otherwise)


class _Reading:
    """A row on its way to a case, with all that is wrong with it."""

    def __init__(self, row: Row, folder: Path, images: Path | None) -> None:
        self.row, self.folder, self.images = row, folder, images
        self.problems: list[str] = []
        self.path = Path()
        self.id = self.text = self.group = self.split = ""
        self.mpp: float | None = None
        self.label = 0.0
        self.files: dict[str, Path | None] = {}

    def read(self, path_col: str, id_col: str, label_col: str, group_col: str, split_col: str, has_split: bool) -> None:
        """Take everything but the meaning of the label, which all rows decide together."""
        get = self.row.values.get
        if self.row.extra:
            self.problems.append(f"it has {self.row.extra} value(s) more than the header has columns")
        self.id = get(id_col, "")
        if self.images is not None:
            self.path = self._named_by_id(self.images)
        elif not get(path_col, ""):
            self.problems.append("it names no slide")
        else:
            self.path = self.folder / get(path_col, "")
            if not self.path.exists():
                self.problems.append(f"there is no slide at {self.path}")
        self.id = self.id or self.path.stem
        self.group = get(group_col, "") or self.id
        self.text = get(label_col, "")
        if self.text.lower() in _NOTHING:
            self.problems.append(f"the label is missing ({self.text or 'empty'})")
        if has_split:
            self.split = _SPLIT_OF.get(get(split_col, "").lower(), "")
            if not self.split:
                self.problems.append(f"the split is {get(split_col, '')!r}; it must be train, validation or test")
        self.mpp = self._mpp(get("mpp", ""))
        for column in ("mask", "annotation"):
            named = get(column, "")
            self.files[column] = self.folder / named if named.lower() not in _NOTHING else None
            if self.files[column] is not None and not (self.folder / named).exists():
                self.problems.append(f"there is no {column} at {self.folder / named}")

    def _named_by_id(self, images: Path) -> Path:
        candidates = (
            [images / self.id] if (images / self.id).is_file() else sorted(images.glob(f"{_literal(self.id)}.*"))
        )
        if len(candidates) != 1:
            have = ", ".join(each.name for each in candidates) or "none"
            self.problems.append(f"one file in {images} must be named {self.id or '(no id)'}; there is {have}")
            return Path()
        return candidates[0]

    def _mpp(self, text: str) -> float | None:
        if text.lower() in _NOTHING:
            return None
        number = _number(text)
        if number is None or not _MPP[0] <= number <= _MPP[1]:
            self.problems.append(
                f"mpp is {text}; needed are micrometres per pixel of the full image, {_MPP[0]:g} to {_MPP[1]:g} "
                "(40x is about 0.25; 352 is 72 dots per inch, which means nothing)"
            )
            return None
        return number

    def case(self) -> Case:
        """The case, once nothing is wrong."""
        files = self.files["mask"], self.files["annotation"]
        return Case(self.path, self.label, self.split, self.id, self.group, self.mpp, *files)


def _alike(found: Sequence[_Reading]) -> list[tuple[int, str]]:
    """Ids and files that an earlier row has already."""
    problems = []
    paths: dict[Path, int] = {}
    ids: dict[str, int] = {}
    for each in found:
        if each.path in paths and each.path != Path():
            problems.append((each.row.line, f"{each.path.name} is already on line {paths[each.path]}"))
        elif each.id in ids:
            problems.append((each.row.line, f"the id {each.id!r} is already on line {ids[each.id]}"))
        paths.setdefault(each.path, each.row.line)
        ids.setdefault(each.id, each.row.line)
    return problems


def _in_two_splits(found: Sequence[_Reading]) -> list[tuple[int, str]]:
    """Patients that are in two splits: what was learnt on one is then tested on the same."""
    first: dict[str, _Reading] = {}
    problems = []
    for each in found:
        before = first.setdefault(each.group, each)
        if each.split and before.split and each.split != before.split:
            said = f"{each.group} is in {each.split} here, and in {before.split} on line {before.row.line}"
            problems.append((each.row.line, said))
    return problems


def _number_labels(found: Sequence[_Reading]) -> tuple[str, ...]:
    for each in found:
        number = _number(each.text)
        if number is None and each.text.lower() not in _NOTHING:
            each.problems.append(f"the label must be a number, it is {each.text!r}")
        each.label = 0.0 if number is None else number
    return ()


def _class_labels(
    found: Sequence[_Reading], task: str, classes: tuple[str, ...], problems: list[tuple[int, str]]
) -> tuple[str, ...]:
    """Labels as indices of classes; the classes."""
    texts = {id(each): _class_name(each.text) for each in found if each.text.lower() not in _NOTHING}
    names = tuple(_class_name(name) for name in classes) or tuple(sorted(set(texts.values()), key=_order))
    for each in found:
        text = texts.get(id(each))
        if text in names:
            each.label = names.index(text)
        elif text is not None:
            each.problems.append(f"the label is {each.text!r}; the classes are {', '.join(names)}")
    if task == "binary" and len(names) != 2 and texts:
        counts = {name: sum(text == name for text in texts.values()) for name in names}
        shown = ", ".join(f"{name} ({count})" for name, count in list(counts.items())[:8])
        said = f"task 'binary' needs 2 classes, and the labels are of {len(names)}: {shown}; is it --task multiclass, "
        problems.append((0, said + "ordinal or regression, or --label-col another?"))
    return names


def _class_name(text: str) -> str:
    """A label as a name; 1 and 1.0 are one, as a column with a gap comes back from pandas and Excel as floats."""
    number = _number(text)
    return str(int(number)) if number is not None and number.is_integer() else text


def _order(name: str) -> tuple[bool, float, str]:
    number = _number(name)
    return number is None, number or 0.0, name


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _literal(name: str) -> str:
    """A name as a pattern for files that stands for itself."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
