"""Images with constant parts, whose tiles are shared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from streamingcnn import signature
from streamingcnn.boxes import grid
from streamingcnn.ops.rule import along
from streamingcnn.sources import ArraySource, ConstantBlocks


@contextmanager
def small_cells() -> Iterator[None]:
    """Small images are divided into small cells, and any shared tile counts."""
    with patch.object(signature, "SMALLEST", 2), patch.object(signature, "WORTHWHILE", 1e-9):
        yield


class Known(ArraySource):
    """An image whose constant blocks are found by looking at every pixel."""

    def __init__(self, image: Tensor, side: int = 4) -> None:
        super().__init__(image, batched=True)
        extents = tuple(image.shape[2:])
        steps = (side,) * len(extents)
        values: dict[tuple[float, ...], int] = {}
        labels = []
        for box in grid(extents, steps):
            block = along(image, tuple(range(2, image.dim())), box).flatten(2)
            same = bool((block == block[..., :1]).all())
            labels.append(values.setdefault(tuple(block[..., 0].flatten().tolist()), len(values)) if same else -1)
        shape = [-(-extent // side) for extent in extents]
        self.blocks = ConstantBlocks(steps, np.array(labels).reshape(shape))

    def constant_blocks(self) -> ConstantBlocks:
        return self.blocks


def background(*shape: int, value: float = 0.3) -> Tensor:
    """Constant, one value per image and channel."""
    image = torch.full(shape, value, dtype=torch.float64)
    return image + torch.rand(*shape[:2], *(1,) * (len(shape) - 2), dtype=torch.float64)


def with_patch(image: Tensor, *box: tuple[int, int]) -> Tensor:
    """Normal random numbers in one box."""
    part = along(image, tuple(range(2, image.dim())), box)
    part.copy_(torch.randn_like(part))
    return image
