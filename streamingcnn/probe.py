"""Refusing at wrapping what cannot be streamed, before any image is there.

A graph needs a shape. Where a module has code of its own, a likely one is tried: the channels and axes of its first
convolution, at a usual size. Only a refusal counts; a size that the module does not take is no problem yet, and the
first real image is captured anew in any case. A module made of layers that are known to stream is not tried, nor is one
that was, as it is now: wrapping it again, for another budget say, is at once.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable
from weakref import WeakKeyDictionary

import torch
from torch import nn

from .capture import capture
from .errors import UnsupportedModuleError
from .fingerprint import capture_key

logger = logging.getLogger(__name__)
#: A usual size by number of spatial axes.
SIZES = {1: 4096, 2: 256, 3: 64}
_CONV = nn.modules.conv._ConvNd
#: Layers that stream whatever their arguments, and containers whose forward is a chain.
KNOWN = (
    _CONV, nn.Sequential, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.Identity, nn.Dropout,
    nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm, nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd, nn.Flatten, nn.Linear, nn.Upsample, nn.PixelShuffle, nn.PixelUnshuffle,
    nn.modules.padding._ConstantPadNd, nn.modules.padding._ReflectionPadNd, nn.modules.padding._ReplicationPadNd,
)  # fmt: skip
#: What each module was when it was tried and not refused.
_TRIED: WeakKeyDictionary[nn.Module, Hashable] = WeakKeyDictionary()


def refuse_early(module: nn.Module) -> None:
    """Raise :class:`UnsupportedModuleError` for a module that cannot be streamed, if that shows without an image."""
    layers = list(module.modules())
    hooked = any(m._backward_hooks or m._backward_pre_hooks for m in layers[1:])
    if not hooked and all(isinstance(m, KNOWN) or _plain_max_pool(m) for m in layers):
        return
    first = next((m for m in layers if isinstance(m, _CONV) and not m.transposed), None)
    if first is None:
        return
    space = len(first.kernel_size)
    # Not `first.weight`: looking at a parametrised weight computes it, and a spectral norm then moves on a step.
    dtype = next(first.parameters()).dtype
    likely = torch.empty((1, first.in_channels, *[SIZES[space]] * space), dtype=dtype, device="meta")
    try:
        key = capture_key(module, (likely,), {})
        if _TRIED.get(module) == key:
            return
        capture(module, (likely,), {})
        _TRIED[module] = key
    except UnsupportedModuleError:
        raise
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        logger.debug("%s was not tried before its first image: %s", type(module).__name__, error)


def _plain_max_pool(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.pooling._MaxPoolNd) and not module.return_indices
