"""Slides of 1024 x 1024 pixels that are stitched of 4 x 4 patches, and the tables of the two tasks.

    label   "one or two of the sixteen patches are dense"; the other patches, and all those of a negative, are sparse.
            Dense and sparse are given by counts; what lies between is in no slide of this task
    count   how many nuclei there are; each slide draws how often it takes a patch of the fuller half

A slide takes patches of its own split only. Patches are turned and reflected.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from examples.nuclei_density.patches import SIDE, Patch
from streamingcnn.files import whole_folder

ROWS = 4


def write_slides(
    folder: Path, task: str, patches: dict[str, list[Patch]], limits: tuple[int, int], slides: dict[str, int], seed: int
) -> Path:
    """Write the slides of a task, or keep them where the folder holds these very ones; returns their table.

    Patches of fewer nuclei than the first limit are sparse, from the second on they are dense.

    Raises:
        ValueError: the folder holds other slides, or a split lacks dense or sparse patches.
    """
    table = folder / "table.csv"
    counts = {split: [patch.nuclei for patch in found] for split, found in patches.items()}
    recipe = json.dumps(
        {"task": task, "limits": limits if task == "label" else None, "slides": slides, "seed": seed, "patches": counts}
    )
    if folder.exists():
        if not (folder / "recipe.json").is_file() or (folder / "recipe.json").read_text() != recipe:
            raise ValueError(f"{folder} holds other slides; give another --out")
        return table
    with whole_folder(folder) as partial:
        rows = []
        for part, (split, count) in enumerate(slides.items()):
            rng = np.random.default_rng([seed, part, task == "count"])
            for number in range(count):
                if task == "count":
                    drawn, label = by_count(patches[split], rng)
                else:
                    drawn, label = by_label(patches[split], limits, number, rng)
                name = f"{split}_{number:03d}.tif"
                tifffile.imwrite(partial / name, _stitched(drawn, rng), tile=(SIDE, SIDE), photometric="rgb")
                rows.append((name, label, split))
        with (partial / table.name).open("w", newline="") as file:
            csv.writer(file).writerows([("path", "label", "split"), *rows])
        (partial / "recipe.json").write_text(recipe)
    return table


def by_label(
    patches: list[Patch], limits: tuple[int, int], number: int, rng: np.random.Generator
) -> tuple[list[Patch], str]:
    """Patches of a slide that is positive where its number is odd."""
    sparse = [patch for patch in patches if patch.nuclei < limits[0]]
    dense = [patch for patch in patches if patch.nuclei >= limits[1]]
    if not sparse or not dense:
        raise ValueError(
            f"{len(patches)} patches of a split: {len(sparse)} sparse, {len(dense)} dense; needed are both"
        )
    drawn = _drawn(sparse, ROWS * ROWS, rng)
    if number % 2 == 0:
        return drawn, "sparse"
    extra = int(rng.integers(1, 3))
    for place, patch in zip(rng.permutation(len(drawn))[:extra], _drawn(dense, extra, rng), strict=True):
        drawn[place] = patch
    return drawn, "dense"


def by_count(patches: list[Patch], rng: np.random.Generator) -> tuple[list[Patch], str]:
    """Patches of a slide, more or less of them from the fuller half, and the sum of their nuclei."""
    ordered = sorted(patches, key=lambda patch: patch.nuclei)
    half = len(ordered) // 2
    fuller = rng.random(ROWS * ROWS) < rng.random()
    drawn = [_drawn(ordered[half:] if each else ordered[:half], 1, rng)[0] for each in fuller]
    return drawn, str(sum(patch.nuclei for patch in drawn))


def _drawn(patches: list[Patch], count: int, rng: np.random.Generator) -> list[Patch]:
    return [patches[k] for k in rng.integers(0, len(patches), count)]


def _stitched(patches: list[Patch], rng: np.random.Generator) -> NDArray[np.uint8]:
    turned = [np.rot90(patch.pixels, int(rng.integers(4))) for patch in patches]
    turned = [pixels[:, ::-1] if rng.integers(2) else pixels for pixels in turned]
    grid = np.stack(turned).reshape(ROWS, ROWS, SIDE, SIDE, 3)
    return np.ascontiguousarray(grid.swapaxes(1, 2).reshape(ROWS * SIDE, ROWS * SIDE, 3))
