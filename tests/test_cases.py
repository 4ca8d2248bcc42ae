"""Tables of cases in the shapes that people have them, all that can be wrong with one, and splits."""

from __future__ import annotations

import random
import runpy
import sys
from collections import Counter
from pathlib import Path

import pytest

from streamingcnn.slides import Case, read_cases
from streamingcnn.slides.cases import read_table
from streamingcnn.slides.splits import read_splits, split_cases, write_splits

openpyxl = pytest.importorskip("openpyxl")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b", "c", "d"):
        (tmp_path / f"{name}.tif").touch()
    return tmp_path


def table(folder: Path, text: str, name: str = "t.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def problems(path: Path, **columns: object) -> list[str]:
    with pytest.raises(ValueError) as caught:
        read_table(path, **columns)  # type: ignore[arg-type]
    return [line.removeprefix("  - ") for line in str(caught.value).splitlines()[1:]]


def test_a_table_of_cases(folder: Path) -> None:
    cases = read_cases(table(folder, "path,label,split,note\na.tif,0,train,x\nb.tif,1,test,y\n"))
    assert cases == [
        Case(folder / "a.tif", 0, "train", "a", "a"),
        Case(folder / "b.tif", 1, "test", "b", "b"),
    ]
    assert cases[0].outlines == folder.parent / "annotations" / "a.xml"


def test_any_header_goes(folder: Path) -> None:
    (folder / "a.png").touch()
    text = "slide_id;case_id;outcome;fold;mpp;mask;annotation\nS1;P1;meta;Training;0.25;;\n"
    path = table(folder, "\ufeff" + text.replace("S1", "a.tif") + "b;P2;normal;val;;a.png;\n")
    found = read_table(path, id_col="slide_id", label_col="outcome", split_col="fold", images=folder)
    assert found.classes == ("meta", "normal")
    first, second = found.cases
    assert (first.id, first.group, first.label, first.split, first.mpp) == ("a.tif", "P1", 0, "train", 0.25)
    assert (second.path, second.split, second.mask) == (folder / "b.tif", "validation", folder / "a.png")


def test_a_sheet_is_read_like_text(folder: Path) -> None:
    rows = [("path", "label", "split", "mpp"), ("a.tif", 1, "train", 0.5), ("b.tif", 0.0, "test", None), (None,) * 4]
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.save(folder / "t.xlsx")
    cases = read_cases(folder / "t.xlsx")
    assert [(case.label, case.split, case.mpp) for case in cases] == [(1, "train", 0.5), (0, "test", None)]
    (folder / "broken.xlsx").write_bytes(b"PK no zip")
    with pytest.raises(ValueError, match="is no XLSX file"):
        read_cases(folder / "broken.xlsx")


def test_labels_by_task(folder: Path) -> None:
    path = table(folder, "path,label\na.tif,10\nb.tif,9\nc.tif,1.0\nd.tif,2.5\n")
    assert [case.label for case in read_cases(path, task="regression")] == [10, 9, 1, 2.5]
    found = read_table(path, task="multiclass")
    assert found.classes == ("1", "2.5", "9", "10")  # as numbers, not as texts
    assert [case.label for case in found.cases] == [3, 2, 0, 1]
    assert read_table(path, task="ordinal", classes=("10", "9", "2.5", "1")).cases[0].label == 0
    assert problems(path, task="multiclass", classes=("9", "10")) == [
        "line 4: the label is '1.0'; the classes are 9, 10",
        "line 5: the label is '2.5'; the classes are 9, 10",
    ]


def test_all_that_is_wrong_with_a_table_is_said_at_once(folder: Path) -> None:
    rows = [
        "path,label,split,patient,mpp,mask,id",
        "a.tif,0,train,P1,0.25,,A",
        "a.tif,1,train,P2,,,B",  # a file twice
        "c.tif,1,test,P1,,,C",  # P1 is in train
        "nowhere.tif,0,train,P4,,,D",
        "b.tif,nan,train,P5,,,E",
        "d.tif,1,holdout,P6,352,none.png,A",  # an unknown split, 72 dpi, no mask, an id twice
        ",,,,,,",  # a row of nothing is no row
        ",1,train,P8,-1,,F,extra",
    ]
    assert problems(table(folder, "\n".join(rows))) == [
        "line 3: a.tif is already on line 2",
        "line 4: P1 is in test here, and in train on line 2",
        f"line 5: there is no slide at {folder / 'nowhere.tif'}",
        "line 6: the label is missing (nan)",
        "line 7: the id 'A' is already on line 2",
        "line 7: the split is 'holdout'; it must be train, validation or test",
        "line 7: mpp is 352; needed are micrometres per pixel of the full image, 0.02 to 20 (40x is about 0.25; 352 is "
        "72 dots per inch, which means nothing)",
        f"line 7: there is no mask at {folder / 'none.png'}",
        "line 9: it has 1 value(s) more than the header has columns",
        "line 9: it names no slide",
        "line 9: mpp is -1; needed are micrometres per pixel of the full image, 0.02 to 20 (40x is about 0.25; 352 is "
        "72 dots per inch, which means nothing)",
    ]


def test_a_task_that_the_labels_do_not_fit(folder: Path) -> None:
    path = table(folder, "path,label\na.tif,low\nb.tif,mid\nc.tif,high\n")
    (said,) = problems(path)
    assert "task 'binary' needs 2 classes, and the labels are of 3: high (1), low (1), mid (1); is it --task" in said
    assert problems(path, task="regression")[0] == "line 2: the label must be a number, it is 'low'"
    assert "binary" in problems(table(folder, "path,label\na.tif,1\n"))[0]


@pytest.mark.parametrize(
    "text, said",
    [
        ("slide,label\n", "no column 'path'; it has slide, label. Name your own with --path-col"),
        ("", "no column 'label' and 'path'; it has nothing"),
        ("path,label,label\n", "more than one column 'label'"),
        ("path,label\n", "there is no row below the header"),
    ],
)
def test_a_table_without_what_is_needed(folder: Path, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_cases(table(folder, text))


def test_a_split_for_every_case_or_for_none(folder: Path) -> None:
    assert {c.split for c in read_cases(table(folder, "path,label,split\na.tif,0,\nb.tif,1,\n"))} == {""}
    said = problems(table(folder, "path,label,split\na.tif,0,\nb.tif,1,train\n"))
    assert said == ["line 2: the split is ''; it must be train, validation or test"]


def test_a_slide_that_is_named_by_its_id_must_be_one_file(folder: Path) -> None:
    (folder / "a.svs").touch()
    path = table(folder, "id,label\na,0\nb,1\nz[1],1\n")
    assert problems(path, images=folder) == [
        f"line 2: one file in {folder} must be named a; there is a.svs, a.tif",
        f"line 4: one file in {folder} must be named z[1]; there is none",
    ]


def test_what_is_no_table_is_said(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no table"):
        read_cases(folder / "none.csv")
    (folder / "latin.csv").write_bytes("path,label\n\xe9.tif,1\n".encode("latin-1"))
    with pytest.raises(ValueError, match="no text in UTF-8"):
        read_cases(folder / "latin.csv")
    (folder / "t.ods").touch()
    with pytest.raises(ValueError, match="CSV or XLSX"):
        read_cases(folder / "t.ods")


# ----------------------------------------------------------------------------------------------------- splits


def study(patients: int = 60, slides: int = 3, share: float = 0.25) -> list[Case]:
    draw = random.Random(0)
    cases = []
    for patient in range(patients):
        label = float(draw.random() < share)
        for slide in range(draw.randint(1, slides)):
            name = f"{patient}_{slide}"
            cases.append(Case(Path(f"{name}.svs"), label, "", name, f"P{patient}"))
    return cases


def splits(cases: list[Case]) -> dict[str, list[Case]]:
    return {split: [case for case in cases if case.split == split] for split in ("train", "validation", "test")}


def test_patients_are_never_in_two_splits_and_classes_keep_their_share() -> None:
    cases = study()
    dealt = split_cases(cases, validation=0.2, test=0.2, seed=3)
    assert [case.name for case in dealt] == [case.name for case in cases]
    found = splits(dealt)
    groups = [{case.group for case in each} for each in found.values()]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    share = sum(case.label for case in cases) / len(cases)
    for each in found.values():
        assert len(each) > 0.12 * len(cases)
        assert sum(case.label for case in each) / len(each) == pytest.approx(share, abs=0.12)


def test_splits_follow_from_the_seed_and_not_from_the_order() -> None:
    cases = study()
    first = {case.name: case.split for case in split_cases(cases, seed=1)}
    assert first == {case.name: case.split for case in split_cases(cases[::-1], seed=1)}
    assert first != {case.name: case.split for case in split_cases(cases, seed=2)}


def test_every_case_is_tested_in_one_fold() -> None:
    cases = study()
    folds = [splits(split_cases(cases, folds=4, fold=fold)) for fold in range(4)]
    tested = Counter(case.name for fold in folds for case in fold["test"])
    assert tested == Counter(case.name for case in cases)
    assert all(fold["validation"] and fold["train"] for fold in folds)


def test_numbers_are_split_from_low_to_high() -> None:
    cases = [Case(Path(f"{k}.svs"), k / 10, "", str(k), str(k)) for k in range(80)]
    found = splits(split_cases(cases, numbers=True, validation=0.25, test=0.25))
    for each in found.values():
        assert sum(case.label for case in each) / len(each) == pytest.approx(3.95, abs=0.8)


def test_shares_of_nothing_and_too_few_patients() -> None:
    assert {case.split for case in split_cases(study(), validation=0, test=0)} == {"train"}
    with pytest.raises(ValueError, match=r"2 patient\(s\) cannot be dealt into 7 parts"):
        split_cases(study(patients=2), test=0.15)
    few = split_cases(study(patients=8, share=0), validation=0.2, test=0.2)  # one class only
    assert len(splits(few)["test"]) > 0


def test_splits_come_back_from_their_file(tmp_path: Path) -> None:
    cases = split_cases(study(), seed=1)
    write_splits(tmp_path / "splits.csv", cases, ("normal", "tumour"))
    bare = [Case(case.path, case.label, "", case.id, case.group) for case in cases]
    assert read_splits(tmp_path / "splits.csv", bare) == cases
    with pytest.raises(ValueError, match=r"1 difference(.|\n)*0_0 is in splits.csv and not in the table"):
        read_splits(tmp_path / "splits.csv", [case for case in bare if case.name != "0_0"])


# -------------------------------------------------------------------------------------------------- CAMELYON


def test_the_tables_of_camelyon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = str(Path(__file__).parents[1] / "examples" / "camelyon" / "table.py")

    def table_of(folder: Path) -> Path:
        monkeypatch.setattr(sys, "argv", ["table.py", str(folder), "--out", str(folder / "t.csv")])
        runpy.run_path(script, run_name="__main__")
        return folder / "t.csv"

    old = tmp_path / "16"
    names = ["images/normal_001", "images/normal_002", "images/test_001", "images/test_002", "masks/tumor_001_mask"]
    for name in [*names, *(f"training/tumor/tumor_{number:03d}" for number in range(1, 7))]:
        (old / name).parent.mkdir(parents=True, exist_ok=True)
        (old / f"{name}.tif").touch()
    (old / "tumor_001.xml").touch()
    (old / "reference.csv").write_text("test_001,Tumor,Micro\ntest_002,Normal,None\n")
    found = read_table(table_of(old))
    assert found.classes == ("normal", "tumor") and len(found.cases) == 10
    by_name = {case.id: case for case in found.cases}
    assert (by_name["test_001"].label, by_name["test_001"].split) == (1, "test")
    assert (by_name["tumor_001"].label, by_name["tumor_001"].outlines) == (1, old / "tumor_001.xml")
    assert Counter(case.split for case in found.cases) == {"train": 7, "validation": 1, "test": 2}

    new = tmp_path / "17"
    new.mkdir()
    for name in ("patient_000_node_0", "patient_000_node_1", "patient_001_node_0", "patient_100_node_0"):
        (new / f"{name}.tif").touch()
    stages = ["patient,stage", "patient_000.zip,pN0", "patient_000_node_0.tif,negative", "patient_000_node_1.tif,itc"]
    (new / "stages.csv").write_text("\n".join([*stages, "patient_001_node_0.tif,macro"]))
    order = ("negative", "itc", "micro", "macro")
    found = read_table(table_of(new), label_col="stage", task="ordinal", classes=order)
    assert [(case.id, case.label, case.group) for case in found.cases] == [
        ("patient_000_node_0", 0, "patient_000"),
        ("patient_000_node_1", 1, "patient_000"),
        ("patient_001_node_0", 3, "patient_001"),
    ]
