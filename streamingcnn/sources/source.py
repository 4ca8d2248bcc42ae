"""What a source of pixels is: a shape, a type, and a way to read one box.

A slide of 100,000 x 100,000 pixels is 30 GB; it is read box by box and never exists as a whole. Whatever can
answer these few questions can stand for an image.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch

from streamingcnn.boxes import Box

__all__ = ["ReadError", "Source"]


@runtime_checkable
class Source(Protocol):
    """An image that is read by box.

    Example::

        image = open_image("slide.tif")
        top_left = image.read(((0, 512), (0, 512)))      # (3, 512, 512) uint8

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


class ReadError(OSError):
    """Pixels could not be read; the message names the file and the box."""
