"""A part of an image, in place of all of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Part"]


@dataclass(frozen=True, eq=False)
class Part:
    """The box of an image that one rank has, made by :meth:`streamingcnn.Partition.part`.

    Attributes:
        tensor: the pixels, (batch, channels, *space of the box).
        shape: the shape of the whole image.
    """

    tensor: Tensor
    shape: tuple[int, ...]
