"""Train convolutional networks on images of any size, tile by tile, with exactly plain PyTorch's gradient."""

from .errors import UnsupportedModuleError
from .module import StreamingModule, stream
from .ops.registry import register_rule
from .plan.plan import Plan

__all__ = [
    "Plan",
    "StreamingModule",
    "UnsupportedModuleError",
    "register_rule",
    "stream",
]
