"""How long operations take on a device: a few measured constants, and the seconds of a box that follow from them.

An operation's seconds are its *units* (multiply-adds of a convolution, bytes moved of anything else) times a rate,
and a constant per call. The rate depends on the kind of operation and on how many bytes it touches: what stays in a
cache runs fast, what does not waits for memory, and a large fresh tensor costs a page fault every 4 KiB.

    ns a unit |                  ____
              |            _____/        rates are measured at four sizes and interpolated between them
              |___________/
              +------------------------  log(bytes of input and result)
               1 MiB   8    48   160

That is why streaming can beat plain PyTorch: its tiles stay to the left. A convolution's rate also depends on how many
channels it has, in two ways:

- A processor multiplies so many numbers at once (*lanes*): 8 channels take as long as 16 where it takes 16.
- Whatever its channels, each number of its input and result is moved, and brought into another order where the image is
  contiguous. So a convolution is measured with many channels and with few, and its rate lies between the two as its
  multiply-adds for every byte do.

Rates are measured once for contiguous images and once for channels_last. The built-in ones are those of one thread of
an AMD EPYC; ``calibrate()`` measures a device's own and keeps them in the user's cache folder.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..graph import Local
from ..ops.axes import Window
from .rates import BUILT_IN_RATES, FEW, SIZES, Rate

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Times:
    """The constants of one device.

    Attributes:
        rates: by kind of operation.
        call: seconds that a call of an operation takes however small it is, in forward; in backward twice that.
        tile: seconds that a tile takes beside its operations.
        lanes: channels of a convolution are padded to a multiple of it.
    """

    rates: dict[str, Rate]
    call: float = 8e-6
    tile: float = 150e-6
    source: str = "built in"
    lanes: int = 1

    @cached_property
    def _tables(self) -> dict[str, Array]:
        """By kind, the seconds a unit at each of the sizes: (4 sizes, forward and backward)."""
        return {kind: np.array([rate.forward, rate.backward]).T * 1e-9 for kind, rate in self.rates.items()}

    @cached_property
    def _few(self) -> dict[str, tuple[float, float]]:
        """Of kinds that are measured with few channels too: the multiply-adds for every byte, of few and of many."""
        return {
            kind: (few.intensity(few.channels, self.lanes), few.intensity(few.many_channels, self.lanes))
            for kind, few in FEW.items()
        }

    def rate(self, kinds: Sequence[str], size: Array) -> Array:
        """Seconds a unit for operations that touch so many bytes: (forward and backward, *sizes, kinds)."""
        tables = np.array([self._tables[kind] for kind in kinds]).transpose(1, 2, 0)
        tables = tables.reshape(len(SIZES), 2, *(1,) * (size.ndim - 1), len(kinds))
        logs = np.log2(np.maximum(size, 1.0))
        rates: Array = tables[0] + np.zeros_like(logs)
        for low, high, before, after in zip(_LOG_SIZES, _LOG_SIZES[1:], tables, tables[1:], strict=False):
            rates += (after - before) * np.minimum(np.maximum((logs - low) / (high - low), 0.0), 1.0)
        return rates

    def seconds(self, kinds: Sequence[str], size: Array, units: Array, moved: Array) -> Array:
        """Seconds of operations that touch ``size`` bytes at a time: (forward and backward, *sizes, kinds).

        Args:
            kinds: what they are (:func:`kind_of`), along the last axis of all others.
            size: bytes that one call touches.
            units: multiply-adds of a convolution (:func:`units_of`), or bytes moved, in forward and in backward.
            moved: bytes moved by all calls.
        """
        rates = self.rate(kinds, size)
        few = [k for k, kind in enumerate(kinds) if kind in FEW]
        if few:
            low, high = np.array([self._few[kinds[k]] for k in few]).T
            # Multiply-adds a byte; with fewer than measured it is the bytes alone that take their time.
            intensity = np.maximum(units[..., few], 1e-9) / np.maximum(moved[..., few], 1e-9)
            many = np.clip(np.log2(intensity / low) / np.log2(high / low), 0.0, 1.0)
            scarce = np.maximum(low / intensity, 1.0)
            rates_of_few = self.rate([FEW[kinds[k]].kind for k in few], size[..., few])
            rates[..., few] = many * rates[..., few] + (1 - many) * scarce * rates_of_few
        found: Array = units * rates
        return found

    def padded(self, channels: int) -> float:
        """How many times the channels are that a convolution computes."""
        return -(-channels // self.lanes) * self.lanes / channels


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
    if "norm" in op:
        frozen = "affine" if node.rule.affine is not None else "scale and shift"
        return "layer norm" if "layer" in op else frozen
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


def units_of(node: Local, kind: str, times: Times) -> tuple[float, float]:
    """Multiply-adds per element of the result, forward and backward; 0 where an operation is counted by bytes moved."""
    if "convolution" not in kind:
        return 0.0, 0.0
    work = float(node.rule.work)
    if "depthwise" in kind:
        return work, work
    made = times.padded(node.value.shape[1])
    # The gradient of the input makes as many channels as came in; that of the filters is made of both.
    read = 1.0 if "first" in kind else times.padded(node.rule.reads[0].value.shape[1])
    return work * made, work * max(made, read)


def lanes_of(device: torch.device) -> int:
    """How many float32 numbers one instruction of the processor takes; 1 where that is not known."""
    if device.type != "cpu":
        return 1
    capability = torch.backends.cpu.get_cpu_capability()
    return {"AVX512": 16, "AVX2": 8}.get(capability, 1)


def times_of(device: torch.device, layout: str = "contiguous") -> Times:
    """The constants of a device: its own where ``calibrate()`` has measured them, else the built-in ones.

    ``layout`` is "contiguous" or "channels_last" (:func:`~streamingcnn.layout.layout_of`).
    """
    return _times(str(cache_file(device)), layout, torch.get_num_threads(), lanes_of(device))


@lru_cache(maxsize=16)
def _times(path: str, layout: str, threads: int, lanes: int) -> Times:
    built_in = BUILT_IN_RATES[layout]
    try:
        stored = json.loads(Path(path).read_text())
        rates = {
            kind: Rate(tuple(given["forward"]), tuple(given["backward"]))
            for kind, given in stored["rates"][layout].items()
        }
        if rates.keys() == built_in.keys() and all(
            len(sizes) == len(SIZES) for rate in rates.values() for sizes in (rate.forward, rate.backward)
        ):
            return Times(rates, float(stored["call"]), float(stored["tile"]), path, lanes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # absent, or of another version: measured again by the next calibration
    return Times({kind: _shared(rate, threads) for kind, rate in built_in.items()}, lanes=lanes)


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
