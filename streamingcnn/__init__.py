"""Train convolutional networks on images of any size, tile by tile, with exactly plain PyTorch's gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .check import check
from .distributed import Partition
from .errors import UnsupportedModuleError
from .module import StreamingModule, stream
from .ops.registry import register_rule
from .plan.plan import Plan

if TYPE_CHECKING:
    from .sources import open_image

__all__ = [
    "Partition",
    "Plan",
    "StreamingModule",
    "UnsupportedModuleError",
    "check",
    "open_image",
    "register_rule",
    "stream",
]


def __getattr__(name: str) -> object:
    if name != "open_image":  # its libraries are imported when it is first asked for
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .sources import open_image

    return open_image
