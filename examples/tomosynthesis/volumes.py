"""Synthetic volumes of a split, drawn once and held as half floats; a quarter each of no, either and both kinds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from streamingcnn.synthetic.tomosynthesis import Volume, make_volume
from streamingcnn.training.examples import Images

#: Where the seeds of each split's volumes begin; no volume is in two splits, and those of a pilot are in none.
FIRST = {"train": 0, "validation": 100_000, "test": 400_000}  # 200,000 and 300,000: earlier studies


def drawn(split: str, settings: dict[str, Any], first: int = 0) -> list[Volume]:
    """The volumes of a split, which are rendered when they are asked for."""
    kinds = [(bool(n // 2 % 2), bool(n % 2)) for n in range(settings[split])]
    options = {key: settings[key] for key in ("contrast", "lines")}
    options |= {key: tuple(settings[key]) for key in ("size", "diameters")}
    return [
        make_volume(first + FIRST[split] + n, benign=benign, malignant=malignant, **options)
        for n, (benign, malignant) in enumerate(kinds)
    ]


def examples(volumes: Sequence[Volume], split: str) -> Images:
    """Volumes in memory with their labels, for the training loop."""
    images = [torch.from_numpy(each.array().astype(np.float16))[None] for each in tqdm(volumes, f"{split} volumes")]
    names = [f"{split}_{number:03d}" for number in range(len(volumes))]
    return Images(images, [each.labels for each in volumes], names, prepare=standardised)


def standardised(volumes: Tensor) -> Tensor:
    """(N, 1, D, H, W) with the mean 0 and the deviation 1 over each whole volume."""
    volumes = volumes.float()
    axes = (1, 2, 3, 4)
    return (volumes - volumes.mean(axes, keepdim=True)) / volumes.std(axes, keepdim=True)
