"""An image whose background is made one value, before the network sees it.

Nine tenths of a slide are glass, and no two pixels of glass are quite alike. Where a low-resolution mask says that
there is no tissue, the pixels become one stated value: the network then computes all of the background once (see
pages.py), and the file is not read there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from streamingcnn.boxes import Box, intersect, relative
from streamingcnn.sources.source import ConstantBlocks, Source, constant_blocks_of

__all__ = ["MaskedSource"]


class MaskedSource:
    """A source with everything outside a mask set to a fill value.

    Example::

        slide = open_image("slide.tif")                          # (3, 65536, 65536)
        tissue = np.load("tissue.npy")                           # (128, 128) bool: a pixel stands for 512 x 512
        image = MaskedSource(slide, tissue, fill=255)
        net(image).backward()

    Args:
        source: the image.
        mask: True where the image is kept; one axis per spatial axis of the image. A pixel of it stands for a block
            of ``steps`` pixels of the image.
        fill: the value outside, in the source's own units: one number, or one per channel.
        steps: the size of a block per axis; None: the image's extent over the mask's, rounded up.
        outside: "fill" sets pixels outside the mask to the fill value, and exactness is that of the filled image;
            "keep" leaves them as they are, and the whole image is read and computed.

    Raises:
        ValueError: the mask's blocks do not cover the image.
    """

    def __init__(
        self,
        source: Source,
        mask: npt.ArrayLike,
        fill: float | Sequence[float],
        steps: Sequence[int] | None = None,
        outside: Literal["fill", "keep"] = "fill",
    ) -> None:
        if outside not in ("fill", "keep"):
            raise ValueError(f"outside={outside!r}; needed is 'fill' or 'keep'")
        kept = np.asarray(mask).astype(bool)
        extents = tuple(source.shape[len(source.shape) - kept.ndim :])
        if not kept.size or kept.ndim > len(source.shape) - 1:
            raise ValueError(f"a mask of shape {kept.shape} does not fit an image of shape {tuple(source.shape)}")
        if steps is None:
            steps = tuple(-(-extent // size) for extent, size in zip(extents, kept.shape, strict=True))
        self.source, self.mask, self.steps, self.outside = source, kept, tuple(steps), outside
        self.shape, self.dtype, self.axes = source.shape, source.dtype, source.axes
        values = torch.as_tensor(fill, dtype=source.dtype).reshape(-1, *(1,) * kept.ndim)
        self.fill = values.expand(source.shape[-kept.ndim - 1], *values.shape[1:])
        self.blocks = ConstantBlocks(self.steps, np.where(kept, -1, 0))
        self.blocks.check(extents)

    def constant_blocks(self) -> ConstantBlocks | None:
        """Everything outside the mask, where it is filled; else what the image itself says."""
        return self.blocks if self.outside == "fill" else constant_blocks_of(self.source)

    @property
    def filled(self) -> str:
        """What is done with pixels outside the mask, in words."""
        values = ", ".join(f"{value:g}" for value in dict.fromkeys(self.fill.flatten().tolist()))
        done = f"set to {values}" if self.outside == "fill" else "kept"
        return f"{1 - self.mask.mean():.1%} of the image, outside its mask, {done}"

    def read(self, box: Box) -> torch.Tensor:
        """The pixels of a box; the source is read once, over the hull of what is kept there."""
        if self.outside == "keep":
            return self.source.read(box)
        leading = self.shape[: len(self.shape) - len(box)]
        lengths = [high - low for low, high in box]
        filled = self.fill.expand(*leading, *lengths)
        blocks = tuple(slice(low // s, -(-high // s)) for (low, high), s in zip(box, self.steps, strict=True))
        places = np.argwhere(self.mask[blocks])
        if not len(places):
            return filled.clone()
        kept = self._pixels(places.min(0), places.max(0) + 1, blocks)
        inner = intersect(kept, box)
        assert inner is not None
        made = filled.clone()
        at: Any = (..., *(slice(low, high) for low, high in relative(inner, box)))
        inside = torch.from_numpy(self._mask_at(inner))
        made[at] = torch.where(inside, self.source.read(inner), made[at])
        return made

    def _pixels(self, first: npt.NDArray[np.intp], last: npt.NDArray[np.intp], blocks: tuple[slice, ...]) -> Box:
        return tuple(
            ((s.start + int(a)) * step, (s.start + int(b)) * step)
            for a, b, s, step in zip(first, last, blocks, self.steps, strict=True)
        )

    def _mask_at(self, box: Box) -> npt.NDArray[np.bool_]:
        """The mask over a box, in pixels of the image."""
        index = [np.arange(low, high) // step for (low, high), step in zip(box, self.steps, strict=True)]
        return self.mask[np.ix_(*index)]

    def __repr__(self) -> str:
        return f"MaskedSource({self.source!r}, {self.mask.mean():.0%} kept)"
