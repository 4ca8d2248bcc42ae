"""A row of the table: a network, the image it is given, and how it is cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Tile = int | tuple[int, ...]

LINE, PLANE, VOLUME = (3, 61), (3, 37, 45), (2, 15, 18, 13)

# Per number of axes: smaller than most receptive fields, unequal sides, and a few tiles only.
TILES: dict[int, tuple[Tile, ...]] = {1: (4, 13, 32), 2: (8, (16, 11), 28), 3: (6, (9, 5, 16), 10)}


@dataclass(frozen=True)
class Network:
    """One row of the table."""

    name: str
    build: Callable[[], nn.Module]
    image: tuple[int, ...] = PLANE
    tiles: tuple[Tile, ...] = ()
    train: bool = True
    #: Further inputs, given the batch size: tensors in float64, by name.
    more: Callable[[int], dict[str, Any]] = lambda batch: {}
    #: Slow to capture: batch 1 and 3 share out the three tilings instead of taking each.
    large: bool = False

    def make(self) -> nn.Module:
        """Build it in float64, with nothing left at a value (0 or 1) that would hide a mistake."""
        module = self.build().double().train(self.train)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if name.endswith("bias") or bool((parameter == parameter.flatten()[0]).all()):
                    parameter.copy_(torch.rand_like(parameter) + 0.5)
            for name, buffer in module.named_buffers():
                if name.endswith(("running_mean", "running_var")):
                    buffer.copy_(torch.rand_like(buffer) + 0.5)
        return module

    def inputs(self, batch: int) -> tuple[Tensor, dict[str, Any]]:
        """Give the image, normal random numbers without ties, and the further inputs."""
        return torch.randn(batch, *self.image, dtype=torch.float64), self.more(batch)

    def cases(self) -> list[tuple[int, Tile]]:
        """List the (batch, tile) pairs to run."""
        tiles = self.tiles or TILES[len(self.image) - 1]
        if self.large:
            return [(1 + 2 * (i % 2), tile) for i, tile in enumerate(tiles)]
        return [(batch, tile) for batch in (1, 3) for tile in tiles]


def rows(*modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(*modules)


def between(layer: Callable[[], nn.Module], channels: int = 4) -> Callable[[], nn.Module]:
    """Put a layer between two convolutions, so that its own gradient and the one through it are tested."""
    return lambda: rows(nn.Conv2d(3, 4, 3, padding=1), layer(), nn.Conv2d(channels, 2, 3, padding=1))
