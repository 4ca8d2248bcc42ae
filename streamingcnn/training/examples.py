"""What a network is trained on: images by number, turned and tinted by the draw of an epoch, and their labels."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from streamingcnn.slides.stain import standardised
from streamingcnn.sources.source import Source

__all__ = ["Draw", "Examples", "Images", "drawn"]


@dataclass(frozen=True)
class Draw:
    """How one image looks in one epoch: quarter turns, a reflection, and each channel's gain and offset."""

    quarters: int = 0
    mirror: bool = False
    gain: tuple[float, ...] = (1.0, 1.0, 1.0)
    offset: tuple[float, ...] = (0.0, 0.0, 0.0)


def drawn(seed: int, epoch: int, name: str, flips: bool = True, jitter: float = 0.0) -> Draw:
    """The draw of an image in an epoch; it depends on these and on nothing that happened before.

    >>> drawn(0, 1, "slide_1") == drawn(0, 1, "slide_1")
    True

    So a run that is resumed, or that skipped a slide, sees what it would have seen.
    """
    source = random.Random(f"{seed} {epoch} {name}")
    turn = source.randrange(8) if flips else 0
    gain = tuple(1 + source.uniform(-jitter, jitter) for _ in range(3))
    offset = tuple(source.uniform(-jitter, jitter) for _ in range(3))
    return Draw(turn % 4, turn >= 4, gain, offset)


class Examples(Protocol):
    """Images and labels by number."""

    @property
    def names(self) -> Sequence[str]:
        """One name per image; no two are the same."""
        ...

    @property
    def targets(self) -> Tensor:
        """The labels of each image, (N,), or (N, labels) where there are several."""
        ...

    def image(self, number: int, draw: Draw) -> Tensor | Source:
        """An image as the network takes it: (channels, height, width) or a source.

        Raises:
            OSError, ValueError: it cannot be read; the message says why.
        """
        ...

    def close(self, image: Tensor | Source) -> None:
        """Let go of an image that was given."""
        ...


class Images:
    """Images that are in memory, (channels, height, width), or volumes, (channels, depth, height, width).

    >>> examples = Images([torch.randint(0, 200, (3, 8, 8), dtype=torch.uint8)], [1])
    >>> examples.image(0, Draw(quarters=1)).shape
    torch.Size([3, 8, 8])

    Args:
        images: uint8 of slides; what ``prepare`` takes of others.
        labels: a number, or several, for each.
        names: one for each, no two the same; without, their numbers.
        prepare: what is done with a batch before the network sees it; a slide is standardised by its own tissue. None:
            images are as the network takes them.
    """

    def __init__(
        self,
        images: Sequence[Tensor],
        labels: Sequence[float] | Sequence[Sequence[float]],
        names: Sequence[str] = (),
        *,
        prepare: Callable[[Tensor], Tensor] | None = standardised,
    ) -> None:
        if len(images) != len(labels):
            raise ValueError(f"{len(images)} images and {len(labels)} labels: there must be one label per image")
        self.images, self.prepare = images, prepare
        self.targets = torch.tensor(labels, dtype=torch.float32)
        self.names = list(names) or [str(number) for number in range(len(images))]

    def image(self, number: int, draw: Draw) -> Tensor:
        """An image, turned; of one that is not square, quarter turns are left out, so that batches stack."""
        pixels = self.images[number]
        quarters = draw.quarters if pixels.shape[-1] == pixels.shape[-2] else draw.quarters // 2 * 2
        pixels = torch.rot90(pixels, quarters, (-2, -1))
        pixels = pixels.flip(-1) if draw.mirror else pixels
        return pixels if self.prepare is None else self.prepare(pixels[None])[0]

    def close(self, image: Tensor | Source) -> None:
        """Nothing is held."""
