"""Synthetic mammograms for one seed: training, validation and test images that have none in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from streamingcnn.mammography import standardised
from streamingcnn.synthetic.mammograms import make_mammogram

#: Each split draws its images from seeds of its own.
STARTS = {"train": 0, "validation": 100_000, "test": 200_000}


@dataclass(frozen=True)
class Split:
    """Images (1, H, W), standardised; masks (N, 2, H, W); labels (N, 2), benign and malignant."""

    names: list[str]
    images: list[Tensor]
    masks: NDArray[np.bool_]
    labels: Tensor

    def smaller(self, factor: int) -> Split:
        """The same images at a part of their resolution, by averages; masks stay as they are."""
        images = [F.avg_pool2d(image, factor) for image in self.images]
        return Split(self.names, images, self.masks, self.labels)


def make_split(
    name: str, count: int, seed: int, *, size: Sequence[int], diameters: Sequence[float], contrast: float
) -> Split:
    """A quarter of the images each has no lesion, a benign one, a malignant one, and both."""
    images, masks, labels, names = [], [], [], []
    for number in tqdm(range(count), f"{name} images", leave=False):
        made = make_mammogram(
            1_000_000 * seed + STARTS[name] + number,
            benign=number % 2 == 1,
            malignant=number // 2 % 2 == 1,
            size=(size[0], size[1]),
            diameters=(diameters[0], diameters[1]),
            contrast=contrast,
        )
        names.append(f"{name}_{number:03d}")
        images.append(torch.from_numpy(standardised(made.image))[None])
        masks.append(made.masks)
        labels.append(made.labels)
    return Split(names, images, np.stack(masks), torch.tensor(labels, dtype=torch.float32))
