"""`streamingcnn evaluate`: what a trained network is worth on a table of cases."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from streamingcnn.extras import require
from streamingcnn.module import StreamingModule
from streamingcnn.slides.annotations import read_annotations
from streamingcnn.slides.cases import Case, read_table
from streamingcnn.slides.froc import Matched, froc, lesions_of, match, peaks
from streamingcnn.slides.heat_files import write_heatmap
from streamingcnn.slides.labels import CAMELYON16, CAMELYON17
from streamingcnn.slides.level0 import level_0
from streamingcnn.slides.splits import read_splits
from streamingcnn.training.evaluate import Answer, Evaluation, evaluate, main_figure, worst_first, write_evaluation
from streamingcnn.training.explain import explain
from streamingcnn.training.report import write_run_report
from streamingcnn.training.run import load_run
from streamingcnn.training.settings import Settings
from streamingcnn.training.slides import Slides

__all__ = ["add_parser"]

EXAMPLE = """
  streamingcnn evaluate runs/x labels.csv
  streamingcnn evaluate runs/x/checkpoints/last.pt other_hospital.csv --split all --out runs/x/other_hospital
  streamingcnn evaluate runs/x camelyon16.csv --froc camelyon16

metrics.json, predictions.csv, the pictures and report.html go into the run's folder, or where --out says.
Exit code: 0, or 1 where no case could be evaluated; cases that cannot be read are listed, and the others go on.
"""
LABELS = {"camelyon16": CAMELYON16, "camelyon17": CAMELYON17, "all": None}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser of `streamingcnn`."""
    parser = subparsers.add_parser(
        "evaluate",
        help="a trained network against a table of cases: metrics with intervals, predictions, pictures",
        description="Run a trained network on the cases of a table, each slide streamed, and measure its answers: AUC, "
        "quadratic kappa or Spearman's correlation as the task wants, with 95 %% intervals that draw patients.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("trained", metavar="RUN|CKPT", type=Path, help="the folder of a run, or a checkpoint")
    parser.add_argument("table", metavar="TABLE", type=Path, help="CSV or XLSX of cases, with the run's columns")
    parser.add_argument("--split", default="test", help="which cases: test, validation, train or all (%(default)s)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the files go (the run's folder)")
    parser.add_argument("--images", type=Path, help="folder of the slides, where the table names them by id only")
    parser.add_argument("--froc", choices=LABELS, help="localisation too: these groups against heatmaps")
    parser.add_argument("--smallest", type=float, default=275.0, metavar="UM", help="lesion that counts (%(default)s)")
    parser.add_argument("--heatmaps", type=int, default=4, metavar="N", help="of the N worst answers (%(default)s)")
    parser.add_argument("--draws", type=int, default=1000, help="draws of the cases for an interval (%(default)s)")
    add_trained(parser)
    parser.set_defaults(run=run)


def add_trained(parser: argparse.ArgumentParser) -> None:
    """Add what says how a trained network is run."""
    parser.add_argument("--model", help="MODULE.PATH:FACTORY, where the checkpoint is of a network of your own")
    parser.add_argument("--memory", help="what a call may take, as in 4GiB (what the run had)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Evaluate, write the files, and print the main figure last."""
    require("sklearn", "scipy", "skimage", "matplotlib", "jinja2")  # now, and not after hours
    net, settings = load_run(args.trained, model=args.model, memory=args.memory, device=args.device)
    cases = chosen(args, settings)
    out = args.out or folder_of(args.trained)
    slides = Slides(cases, settings)
    numbers = {case.name: number for number, case in enumerate(cases)}
    matched: dict[str, Matched] = {}

    def answer(case: Case) -> Answer:
        seen = slides.image(numbers[case.name])
        try:
            values = answered(net, settings, seen)
            if args.froc is not None:
                matched[case.name] = placed(net, settings, case, seen, args.froc, args.smallest)
        finally:
            slides.close(seen)
        return Answer(case.name, str(case.path), case.label, values, case.group)

    with tqdm(cases, "evaluating", unit="slide", leave=False, disable=None) as bar:
        result = evaluate(bar, answer, settings.task, settings.classes, draws=args.draws)
    if any(each.found for each in matched.values()):
        result = replace(result, froc=froc(list(matched.values())))
    elif args.froc is not None:
        result.measures["notes"].append(f"no FROC: no lesion is {args.smallest:g} um long or more")
    draw_worst(result, slides, numbers, net, settings, out / "heatmaps", args.heatmaps)
    write_evaluation(result, out)
    if (out / "settings.toml").is_file():
        write_run_report(out)
    for name, reason in result.bad:
        print(f"left out: {name}: {reason}")
    for note in result.measures["notes"]:
        print(note)
    if result.froc is not None:
        print(f"FROC {result.froc.score:.3f} on {result.froc.lesions} lesions")
    print(f"files: {out.resolve()}: metrics.json, predictions.csv, pictures")
    print(main_figure(result.measures))
    return 0


def chosen(args: argparse.Namespace, settings: Settings) -> list[Case]:
    """The cases of the table in the split that was asked for; splits that the run made are the run's."""
    columns = {name: getattr(settings, name) for name in ("path_col", "id_col", "label_col", "group_col", "split_col")}
    table = read_table(
        args.table, **columns, images=args.images or settings.images, task=settings.task, classes=settings.classes
    )
    cases = list(table.cases)
    if args.split == "all":
        return cases
    splits = folder_of(args.trained) / "splits.csv"
    if not all(case.split for case in cases) and splits.is_file():
        cases = read_splits(splits, cases)
    found = [case for case in cases if case.split == args.split]
    if not found:
        have = ", ".join(sorted({case.split or "none" for case in cases}))
        raise ValueError(f"{args.table} has no case of split '{args.split}' (it has {have}); --split all takes all")
    return found


def folder_of(trained: Path) -> Path:
    """The folder of the run that a path means."""
    if trained.is_dir():
        return trained
    return trained.parent.parent if trained.parent.name == "checkpoints" else trained.parent


def answered(net: StreamingModule, settings: Settings, seen: Any) -> tuple[float, ...]:
    """The network's answer to one image, as numbers: a probability for each class, or the one value."""
    task = settings.labels_as()
    with torch.no_grad():
        result = net(seen)
    found = task.values(result) if task.kind == "regression" else task.probabilities(result)[0]
    return tuple(float(value) for value in found.reshape(-1))


def placed(net: StreamingModule, settings: Settings, case: Case, seen: Any, groups: str, smallest: float) -> Matched:
    """The peaks of the heatmap of one case against its outlines."""
    heatmap = explain(net, seen, kind=settings.task, classes=settings.classes)
    whole = level_0(seen)
    if whole.mpp is None:
        raise ValueError(f"{case.path} has no resolution, and lesions are measured in micrometres; give the column mpp")
    if case.outlines.is_file():
        outlines = read_annotations(case.outlines)
    elif case.label:
        raise ValueError(f"there are no outlines of {case.name} at {case.outlines}")
    else:
        outlines = []
    lesions = lesions_of(outlines, whole.size, whole.mpp[0], LABELS[groups], smallest=smallest)
    return match(peaks(heatmap.heat, heatmap.scale, above=0.05), lesions)


def draw_worst(
    result: Evaluation,
    slides: Slides,
    numbers: dict[str, int],
    net: StreamingModule,
    settings: Settings,
    folder: Path,
    count: int,
    explained: Callable[..., Any] = explain,
) -> Sequence[str]:
    """Write heatmaps of the cases with the worst answers, and return their names."""
    drawn = []
    for each in worst_first(result)[:count]:
        case = slides.cases[numbers[each.id]]
        seen = slides.image(numbers[each.id])
        try:
            heatmap = explained(net, seen, kind=settings.task, classes=settings.classes)
            outlines = read_annotations(case.outlines) if case.outlines.is_file() else []
            write_heatmap(heatmap, case.path, folder / case.name, outlines=outlines)
        finally:
            slides.close(seen)
        drawn.append(case.name)
    return drawn
