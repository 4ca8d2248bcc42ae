"""H&E patches of 256 x 256 pixels with the number of their nuclei: from a folder, or made.

stage1_train/                 (BBBC038)       he_nuclei/
  ID/images/ID.png                              ID.png
  ID/masks/*.png   one for each nucleus         ID_nuclei.png    0, then a number for each nucleus
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from streamingcnn.synthetic import make_slide

SIDE = 256
#: Images whose channels differ less than this on average are fluorescence or grey, and no H&E.
COLOURED = 10
#: Of ten neighbours by count: how many go to each split.
SHARES = {"train": 5, "validation": 2, "test": 3}
#: Of the split. It is no option: what was tested on must stay out of every training, whatever its seed.
SPLIT_SEED = 38


@dataclass(frozen=True)
class Patch:
    """Pixels (256, 256, 3), how many nuclei have their middle in them, and the image that they come from."""

    pixels: NDArray[np.uint8]
    nuclei: int
    image: str


def read_patches(folder: Path) -> list[Patch]:
    """The patches of a folder: every image is cut into as many as fit, around its middle.

    Raises:
        ValueError: the folder has neither layout, or no coloured image of 256 x 256 pixels or more.
    """
    found = []
    for name, pixels, middles in _images(folder):
        height, width = pixels.shape[:2]
        if min(height, width) < SIDE or np.ptp(pixels.astype(np.int16), axis=2).mean() < COLOURED:
            continue
        for top in _starts(height):
            for left in _starts(width):
                inside = (middles >= (top, left)).all(1) & (middles < (top + SIDE, left + SIDE)).all(1)
                found.append(Patch(pixels[top : top + SIDE, left : left + SIDE], int(inside.sum()), name))
    if not found:
        raise ValueError(
            f"{folder} has no H&E patches: needed are ID/images/ID.png with ID/masks/*.png (as in BBBC038's "
            f"stage1_train), or ID.png with ID_nuclei.png, in colour and of {SIDE} x {SIDE} pixels or more"
        )
    return found


def made_patches(count: int = 106, seed: int = 0) -> list[Patch]:
    """Patches of synthetic tissue: a share of the nuclei is kept, and all stain is strong or weak by chance."""
    made = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        slide = make_slide(seed * 100_000 + number, tumour=False, size=(3 * SIDE, 3 * SIDE))
        kept = rng.random(len(slide.nuclei)) < np.exp(rng.uniform(np.log(0.03), 0))
        strength = np.exp(rng.uniform(np.log(0.4), np.log(1.5), (2, 1)))
        nuclei = slide.nuclei[kept]
        slide = replace(slide, nuclei=nuclei, atypical=slide.atypical[kept], stains=slide.stains * strength)
        inside = ((nuclei[:, :2] >= SIDE) & (nuclei[:, :2] < 2 * SIDE)).all(1)
        made.append(Patch(slide.tile(1, 1), int(inside.sum()), f"made_{number}"))
    return made


def split_patches(patches: list[Patch]) -> dict[str, list[Patch]]:
    """Patches by split: images are ordered by count, and of each ten neighbours 5, 2 and 3 go to each.

    All patches of an image go to the same split.
    """
    images: dict[str, list[Patch]] = {}
    for patch in patches:
        images.setdefault(patch.image, []).append(patch)
    most = sorted(images, key=lambda name: (-max(patch.nuclei for patch in images[name]), name))
    slots = [split for split, share in SHARES.items() for _ in range(share)]
    rng = np.random.default_rng(SPLIT_SEED)
    found: dict[str, list[Patch]] = {split: [] for split in SHARES}
    for start in range(0, len(most), len(slots)):
        for name, slot in zip(most[start : start + len(slots)], rng.permutation(len(slots)), strict=False):
            found[slots[slot]] += images[name]
    return found


def share_below(patches: list[Patch], share: float) -> int:
    """The number of nuclei that this share of the patches stays below."""
    return int(np.ceil(np.quantile([patch.nuclei for patch in patches], share)))


def _images(folder: Path) -> Iterator[tuple[str, NDArray[np.uint8], NDArray[np.float64]]]:
    """Name, pixels and the middles of nuclei, (n, 2), of every image."""
    for labelled in sorted(folder.glob("*_nuclei.png")):
        name = labelled.name.removesuffix("_nuclei.png")
        labels = np.asarray(Image.open(labelled))
        yield name, _colours(folder / f"{name}.png"), _middles(labels)
    for path in sorted(folder.glob("*/images/*.png")):
        masks = (np.asarray(Image.open(mask).convert("L")) > 0 for mask in path.parents[1].glob("masks/*.png"))
        yield path.stem, _colours(path), np.concatenate([np.empty((0, 2)), *map(_middles, masks)])


def _middles(labels: NDArray[np.generic]) -> NDArray[np.float64]:
    """Of every nucleus, (n, 2), in an image that holds its number in its pixels."""
    where = np.argwhere(labels)
    _, number, pixels = np.unique(labels[labels != 0], return_inverse=True, return_counts=True)
    return np.stack([np.bincount(number, where[:, axis]) for axis in (0, 1)], axis=1) / pixels[:, None]


def _colours(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path).convert("RGB"))


def _starts(extent: int) -> range:
    """Where patches start along an axis, with the same rest on both sides."""
    rest = extent % SIDE
    return range(rest // 2, extent - SIDE + 1, SIDE)
