"""Does a slide hold dense patches, and how many nuclei? Real H&E patches, stitched to slides, labelled as wholes.

    python -m examples.nuclei_density.run --data stage1_train --out nuclei

Patches are split before slides are stitched of them, so no pixel of a test slide was trained on. The networks are
trained by `streamingcnn train` with the settings of label.toml and count.toml, and tested by `streamingcnn evaluate`.
Without --data the patches are made. With --on validation nothing of the test patches is read by a network: that is
how the settings were chosen, with another seed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from scipy.stats import spearmanr
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from examples.nuclei_density.figure import draw
from examples.nuclei_density.patches import Patch, made_patches, read_patches, share_below, split_patches
from examples.nuclei_density.stitch import write_slides
from streamingcnn.cli.main import main as streamingcnn
from streamingcnn.slides import read_table

HERE = Path(__file__).parent
TRUNK = "examples.nuclei_density.trunk:trunk"
#: Task, its measure in metrics.json, and what it must reach.
BARS = {"label": ("auc", 0.85), "count": ("spearman", 0.8)}
TASKS = {"label": "binary", "count": "regression"}


def main(arguments: list[str] | None = None) -> None:
    """Stitch, train, test; print both tasks' figures beside what the mean colour gives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="BBBC038's stage1_train, or a folder of ID.png and ID_nuclei.png")
    parser.add_argument("--out", type=Path, default=Path("nuclei"), help="folder (%(default)s)")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="of slides, weights, order (%(default)s)"
    )
    parser.add_argument("--tasks", nargs="+", choices=BARS, default=list(BARS), help="(%(default)s)")
    parser.add_argument("--on", choices=("test", "validation"), default="test", help="measured there (%(default)s)")
    parser.add_argument("--slides", type=int, nargs=3, default=[64, 24, 60], help="of each split (%(default)s)")
    parser.add_argument("--sparse", type=float, default=0.8, help="share of patches that are sparse (%(default)s)")
    parser.add_argument("--epochs", type=int, help="instead of the settings' own")
    args = parser.parse_args(arguments)

    patches = read_patches(args.data) if args.data else made_patches()
    limits = share_below(patches, args.sparse), share_below(patches, 0.9)
    split = split_patches(patches)
    said(split, limits, args.data)
    found = []
    for seed in args.seeds:
        for task in args.tasks:
            found.append(measured(task, seed, split, limits, args))
            print(line(found[-1], args.on), flush=True)
    (args.out / "results.json").write_text(json.dumps(found, indent=2))
    draw(args.out / "figure.png", found, args.out, args.on)
    missed = [each for each in found if not each["reached"]]
    print(f"{len(found) - len(missed)} of {len(found)} bars reached, on {args.on} slides")


def measured(
    task: str, seed: int, split: dict[str, list[Patch]], limits: tuple[int, int], args: argparse.Namespace
) -> dict[str, Any]:
    """One task with one seed: what the network reaches, and the mean colour."""
    folder = args.out / f"seed_{seed}"
    slides = dict(zip(split, args.slides, strict=True))
    table = write_slides(folder / f"{task}_slides", task, split, limits, slides, seed)
    run = folder / task
    trained = ["train", str(table), "--config", str(HERE / f"{task}.toml"), "--model", TRUNK]
    epochs = ["--epochs", str(args.epochs)] if args.epochs else []
    commands = (
        [*trained, "--seed", str(seed), "--out", str(run), *epochs],
        ["evaluate", str(run), str(table), "--split", args.on, "--out", str(run / args.on), "--heatmaps", "0"],
    )
    for command in commands:
        if streamingcnn(command):
            raise SystemExit(f"streamingcnn {' '.join(command)} failed")
    measure, bar = BARS[task]
    metrics = json.loads((run / args.on / "metrics.json").read_text())
    colour = by_colour(task, table, args.on)
    reached = metrics[measure] >= bar and metrics[measure] > colour
    found = {"task": task, "seed": seed, "measure": measure, "value": metrics[measure], "bar": bar}
    return found | {"interval": metrics[f"{measure}_interval"], "mean_colour": colour, "reached": reached}


def by_colour(task: str, table: Path, on: str) -> float:
    """What a linear model of a slide's mean red, green and blue reaches."""
    cases = read_table(table, task=TASKS[task], classes=("sparse", "dense") if task == "label" else ()).cases
    colours = {each.name: tifffile.imread(each.path).mean((0, 1)) for each in cases}
    of = {name: [case for case in cases if case.split == name] for name in ("train", on)}
    x = {name: np.array([colours[case.name] for case in found]) for name, found in of.items()}
    y = {name: np.array([case.label for case in found]) for name, found in of.items()}
    if task == "label":
        classifier = make_pipeline(StandardScaler(), LogisticRegression()).fit(x["train"], y["train"])
        return float(roc_auc_score(y[on], classifier.decision_function(x[on])))
    line = LinearRegression().fit(x["train"], y["train"])
    return float(spearmanr(y[on], line.predict(x[on])).statistic)


def said(split: dict[str, list[Patch]], limits: tuple[int, int], data: Path | None) -> None:
    """Print what there is to stitch."""
    print(f"patches {'of ' + str(data) if data else 'made'}; sparse below {limits[0]} nuclei, dense from {limits[1]}")
    for name, patches in split.items():
        counts = np.array([patch.nuclei for patch in patches])
        sparse, dense = (counts < limits[0]).sum(), (counts >= limits[1]).sum()
        print(f"  {name}: {len(counts)} patches, {sparse} sparse, {dense} dense, {counts.mean():.0f} nuclei each")


def line(found: dict[str, Any], on: str) -> str:
    """A result and whether its bar is reached."""
    between = " ({:.3f} to {:.3f})".format(*found["interval"]) if found["interval"] else ""
    return (
        f"{found['task']}, seed {found['seed']}: {on} {found['measure']} {found['value']:.3f}{between}, "
        f"mean colour {found['mean_colour']:.3f}; at least {found['bar']} and above mean colour: "
        f"{'reached' if found['reached'] else 'MISSED'}"
    )


if __name__ == "__main__":
    main()
