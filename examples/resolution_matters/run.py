"""Does the label of a slide need its full resolution? The same slides, network and loop at four levels.

    python examples/resolution_matters/run.py --out resolution

Slides of the demo's kind, 40 to train on and 200 for the test, are written as pyramids. The demo's network
is trained on the full images, and on the levels at 1/2, 1/4 and 1/8 of their size, where a nucleus is less than
a pixel at last. A small image costs less, so the small ones get six times the epochs. Plain PyTorch throughout:
the streamed network computes the same, and this example is about the slides.

What it leaves: table.md, results.json, figure.png, and a folder for each level.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import nn
from tqdm import tqdm

from streamingcnn.models.resnet import BasicBlock, ResNet
from streamingcnn.slides import Case, read_asap, read_cases
from streamingcnn.sources import open_image
from streamingcnn.synthetic import Cohort
from streamingcnn.training import LogitMap, study
from streamingcnn.training.measures import measure

LEVELS = (3, 2, 1, 0)
#: Pixels of the full slide along a side of the pictures in the figure.
CROP = 128


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the slides, train and test at each level; then the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("resolution"), help="folder (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of slides, weights and order (%(default)s)")
    parser.add_argument("--train", type=int, default=40, help="training slides (%(default)s)")
    parser.add_argument("--test", type=int, default=200, help="test slides (%(default)s)")
    parser.add_argument("--size", type=int, default=768, help="pixels along a slide's side (%(default)s)")
    parser.add_argument("--epochs", type=int, default=10, help="at full resolution; else six times (%(default)s)")
    args = parser.parse_args(arguments)

    cohort = Cohort(args.seed, args.train, args.test, (args.size, args.size))
    with tqdm(total=args.train + args.test, desc="writing slides", unit="slide") as bar:
        cases = read_cases(cohort.write(args.out / "slides", on_slide=bar.update))
    rows: list[dict[str, Any]] = []
    for level in LEVELS:
        rows.append(measured(cases, args.out, level, args.epochs if level == 0 else 6 * args.epochs, args.seed))
        (low, high), auc = rows[-1]["interval"], rows[-1]["auc"]
        print(f"{named(level)}: test AUC {auc:.3f} ({low:.3f} to {high:.3f}), {rows[-1]['seconds']:.0f} s", flush=True)
    (args.out / "results.json").write_text(json.dumps(rows, indent=2))
    (args.out / "table.md").write_text(table(rows))
    draw(args.out / "figure.png", rows, next(case for case in cases if case.split == "test" and case.label))
    print(f"\n{table(rows)}\n{args.out / 'figure.png'}")


def measured(cases: Sequence[Case], out: Path, level: int, epochs: int, seed: int) -> dict[str, Any]:
    """Train and test at one level; the AUC on all test slides with its interval, and what it took."""
    start = time.perf_counter()
    torch.manual_seed(seed)
    net = nn.Sequential(ResNet(BasicBlock, depths=(1, 1, 1), width=16), LogitMap(64))
    result = study(net, cases, out / f"level_{level}", level=level, epochs=epochs, seed=seed, pictures=False)
    tumour = 1 / (1 + np.exp([-each.score for each in result.predictions]))
    labels = [int(each.case.label) for each in result.predictions]
    mpp = open_image(cases[0].path, level=level).mpp
    assert mpp is not None  # these slides say it
    found = measure("binary", labels, np.stack([1 - tumour, tumour], axis=1), ("normal", "tumour"))
    return {
        "level": level,
        "mpp": mpp[0],
        "epochs": epochs,
        "loss": result.history[-1].loss,
        "slides": found["cases"],
        "auc": found["auc"],
        "interval": found["auc_interval"],
        "seconds": time.perf_counter() - start,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The results in Markdown."""
    lines = [
        "| resolution along each axis | a pixel | epochs | last training loss | test AUC (95 %) | test slides |",
        "|---" * 6 + "|",
    ]
    for row in rows:
        low, high = row["interval"]
        auc = f"{row['auc']:.3f} ({low:.3f} to {high:.3f})"
        shown = (named(row["level"]), f"{row['mpp']:g} um", row["epochs"], f"{row['loss']:.3f}", auc, row["slides"])
        lines.append(f"| {' | '.join(map(str, shown))} |")
    return "\n".join(lines) + "\n"


def named(level: int) -> str:
    """What share of the resolution a level has along each axis."""
    return f"1/{2**level}" if level else "full"


def draw(path: Path, rows: Sequence[dict[str, Any]], case: Case) -> None:
    """The AUC at each resolution, and above it one border of a lesion as a network sees it there."""
    figure = Figure(figsize=(8, 5.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, len(rows), height_ratios=(2, 3))
    outline = read_asap(case.outlines)[0].points
    for column, row in enumerate(rows):
        step = 2 ** row["level"]
        image = open_image(case.path, level=row["level"])
        side = CROP // step
        top, left = (
            int(np.clip(middle / step - side / 2, 0, extent - side))
            for middle, extent in zip(outline[0][::-1], image.shape[1:], strict=True)
        )
        pixels = image.read(((top, top + side), (left, left + side)))
        axes = figure.add_subplot(grid[0, column])
        axes.imshow(pixels.permute(1, 2, 0).numpy(), interpolation="nearest", extent=(0, side, side, 0))
        closed = np.concatenate([outline, outline[:1]]) / step - (left, top)
        axes.plot(*closed.T, color="#3a8f5c", linewidth=1.5)
        axes.set(xlim=(0, side), ylim=(side, 0), xticks=[], yticks=[], title=f"{row['mpp']:g} um")
    axes = figure.add_subplot(grid[1, :])
    places = range(len(rows))
    values = np.array([row["auc"] for row in rows])
    low, high = np.array([row["interval"] for row in rows]).T
    axes.axhline(0.5, color="#999999", linewidth=1, linestyle=":")
    axes.errorbar(places, values, (values - low, high - values), fmt="o", color="#2a5db0", capsize=5)
    for place, value in zip(places, values, strict=True):
        axes.annotate(f"{value:.3f}", (place, value), (9, -3), textcoords="offset points", fontsize=9)
    names = [named(row["level"]) for row in rows]
    bottom = min(0.4, low.min()) - 0.03
    axes.set(xlim=(-0.5, len(rows) - 0.5), ylim=(bottom, 1.03), xticks=places, xticklabels=names)
    axes.set(xlabel="resolution along each axis", ylabel=f"AUC on {rows[0]['slides']} test slides, 95 %")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
