"""The table of all seeds that were run, and the bars: reached or missed.

    python -m examples.mammography.table runs/mammography

Writes ``table.md`` and ``table.csv`` into the folder, and prints the first.
"""

from __future__ import annotations

import argparse
import csv
import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from examples.mammography import ways
from examples.mammography.judge import CLASSES
from streamingcnn.files import whole_file

HERE = Path(__file__).parent
Results = dict[int, dict[str, Any]]


def read(folder: Path) -> Results:
    """The results of each seed."""
    found = {int(p.parent.name.split("_")[1]): json.loads(p.read_text()) for p in folder.glob("seed_*/results.json")}
    if not found:
        raise SystemExit(f"{folder} has no seed_*/results.json; run python -m examples.mammography.run first")
    return dict(sorted(found.items()))


def values(results: Results, way: str, *keys: str) -> list[float]:
    """A figure of each seed that has it, such as ``values(results, "GMIC", "auc", "malignant")``."""
    made = []
    for seed in results.values():
        each: Any = seed.get(way)
        for key in keys:
            each = None if each is None else each.get(key)
        if each is not None:
            made.append(float(each))
    return made


def shown(figures: list[float]) -> str:
    """The mean, and each seed."""
    if not figures:
        return "not run"
    mean = f"{np.mean(figures):.3f}"
    return mean if len(figures) == 1 else f"{mean} ({', '.join(f'{each:.3f}' for each in figures)})"


def rows_of(results: Results) -> tuple[list[list[str]], list[list[str]]]:
    """The rows of AUC, and those of Dice and average precision."""
    names = list(dict.fromkeys(name for seed in results.values() for name in seed))
    areas, overlaps = [], []
    for name in names:
        if values(results, name, "auc", "malignant"):
            seconds = f"{np.mean(values(results, name, 'seconds')):.0f} s"
            for c in CLASSES[::-1]:
                mean = f"{np.mean(values(results, name, 'auc', c)):.3f}"
                areas.append([name, c, mean, *(area_of(seed.get(name), c) for seed in results.values()), seconds])
        maps = dict.fromkeys(m for seed in results.values() for m in seed.get(name, {}).get("dice", {}))
        for each in maps:
            shape = "x".join(str(n) for n in results[next(iter(results))][name].get("cells", []))
            called = f"best choice of GMIC's {shape} cells" if each == "grid" else each
            called = name if name.startswith(("GLAM,", "GMIC,")) and each != "GLAM global" else called
            if not (name.startswith("GLAM,") and each == "GLAM global"):
                figures = [
                    values(results, name, kind, each, c) for kind in ("dice", "precision") for c in CLASSES[::-1]
                ]
                overlaps.append([called, *("" if each == "grid" and not f else shown(f) for f in figures)])
    return areas, overlaps


def area_of(result: dict[str, Any] | None, kind: str) -> str:
    """An AUC and its interval.

    >>> area_of({"auc": {"benign": 0.75}, "interval": {"benign": [0.7, 0.8]}}, "benign")
    '0.750 (0.70 to 0.80)'
    """
    if result is None:
        return "not run"
    low, high = result["interval"][kind]
    return f"{result['auc'][kind]:.3f} ({low:.2f} to {high:.2f})"


def bars(results: Results) -> list[str]:
    """What was to be shown, with the means over the seeds."""

    def mean(*keys: str) -> float:
        found = values(results, *keys)
        return float(np.mean(found)) if found else float("nan")

    whole = mean("GMIC", "auc", "malignant")
    part = max(
        (mean(name, "auc", "malignant") for seed in results.values() for name in seed if name.startswith("GMIC, 1/")),
        default=float("nan"),
    )
    made = [
        bar("GMIC's AUC of malignant, at least 0.90", whole, 0.90),
        bar("GMIC's AUC of malignant above that at the smaller size, by at least 0.05", whole - part, 0.05),
    ]
    for c in CLASSES[::-1]:
        full = mean("GLAM", "dice", "GLAM", c)
        made.append(
            bar(
                f"GLAM's Dice of {c} over that of GMIC's map, at least 2",
                full / mean("GMIC", "dice", "GMIC's map", c),
                2,
            )
        )
        made.append(
            bar(f"GLAM's Dice of {c} over that of the CAM, at least 1.1", full / mean("CAM", "dice", "CAM", c), 1.1)
        )
    made.append(
        "- published gains of GLAM's Dice over the best earlier method, NYU's images: 20.0 % malignant, 39.6 % benign"
    )
    return made


def decoders(results: Results, config: dict[str, Any]) -> list[str]:
    """GLAM's two local networks: the work of each on a crop, and each one's Dice."""
    side = config["glam"]["crop"]
    made = []
    for name, local in (("GLAM", "pyramid"), ("GLAM, local at stride 4", "stride 4")):
        with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
            net = ways.glam({**config["training"], **config["glam"]}, "", local=local).net
            net.get_submodule("detection_network")(torch.empty(1, 3, side, side))
        work = counter.get_total_flops() / 2e6
        found = ", ".join(f"{c} {shown(values(results, name, 'dice', 'GLAM', c))}" for c in CLASSES[::-1])
        made.append(f"- local network, {local}: {work:.1f} million multiply-adds for a crop of {side}; Dice {found}")
    return made


def bar(what: str, figure: float, least: float) -> str:
    """One line."""
    verdict = "not run" if np.isnan(figure) else "reached" if figure >= least else "MISSED"
    return f"- {what}: {figure:.3f}, {verdict}"


def markdown(rows: list[list[str]], header: list[str]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(row) + " |" for row in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


def main() -> None:
    """Write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="that `run` wrote its seeds to")
    parser.add_argument("--config", type=Path, default=HERE / "cpu.toml", help="that it ran with (%(default)s)")
    options = parser.parse_args()
    folder, results = options.folder, read(options.folder)
    config = tomllib.loads(options.config.read_text())
    areas, overlaps = rows_of(results)
    heads = (
        ["way", "class", "mean", *(f"seed {seed}" for seed in results), "training"],
        ["map", *(f"{figure}, {c}" for figure in ("Dice", "precision") for c in CLASSES[::-1])],
    )
    text = "\n\n".join(
        [
            "Test AUC, with its interval of 95 % (images drawn again, 1000 times):\n\n" + markdown(areas, heads[0]),
            "Mean Dice, and mean average precision of pixels, over the test images that hold the class; seeds "
            f"{', '.join(map(str, results))} in brackets:\n\n" + markdown(overlaps, heads[1]),
            "\n".join([*bars(results), *decoders(results, config)]),
        ]
    )
    with whole_file(folder / "table.md") as partial:
        partial.write_text(text + "\n")
    with whole_file(folder / "table.csv") as partial, partial.open("w", newline="") as file:
        csv.writer(file).writerows(
            [
                ["measure", *heads[0]],
                *(["AUC", *r] for r in areas),
                ["measure", *heads[1]],
                *(["map", *r] for r in overlaps),
            ]
        )
    print(text)


if __name__ == "__main__":
    main()
