"""Does a slide hold dense patches, and how many nuclei? Real H&E patches, stitched to slides, labelled as wholes.

    python -m examples.nuclei_density.run --data stage1_train --out nuclei

Patches are split before slides are stitched of them, so no pixel of a test slide was trained on. The settings stand in
settings.toml. Without --data the patches are made. With --on validation no network meets a test patch: that is how the
settings were chosen, with another seed.
"""

from __future__ import annotations

import argparse
import json
import time
import tomllib
from collections import OrderedDict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from scipy.stats import spearmanr
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.optim.swa_utils import update_bn

from examples.nuclei_density.figure import draw
from examples.nuclei_density.patches import Patch, made_patches, read_patches, share_below, split_patches
from examples.nuclei_density.stitch import write_slides
from examples.nuclei_density.trunk import CHANNELS, trunk
from streamingcnn import StreamingModule
from streamingcnn.slides.cases import Case, read_table
from streamingcnn.slides.stain import standardised
from streamingcnn.training.evaluate import Answer, evaluate, main_figure, write_evaluation
from streamingcnn.training.examples import Images
from streamingcnn.training.heads import make_head
from streamingcnn.training.loop import Training
from streamingcnn.training.recipe import Recipe
from streamingcnn.training.tasks import Task
from streamingcnn.training.watch import Epoch, Watch

#: Task, its measure, and what it must reach.
BARS = {"count": ("spearman", 0.8), "label": ("auc", 0.85)}
CLASSES = ("sparse", "dense")


def main(arguments: list[str] | None = None) -> None:
    """Stitch, train, test; print both tasks' figures beside what the mean colour gives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="BBBC038's stage1_train, or a folder of ID.png and ID_nuclei.png")
    parser.add_argument("--out", type=Path, default=Path("nuclei"), help="folder (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of slides, weights, order (0 1 2)")
    parser.add_argument("--tasks", nargs="+", choices=BARS, default=list(BARS), help="(both)")
    parser.add_argument("--on", choices=("test", "validation"), default="test", help="measured there (%(default)s)")
    parser.add_argument("--config", type=Path, default=Path(__file__).parent / "settings.toml", help="(%(default)s)")
    parser.add_argument("--sparse", type=float, help="share of patches that are sparse, instead of the settings'")
    args = parser.parse_args(arguments)
    config = tomllib.loads(args.config.read_text())

    patches = read_patches(args.data) if args.data else made_patches()
    limits = share_below(patches, args.sparse or config["sparse"]), share_below(patches, config["dense"])
    split = split_patches(patches)
    said(split, limits, args.data)
    found = []
    for seed in args.seeds:
        for task in args.tasks:
            found.append(measured(task, seed, split, limits, config, args.out, args.on))
            print(line(found[-1], args.on), flush=True)
            (args.out / "results.json").write_text(json.dumps(found, indent=2))
    draw(args.out / "figure.png", found, args.out, args.on)
    print(f"{sum(each['reached'] for each in found)} of {len(found)} bars reached, on {args.on} slides")


def measured(
    task: str, seed: int, split: dict[str, list[Patch]], limits: tuple[int, int], config: Any, out: Path, on: str
) -> dict[str, Any]:
    """One task with one seed: what the network reaches, and the mean colour."""
    folder = out / f"seed_{seed}"
    table = write_slides(folder / f"{task}_slides", task, split, limits, config[task]["slides"], seed)
    kind = "regression" if task == "count" else "binary"
    cases = read_table(table, task=kind, classes=() if task == "count" else CLASSES).cases
    of = {name: [case for case in cases if case.split == name] for name in split}
    labels = np.array([case.label for case in of["train"]])
    scale = (float(labels.mean()), float(labels.std())) if task == "count" else (0.0, 1.0)
    means = Task(kind, () if task == "count" else CLASSES, (), *scale)
    print(f"{task}, seed {seed}: labels {labels.mean():.4g} +- {labels.std():.3g} on {len(labels)} slides to train on")

    torch.manual_seed(seed)
    parts = OrderedDict(trunk=trunk(), head=make_head(config[task]["head"], CHANNELS[-1], 1))
    net = StreamingModule(nn.Sequential(parts), tile=config["tile"])
    recipe = Recipe(seed=seed, **config[task]["recipe"])
    training = Training(net, images(of["train"]), means.loss, recipe, validation=images(of["validation"]))
    best = Best()
    start = time.perf_counter()
    training.run(best)
    if config[task]["epoch"] == "best":
        net.load_state_dict(best.weights)
    if config[task]["again"]:
        statistics_again(net, of["train"], recipe.batch)
    net.eval()
    torch.save(net.state_dict(), folder / f"{task}.pt")

    def answer(case: Case) -> Answer:
        with torch.no_grad():
            result = net(standardised(pixels(case)[None]))
        values = means.values(result) if task == "count" else means.probabilities(result)[0]
        return Answer(case.name, case.path.name, case.label, tuple(map(float, values)))

    result = evaluate(of[on], answer, kind, means.classes)
    write_evaluation(result, folder / f"{task}_{on}")
    print(f"  {main_figure(result.measures)}, {time.perf_counter() - start:.0f} s")
    measure, bar = BARS[task]
    value = result.measures[measure] or 0.0  # none where all answers are the same
    colour = by_colour(task, of["train"], of[on])
    found = {"task": task, "seed": seed, "measure": measure, "value": value, "bar": bar, "mean_colour": colour}
    return found | {
        "interval": result.measures[f"{measure}_interval"],
        "reached": bool(value >= bar and value > colour),
    }


def statistics_again(net: nn.Module, cases: list[Case], batch: int) -> None:
    """Take the running statistics of the batch norms from all these slides at the weights as they are now.

    While training they are means over its last dozens of steps, and a training of 48 steps has not many more: at its
    end they are still in part those of weights that are long gone.
    """
    images = (standardised(pixels(case)[None])[0] for case in cases)
    batches = iter(lambda: list(islice(images, batch)), [])
    update_bn((torch.stack(each) for each in batches), net)


class Best(Watch):
    """Keeps the weights of the epoch with the lowest validation loss, and says how epochs went."""

    def epoch(self, report: Epoch, better: bool) -> None:
        """Say it."""
        said = f"  epoch {report.number}: loss {report.loss:.3f}, validation {report.validation:.3f}"
        print(f"{said}{' (best so far)' if better else ''}, {report.seconds:.1f} s", flush=True)

    def save(self, state: dict[str, Any], best: bool) -> None:
        """Keep it."""
        if best:
            self.weights = state["net"]


def images(cases: list[Case]) -> Images:
    """The slides of cases in memory, each standardised by its own tissue when it is taken."""
    return Images([pixels(case) for case in cases], [case.label for case in cases], [case.name for case in cases])


def pixels(case: Case) -> torch.Tensor:
    """A slide as (3, height, width) uint8."""
    return torch.from_numpy(tifffile.imread(case.path)).permute(2, 0, 1).contiguous()


def by_colour(task: str, train: list[Case], test: list[Case]) -> float:
    """What a linear model of a slide's mean red, green and blue reaches."""
    x, new = (np.array([tifffile.imread(case.path).mean((0, 1)) for case in cases]) for cases in (train, test))
    y, true = (np.array([case.label for case in cases]) for cases in (train, test))
    if task == "label":
        classifier = make_pipeline(StandardScaler(), LogisticRegression()).fit(x, y)
        return float(roc_auc_score(true, classifier.decision_function(new)))
    return float(spearmanr(true, LinearRegression().fit(x, y).predict(new)).statistic)


def said(split: dict[str, list[Patch]], limits: tuple[int, int], data: Path | None) -> None:
    """Print what there is to stitch."""
    print(f"patches {'of ' + data.name if data else 'made'}; sparse below {limits[0]} nuclei, dense from {limits[1]}")
    for name, patches in split.items():
        counts = np.array([patch.nuclei for patch in patches])
        sparse, dense = (counts < limits[0]).sum(), (counts >= limits[1]).sum()
        print(f"  {name}: {len(counts)} patches, {sparse} sparse, {dense} dense, {counts.mean():.0f} nuclei each")


def line(found: dict[str, Any], on: str) -> str:
    """A result and whether its bar is reached."""
    return (
        f"{found['task']}, seed {found['seed']}: {on} {found['measure']} {found['value']:.3f}, "
        f"mean colour {found['mean_colour']:.3f}; at least {found['bar']} and above mean colour: "
        f"{'reached' if found['reached'] else 'MISSED'}"
    )


if __name__ == "__main__":
    main()
