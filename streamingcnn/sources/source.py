"""What a source of pixels is: a shape, a type, and a way to read one box.

A slide of 100,000 x 100,000 pixels is 30 GB; it is read box by box and never exists as a whole. Whatever can
answer these few questions can stand for an image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch

from streamingcnn.boxes import Box

__all__ = ["ConstantBlocks", "ReadError", "Source", "constant_blocks_of", "said_by"]


@runtime_checkable
class Source(Protocol):
    """An image that is read by box.

    Example::

        image = open_image("slide.tif")
        top_left = image.read(((0, 512), (0, 512)))      # (3, 512, 512) uint8

    A streamed module takes one in place of an image of one: ``net(source)``. Boxes are read ahead in a thread beside
    the one that computes. What a source may have beside the attributes below:

    - ``constant_blocks() -> ConstantBlocks | None``: where its pixels are all the same; what the network computes on
      equal pixels is then computed once.
    - ``threads``: how many threads may read at the same time; 1 where it says nothing, 0 for none but the caller's.
    - ``source``: the source that it reads from, where it changes the pixels of another one.
    - ``mpp``: micrometres per pixel along each spatial axis.

    Attributes:
        shape: channels first, then the extent of every spatial axis in pixels.
        dtype: of the pixels that ``read`` gives.
        axes: one letter per axis of ``shape``, such as ``"CYX"``.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def axes(self) -> str: ...

    def read(self, box: Box) -> torch.Tensor:
        """The pixels of a box of half-open intervals, one per spatial axis, with all channels."""
        ...


@dataclass(frozen=True, eq=False)
class ConstantBlocks:
    """Which blocks of an image hold one value in every pixel.

    Example::

        # 2 x 2 blocks of 512 pixels: three of background, one of something else
        ConstantBlocks((512, 512), np.array([[0, 0], [0, -1]]))

    Attributes:
        steps: the size of a block along each spatial axis, in pixels; the last block of an axis may be smaller.
        labels: one integer per block: -1 where its pixels differ; else two blocks have the same label only where
            their pixels have the same value.
    """

    steps: tuple[int, ...]
    labels: npt.NDArray[np.int64]

    def check(self, extents: tuple[int, ...]) -> None:
        """Raise ValueError where the blocks do not cover an image of these extents."""
        wanted = tuple(-(-extent // step) for extent, step in zip(extents, self.steps, strict=True))
        if self.labels.shape != wanted:
            raise ValueError(
                f"constant blocks of {self.steps} pixels over an image of {extents} need labels of shape {wanted}; "
                f"got {self.labels.shape}"
            )

    @property
    def share(self) -> float:
        """The share of the blocks that are constant."""
        return float((self.labels >= 0).mean())


def constant_blocks_of(source: object) -> ConstantBlocks | None:
    """What a source says of its constant blocks; None where it says nothing."""
    say = getattr(source, "constant_blocks", None)
    found: ConstantBlocks | None = None if say is None else say()
    return found


def said_by(source: object, name: str, default: Any = None) -> Any:
    """What a source says of itself under a name, or the first one it reads from that says it.

    >>> from streamingcnn.sources import ArraySource, ScaledSource
    >>> image = ArraySource(torch.zeros(1, 8, 8))
    >>> image.mpp = (0.5, 0.5)
    >>> said_by(ScaledSource(image), "mpp")
    (0.5, 0.5)
    """
    return next((found for each in _chain(source) if (found := getattr(each, name, None)) is not None), default)


def _chain(source: object) -> Iterator[object]:
    """A source, the one that it reads from, and so on."""
    while source is not None:
        yield source
        source = getattr(source, "source", None)


class ReadError(OSError):
    """Pixels could not be read; the message names the file and the box."""
