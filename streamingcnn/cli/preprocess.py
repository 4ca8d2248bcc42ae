"""`streamingcnn preprocess mammo`: from images as a scanner wrote them to images as a network takes them."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streamingcnn.files import whole_file
from streamingcnn.mammography import Exam, best_window, cut_window, find_breast, read_exams, read_image
from streamingcnn.sources.source import ReadError

from ._network import sizes

EXAMPLE = """example:
  streamingcnn preprocess mammo labels.csv --out prepared --size 2944x1920

The table has the columns path, benign, malignant, and where there are any split, patient, view (CC or MLO), faces
(right or left), benign_mask, malignant_mask. The folder then holds the images and masks as NumPy arrays of that size,
all facing right, and a table of the same columns. Pixels are as they were: a network's own script standardises them.

Exit code: 0 when every image was prepared, 1 when one was not (the others were, and the table has them).
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser of `streamingcnn`."""
    parser = subparsers.add_parser("preprocess", help="cut mammograms to the breast and to a network's size")
    kinds = parser.add_subparsers(title="kinds of images", metavar="KIND", required=True)
    mammo = kinds.add_parser(
        "mammo",
        help="mammograms and tomosynthesis volumes",
        description="Find the breast, turn it to face right, and cut the window of one size that holds most of it.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    mammo.add_argument("table", type=Path, help="the table of images")
    mammo.add_argument("--out", type=Path, required=True, help="the folder to write")
    mammo.add_argument("--size", type=sizes, default=(2944, 1920), help="height x width of the window (2944x1920)")
    mammo.add_argument("--threshold", type=float, default=0.0, help="what is above it is tissue (%(default)g)")
    mammo.add_argument("--peel", type=int, default=100, help="erosions that take labels off (%(default)s)")
    mammo.add_argument("--margin", type=int, default=50, help="pixels around the breast (%(default)s)")
    mammo.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prepare every image of the table; return 1 when one could not be."""
    if len(args.size) != 2:
        raise ValueError(f"--size needs height and width, as in 2944x1920; got {args.size}")
    exams = read_exams(args.table)
    args.out.mkdir(parents=True, exist_ok=True)
    rows, failed = [], 0
    for number, exam in enumerate(exams):
        try:
            rows.append(_prepared(exam, f"{number:05d}_{exam.path.name.split('.')[0]}", args))
        except (ValueError, ReadError) as error:
            failed += 1
            print(f"{exam.path}: left out: {error}")
        print(f"\r{number + 1} of {len(exams)}", end="", flush=True)
    print()
    columns = ["path", "benign", "malignant", "split", "patient", "view", "faces", "benign_mask", "malignant_mask"]
    with whole_file(args.out / "labels.csv") as partial, partial.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    print(f"{len(rows)} images prepared, {failed} left out: {args.out / 'labels.csv'}")
    return 1 if failed else 0


def _prepared(exam: Exam, name: str, args: argparse.Namespace) -> list[object]:
    image = read_image(exam.path)
    breast = find_breast(image, faces=exam.faces, threshold=args.threshold, peel=args.peel, margin=args.margin)
    inside = (..., slice(*breast.rows), slice(*breast.columns))
    turned = (..., slice(None, None, -1)) if exam.faces == "left" else (...,)
    cropped = image[inside][turned]
    middle = best_window(cropped if cropped.ndim == 2 else cropped.max(0), breast, args.size, view=exam.view)
    files = {f"{name}.npy": cut_window(cropped, middle, args.size)}
    masks = []
    for kind, path in zip(("benign", "malignant"), exam.masks, strict=True):
        masks.append(f"{name}_{kind}.npy" if path is not None else "")
        if path is None:
            continue
        mask = read_image(path)
        if mask.shape[-2:] != image.shape[-2:]:
            raise ValueError(
                f"the mask {path} has {mask.shape[-2]} x {mask.shape[-1]} pixels and the image "
                f"{image.shape[-2]} x {image.shape[-1]}; they must be the same"
            )
        files[masks[-1]] = cut_window(mask[inside][turned], middle, args.size)
    # Nothing is written of an image whose mask is wrong.
    for file, pixels in files.items():
        _write(args.out / file, pixels[None])
    labels = ["" if np.isnan(label) else int(label) for label in exam.labels]
    return [f"{name}.npy", *labels, exam.split, exam.patient, exam.view, "right", *masks]


def _write(path: Path, pixels: NDArray[np.generic]) -> None:
    with whole_file(path) as partial, partial.open("wb") as file:
        np.save(file, pixels)
