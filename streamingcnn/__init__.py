"""Train convolutional networks on images of any size, tile by tile, with exactly plain PyTorch's gradient."""

from .check import check
from .distributed import Partition
from .errors import UnsupportedModuleError
from .module import StreamingModule, stream
from .ops.registry import register_rule
from .plan.plan import Plan
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
