"""Make the table of a CAMELYON16 or CAMELYON17 folder, for `streamingcnn train`.

    python examples/camelyon/table.py /data/CAMELYON16 --out camelyon16.csv

Slides are found by their names, wherever they lie below the folder:

    CAMELYON16   normal_001.tif, tumor_001.tif: to train on. test_001.tif: to test on; its label stands in
                 reference.csv, or else it has a tumour where there are outlines of it (test_001.xml)
    CAMELYON17   patient_000_node_0.tif: the label of each node stands in stages.csv (training set only)

Outlines (NAME.xml) become the column annotation. Patients of CAMELYON17 are the column patient. CAMELYON16 gives no
patients; every slide is one of its own.
"""

import argparse
import csv
import re
from pathlib import Path

HEADER = ("path", "id", "patient", "label", "stage", "split", "annotation")


def main() -> None:
    """Look for slides and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the challenge, with its slides anywhere below")
    parser.add_argument("--out", type=Path, default=Path("labels.csv"), help="the table (%(default)s)")
    args = parser.parse_args()
    slides = {path.stem: path for path in sorted(args.folder.rglob("*.tif")) if "mask" not in path.name.lower()}
    outlines = {path.stem: path for path in sorted(args.folder.rglob("*.xml"))}
    stated = stated_labels(args.folder)
    rows = []
    for name, path in slides.items():
        if re.fullmatch(r"(normal|tumor)_\d+", name):
            stage, split, patient = name.split("_")[0], "", name
        elif re.fullmatch(r"test_\d+", name):
            stage, split, patient = stated.get(name, "tumor" if name in outlines else "normal"), "test", name
        elif re.fullmatch(r"patient_\d+_node_\d+", name) and name in stated:
            stage, split, patient = stated[name], "", name.rsplit("_node_", 1)[0]
        else:
            continue
        label = "normal" if stage in ("normal", "negative") else "tumor"
        rows.append([path.absolute(), name, patient, label, stage, split, outlines.get(name, "")])
    if not rows:
        raise SystemExit(f"{args.folder} has no slide that is named as CAMELYON's are")
    if any(row[5] for row in rows):  # a table says the split of every slide or of none: validate on every sixth
        trained = [row for row in rows if not row[5]]
        for number, row in enumerate(trained):
            row[5] = "validation" if number % 6 == 5 else "train"
    with args.out.open("w", newline="") as file:
        csv.writer(file).writerows([HEADER, *rows])
    tumours = sum(row[3] == "tumor" for row in rows)
    print(f"{args.out}: {len(rows)} slides, {tumours} of them with a tumour")


def stated_labels(folder: Path) -> dict[str, str]:
    """The labels that CSV files of the challenge state: a slide's name, then what it is."""
    found = {}
    for path in [*folder.rglob("reference.csv"), *folder.rglob("stages*.csv"), *folder.rglob("stage_labels.csv")]:
        with path.open(newline="") as file:
            for row in csv.reader(file):
                if len(row) >= 2 and re.match(r"(test_\d+|patient_\d+_node_\d+)(\.tif)?$", row[0].strip()):
                    found[row[0].strip().removesuffix(".tif")] = row[1].strip().lower()
    return found


if __name__ == "__main__":
    main()
