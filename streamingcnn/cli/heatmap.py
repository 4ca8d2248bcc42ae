"""`streamingcnn heatmap`: where a trained network looks, as files for QuPath and ASAP."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from tqdm import tqdm

from streamingcnn.extras import require
from streamingcnn.slides.annotations import read_annotations
from streamingcnn.slides.cases import Case, read_table
from streamingcnn.slides.heat_files import ENDINGS, write_heatmap
from streamingcnn.training.explain import WAYS, explain
from streamingcnn.training.run import load_run
from streamingcnn.training.settings import Settings
from streamingcnn.training.slides import Slides

from .evaluate import add_trained, folder_of

__all__ = ["add_parser"]

EXAMPLE = """
  streamingcnn heatmap runs/x slide.svs
  streamingcnn heatmap runs/x slides/*.svs --way saliency --out maps
  streamingcnn heatmap runs/x labels.csv --skip-done

For each slide: NAME.tif (pyramid; OpenSlide, QuPath, ASAP), NAME.geojson (contours: drop it into QuPath), NAME.png (the
slide under its heat) and NAME.npz (the numbers). Coordinates are pixels of level 0.
Exit code: 0, or 1 where a slide had a problem; the others are done.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser of `streamingcnn`."""
    parser = subparsers.add_parser(
        "heatmap",
        help="where a trained network looks: TIFF, GeoJSON and PNG over each slide",
        description="Heatmaps of slides by a trained network: what its head says of each place (activation), how much "
        "each place counts (attention), or how the answer moves with the pixels (saliency). All are streamed.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("trained", metavar="RUN|CKPT", type=Path, help="the folder of a run, or a checkpoint")
    parser.add_argument("slides", metavar="SLIDE", nargs="+", type=Path, help="slides, or tables of them (.csv, .xlsx)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the files go (RUN/heatmaps)")
    parser.add_argument("--way", choices=WAYS, default="auto", help="what is shown (auto: the head's own map)")
    parser.add_argument("--class", dest="target", metavar="NAME", help="the class that is explained (the answer)")
    parser.add_argument(
        "--threshold", type=float, action="append", help="heat from 0 to 1 of a contour; several times (0.5, 0.75)"
    )
    parser.add_argument("--slide-mpp", type=float, help="the slides' own, where the files are wrong")
    parser.add_argument("--skip-done", action="store_true", help="leave slides alone that have all their files")
    add_trained(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the heatmaps of all slides; return 1 where one had a problem."""
    require("skimage")
    net, settings = load_run(args.trained, model=args.model, memory=args.memory, device=args.device)
    target = class_number(args.target, settings)
    out = args.out or folder_of(args.trained) / "heatmaps"
    cases = wanted(args, settings)
    slides = Slides(cases, settings)
    thresholds = args.threshold or (0.5, 0.75)
    problems = 0
    for number, case in enumerate(tqdm(cases, "heatmaps", unit="slide", leave=False, disable=None)):
        stem = out / case.name
        if args.skip_done and all((out / f"{case.name}{ending}").is_file() for ending in ENDINGS):
            continue
        try:
            seen = slides.image(number)
            try:
                heatmap = explain(net, seen, args.way, kind=settings.task, classes=settings.classes, target=target)
                outlines = read_annotations(case.outlines) if case.outlines.is_file() else []
                paths = write_heatmap(heatmap, case.path, stem, outlines=outlines, thresholds=thresholds)
            finally:
                slides.close(seen)
        except (OSError, ValueError) as error:
            problems += 1
            print(f"PROBLEM {case.name}: {error}", file=sys.stderr)
        else:
            low = min(thresholds)
            empty = "" if heatmap.heat.max() >= low else f"; no contours, as nothing reaches {low:g}"
            print(f"{paths[0].with_suffix('')}.tif, .geojson, .png, .npz ({heatmap.how}{empty})")
    if len(cases) > 1:
        print(f"{len(cases)} slides, {problems} with a problem, in {out}")
    return 1 if problems else 0


def wanted(args: argparse.Namespace, settings: Settings) -> list[Case]:
    """The slides of the command line as cases; tables give theirs."""
    cases: list[Case] = []
    columns = {name: getattr(settings, name) for name in ("path_col", "id_col", "label_col", "group_col", "split_col")}
    for path in args.slides:
        if path.suffix.lower() in (".csv", ".xlsx"):
            table = read_table(path, **columns, images=settings.images, task=settings.task, classes=settings.classes)
            cases.extend(table.cases)
        else:
            cases.append(Case(path, math.nan, "", mpp=args.slide_mpp))
    names = [case.name for case in cases]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"several slides are named {', '.join(twice[:5])}, and would write the same files")
    return cases


def class_number(name: str | None, settings: Settings) -> int | None:
    """The number of a class by its name."""
    if name is None:
        return None
    if name not in settings.classes:
        raise ValueError(f"there is no class '{name}'; the run has {', '.join(settings.classes) or 'none'}")
    return settings.classes.index(name)
