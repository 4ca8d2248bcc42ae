"""How long operations take on a device: a few measured constants, and the seconds of a box that follow from them.

An operation's seconds are its *units* (multiply-adds of a convolution, bytes moved of anything else) times a rate,
and a constant per call. The rate depends on the kind of operation and on how many bytes it touches: what stays in a
cache runs fast, what does not waits for memory, and a large fresh tensor costs a page fault every 4 KiB.

    ns a unit |                  ____
              |            _____/        rates are measured at four sizes and interpolated between them
              |___________/
              +------------------------  log(bytes of input and result)
               1 MiB   8    48   160

That is why streaming can beat plain PyTorch: its tiles stay to the left. The built-in constants are those of one
thread of an AMD EPYC; ``calibrate()`` measures a device's own and keeps them in the user's cache folder.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..graph import Local
from ..ops.axes import Window

Array = NDArray[np.float64]

#: Bytes of input and result together at which rates are measured.
SIZES = tuple(mib << 20 for mib in (1, 8, 48, 160))


@dataclass(frozen=True)
class Rate:
    """Nanoseconds a unit at each of :data:`SIZES`, forward and backward."""

    forward: tuple[float, ...]
    backward: tuple[float, ...]


@dataclass(frozen=True)
class Times:
    """The constants of one device.

    Attributes:
        rates: by kind of operation.
        call: seconds that a call of an operation takes however small it is, in forward; in backward twice that.
        tile: seconds that a tile takes beside its operations.
    """

    rates: dict[str, Rate]
    call: float = 8e-6
    tile: float = 150e-6
    source: str = "built in"
    _tables: dict[tuple[str, bool], Array] = field(default_factory=dict, init=False, repr=False, compare=False)

    def rate(self, kind: str, backward: bool, size: Array) -> Array:
        """Seconds a unit for operations that touch so many bytes."""
        key = (kind, backward)
        if key not in self._tables:
            rate = self.rates[kind]
            self._tables[key] = np.asarray(rate.backward if backward else rate.forward) * 1e-9
        return np.interp(np.log2(np.maximum(size, 1.0)), _LOG_SIZES, self._tables[key])


_LOG_SIZES = np.log2(np.asarray(SIZES, dtype=np.float64))
_EXPENSIVE = {"gelu", "silu", "mish", "hardswish", "exp", "log", "tanh", "sigmoid", "elu", "softplus", "pow", "erf"}
_FREE = {"view", "permute", "transpose", "slice", "select", "detach", "unsqueeze", "squeeze", "expand", "alias"}


def kind_of(node: Local) -> str:
    """Which of the measured kinds an operation is most like."""
    op, space = node.op, max(2, len(node.value.extents))
    if op in ("conv1d", "conv2d", "conv3d", "convolution"):
        return _kind_of_convolution(node, space)
    if "transpose" in op and "conv" in op:
        return f"transposed convolution {space}d"
    if "max_pool" in op:
        return f"max pool {space}d"
    if "avg_pool" in op:
        return "average pool"
    if op.startswith("upsample"):
        return "nearest" if "nearest" in op else f"interpolation {space}d"
    if "batch_norm" in op or "norm" in op:
        return "layer norm" if "layer" in op else "affine"
    if op in ("linear", "matmul", "addmm"):
        return f"1x1 convolution {space}d"
    if op == "cat" or "pad" in op:
        return "copy"
    if node.rule.work == 0 or op in _FREE:
        return "free"
    return "transcendental" if op in _EXPENSIVE else "pointwise"


def _kind_of_convolution(node: Local, space: int) -> str:
    (read, *_) = node.rule.reads
    maps = [m for m in read.maps if isinstance(m, Window)]
    channels_in, kernel = read.value.shape[1], prod(m.kernel for m in maps)
    if node.rule.work <= kernel and channels_in > 1:
        return f"depthwise convolution {space}d"
    if channels_in <= 4:
        return f"first convolution {space}d"
    if kernel == 1:
        return f"1x1 convolution {space}d"
    return f"strided convolution {space}d" if any(m.stride > 1 for m in maps) else f"convolution {space}d"


def units_of(node: Local, kind: str) -> float:
    """Multiply-adds per element of the result, or 0 for operations that are counted by bytes moved."""
    return node.rule.work if "convolution" in kind else 0.0


#: One thread of an AMD EPYC (1 MiB of L2, 32 MiB of L3), torch 2.13, float32.
BUILT_IN = Times(
    {
        "convolution 2d": Rate((0.0085, 0.0082, 0.0082, 0.0112), (0.0184, 0.0215, 0.0235, 0.0240)),
        "1x1 convolution 2d": Rate((0.0185, 0.0200, 0.0227, 0.0326), (0.0428, 0.0499, 0.0520, 0.0700)),
        "strided convolution 2d": Rate((0.0089, 0.0088, 0.0090, 0.0120), (0.0204, 0.0285, 0.0609, 0.0672)),
        "first convolution 2d": Rate((0.0085, 0.0085, 0.0170, 0.0201), (0.0113, 0.0143, 0.0142, 0.0140)),
        "depthwise convolution 2d": Rate((0.0181, 0.0150, 0.0185, 0.0584), (0.1766, 0.2023, 0.4189, 0.5646)),
        "transposed convolution 2d": Rate((0.0123, 0.0090, 0.0300, 0.0348), (0.0265, 0.0273, 0.0395, 0.0549)),
        "convolution 3d": Rate((0.0150, 0.0130, 0.0130, 0.0190), (0.0290, 0.0275, 0.0340, 0.0400)),
        "1x1 convolution 3d": Rate((0.0266, 0.0284, 0.0735, 0.0893), (0.0876, 0.1150, 0.1975, 0.3944)),
        "strided convolution 3d": Rate((0.0087, 0.0103, 0.0179, 0.0259), (0.0280, 0.0309, 0.0625, 0.0758)),
        "first convolution 3d": Rate((0.0560, 0.0900, 0.1000, 0.2000), (0.5800, 0.1700, 0.1400, 0.2000)),
        "depthwise convolution 3d": Rate((0.0497, 0.0607, 0.4234, 0.4515), (1.2710, 1.2710, 1.2710, 1.3566)),
        "transposed convolution 3d": Rate((0.0265, 0.0500, 0.1400, 0.1553), (0.0304, 0.0419, 0.1255, 0.1300)),
        "pointwise": Rate((0.0100, 0.0106, 0.0189, 0.2139), (0.0250, 0.0260, 0.0432, 0.2200)),
        "transcendental": Rate((0.0480, 0.0459, 0.0476, 0.2624), (0.0820, 0.0784, 0.0822, 0.3236)),
        "affine": Rate((0.0210, 0.0212, 0.0240, 0.2479), (0.0480, 0.0402, 0.1200, 0.2700)),
        "layer norm": Rate((0.1300, 0.1243, 0.1310, 0.3487), (0.0426, 0.0428, 0.0508, 0.2876)),
        "statistics": Rate((0.1850, 0.1969, 0.4000, 0.8000), (0.0500, 0.0600, 0.1200, 0.3000)),
        "copy": Rate((0.0120, 0.0110, 0.0242, 0.2925), (0.0250, 0.0220, 0.0312, 0.0340)),
        "max pool 2d": Rate((0.0606, 0.0600, 0.0669, 0.1300), (0.0700, 0.0900, 0.2500, 0.3884)),
        "max pool 3d": Rate((0.7074, 0.7350, 0.7355, 0.8291), (0.0595, 0.0932, 0.3000, 0.4143)),
        "average pool": Rate((0.0212, 0.0210, 0.0308, 0.0337), (0.0427, 0.0511, 0.0800, 0.3661)),
        "nearest": Rate((0.0195, 0.0156, 0.2000, 0.3547), (0.0318, 0.0366, 0.0400, 0.0465)),
        "interpolation 2d": Rate((0.0378, 0.0349, 0.0469, 0.3658), (0.0716, 0.0767, 0.0859, 0.0887)),
        "interpolation 3d": Rate((0.9659, 0.8576, 0.8600, 1.1936), (0.9500, 0.9500, 0.9500, 0.9500)),
    }
)


def times_of(device: torch.device) -> Times:
    """The constants of a device: its own where ``calibrate()`` has measured them, else the built-in ones."""
    return _times(str(cache_file(device)), torch.get_num_threads())


@lru_cache(maxsize=16)
def _times(path: str, threads: int) -> Times:
    try:
        stored = json.loads(Path(path).read_text())
        rates = {
            kind: Rate(tuple(given["forward"]), tuple(given["backward"])) for kind, given in stored["rates"].items()
        }
        if rates.keys() == BUILT_IN.rates.keys() and all(
            len(sizes) == len(SIZES) for rate in rates.values() for sizes in (rate.forward, rate.backward)
        ):
            return Times(rates, float(stored["call"]), float(stored["tile"]), path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # absent, or of another version: measured again by the next calibration
    return Times({kind: _shared(rate, threads) for kind, rate in BUILT_IN.rates.items()})


def _shared(rate: Rate, threads: int) -> Rate:
    """A rate of one thread, as if several shared the work evenly."""
    return Rate(tuple(r / threads for r in rate.forward), tuple(r / threads for r in rate.backward))


def cache_file(device: torch.device) -> Path:
    """Where a device's constants are kept: one file per device and number of threads, in the user's cache folder."""
    if sys.platform == "win32":
        folder = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        folder = Path.home() / "Library" / "Caches"
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu-{torch.get_num_threads()}-threads"
    return folder / "streamingcnn" / f"times-{name.replace(' ', '-')}.json"


def forget() -> None:
    """Read the constants anew: they were measured again."""
    _times.cache_clear()
