"""Raw pixels as numbers that a network takes: bytes to floats, mean and standard deviation."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from streamingcnn.boxes import Box
from streamingcnn.sources.source import ConstantBlocks, Source, constant_blocks_of

__all__ = ["ScaledSource"]


class ScaledSource:
    """A source whose pixels are read as ``(pixel * scale - mean) / std``.

    Example::

        image = ScaledSource(open_image("slide.tif"), scale=1 / 255)         # float32 in [0, 1]
        image = ScaledSource(slide, 1 / 255, mean=(0.7, 0.6, 0.7), std=(0.2, 0.2, 0.2))

    Args:
        source: the image.
        scale: what raw pixels are multiplied by first.
        mean, std: one number, or one per channel, in scaled units.
        dtype: of the pixels that ``read`` gives.
    """

    def __init__(
        self,
        source: Source,
        scale: float = 1 / 255,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.source, self.scale, self.dtype = source, scale, dtype
        self.shape, self.axes = source.shape, source.axes
        space = len(source.axes.replace("N", "").replace("C", ""))
        self.mean, self.std = (torch.as_tensor(v, dtype=dtype).reshape(-1, *(1,) * space) for v in (mean, std))

    def constant_blocks(self) -> ConstantBlocks | None:
        """The source's own: equal pixels stay equal."""
        return constant_blocks_of(self.source)

    def read(self, box: Box) -> torch.Tensor:
        """The scaled pixels of a box."""
        return (self.source.read(box).to(self.dtype) * self.scale - self.mean) / self.std

    def __repr__(self) -> str:
        return f"ScaledSource({self.source!r}, scale={self.scale:.4g})"
