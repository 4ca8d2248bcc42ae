"""Is the streamed network the same network? Ask it of your own module, on your own input.

NOTE. Ties. Where several values of a max-pool's window are equal (a constant background), any of them may
take the gradient, and rounding decides which. Two right computations then differ in the gradient of the
input, while every parameter gradient agrees to the last digits. Where the input gradient alone differs we
do not take that on trust: the comparison runs again on random input of the same shape, which has no ties,
and only if all agrees there does the report say "ties".
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from streamingcnn.comparison import (
    Row,
    Step,
    compare,
    relative_errors,
    rows_of,
    run_step,
    same_noise,
    tensors_of,
)
from streamingcnn.memory import LiveBytes, format_bytes
from streamingcnn.module import StreamingModule
from streamingcnn.plain import Inputs, first_line, fit, free_bytes, materialise, shapes_of

__all__ = ["CheckResult", "Cost", "Row", "check", "compare", "plain_bytes", "relative_errors", "run_step"]

#: What `check` allows by default: rounding of sums that were added up in another order, and nothing more.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 5e-2}
TOLERANCE_TF32 = 1e-2
SHARE_OF_FREE_MEMORY = 0.8


@dataclass(frozen=True)
class Cost:
    """What one forward and backward took: wall-clock seconds, and bytes of tensors alive at the peak."""

    seconds: float
    bytes: int


@dataclass(frozen=True)
class CheckResult:
    """What `check` found; `print` shows it as a table, `ok` says it in a word, `worst` names the tensor."""

    title: str
    rows: tuple[Row, ...]
    tolerance: float
    plain: Cost
    streamed: Cost
    notes: tuple[str, ...] = ()
    ties: bool = False  # the input gradient alone differs, and not on input without ties

    @property
    def ok(self) -> bool:
        """Whether no tensor is beyond the tolerance, input gradients that differ by ties apart."""
        return all(self.verdict(row) != "FAIL" for row in self.rows)

    @property
    def worst(self) -> Row:
        """The row with the largest error; rows that differ by ties come last."""
        return max(self.rows, key=lambda row: (self.verdict(row) != "ties", row.error))

    def verdict(self, row: Row) -> str:
        """Say "ok", "ties" or "FAIL" of one row."""
        if row.error <= self.tolerance:
            return "ok"
        return "ties" if self.ties and row.kind == "input gradient" else "FAIL"

    def __str__(self) -> str:
        width = max(len(str(row)) for row in self.rows)
        lines = [self.title, *(f"note: {note}" for note in self.notes), ""]
        lines.append(f"{'tensor':{width}}  {'shape':>18}  {'|plain|':>9}  {'error':>9}")
        for row in self.rows:
            shape = "x".join(map(str, row.shape)) or "scalar"
            lines.append(f"{row!s:{width}}  {shape:>18}  {row.norm:9.3g}  {row.error:9.2g}  {self.verdict(row)}")
        lines += ["", f"{'one step':12}  {'plain':>10}  {'streamed':>10}  {'ratio':>6}"]
        for name, plain, streamed, show in (
            ("time", self.plain.seconds, self.streamed.seconds, _seconds),
            ("live bytes", self.plain.bytes, self.streamed.bytes, format_bytes),
        ):
            ratio = streamed / plain if plain else math.nan
            lines.append(f"{name:12}  {show(plain):>10}  {show(streamed):>10}  {ratio:6.2f}")
        verdict = "ok" if self.ok else "BEYOND TOLERANCE"
        worst = self.worst
        lines += ["", f"{verdict}: worst error {worst.error:.2g} ({worst}), tolerance {self.tolerance:.2g}"]
        return "\n".join(lines)


def plain_bytes(module: nn.Module, *inputs: Any, dtype: torch.dtype | None = None, **named: Any) -> int:
    """Count the bytes that plain PyTorch holds at the peak of one forward and backward, without running it.

    >>> plain_bytes(nn.Conv2d(3, 64, 3, padding=1), (1, 3, 8192, 8192)) // 2**30
    32

    Inputs are tensors, of which only the shapes matter, or shapes (N, C, *space). Counted is what a step
    adds to the parameters and the inputs: results, what autograd keeps, gradients. The scratch memory of a
    convolution is not.
    """
    meta = torch.device("meta")
    args, kwargs = materialise((inputs, named), dtype=dtype, device=meta)
    reference = _copy(module, dtype).to(meta)
    live = LiveBytes(fake=True)
    with live:
        run_step(reference, *args, **kwargs)
    return live.peak


def check(
    module: nn.Module,
    *inputs: Any,
    tile: int | tuple[int, ...] | None = None,
    stored: tuple[str, ...] | None = None,
    dtype: torch.dtype = torch.float64,
    tolerance: float | None = None,
    memory: int | None = None,
    seed: int = 0,
    **named: Any,
) -> CheckResult:
    """Compare the streamed module with plain PyTorch: every tensor of one step, its time and its bytes.

    >>> module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    >>> result = check(module, (1, 3, 45, 38), tile=16)
    >>> result.ok, result.worst.error < 1e-12
    (True, True)

    Inputs are tensors, or shapes (N, C, *space) for normal random numbers. `tile` and `stored` are
    StreamingModule's. Both runs are on copies: the module, its buffers, its `.grad` stay as they are; its
    mode, `train()` or `eval()`, counts. The copies and inputs are cast to `dtype`, float64 unless told, where
    the tolerance is 1e-10; in float32 it is 1e-4 (1e-2 on CUDA with TF32).

    Where plain PyTorch needs more than 80 % of the free memory, or more than `memory` bytes, all images are
    halved until it fits, and the result says so. Raises ValueError when the network does not accept that, and
    TypeError for a module that is streamed already.
    """
    if isinstance(module, StreamingModule):
        raise TypeError("check() was given a StreamingModule and needs the plain module, which it wraps itself")
    if not dtype.is_floating_point:
        raise TypeError(f"dtype is {dtype} and must be a floating-point type: gradients are compared")
    tensors = [*module.parameters(), *tensors_of((inputs, named)).values()]
    device = tensors[0].device if tensors else torch.device("cpu")
    tolerance = _tolerance(dtype, device) if tolerance is None else tolerance
    limit = int(SHARE_OF_FREE_MEMORY * free_bytes(device)) if memory is None else memory
    sized, notes = _fit(module, (inputs, named), limit, dtype)
    args, kwargs = materialise(sized, dtype=dtype, device=device, seed=seed)

    plain, copied = _copy(module, dtype), _copy(module, dtype)
    streamed = StreamingModule(copied, tile=tile, stored=stored)
    step, streamed_cost = _measured(streamed, args, kwargs, seed)
    reference, plain_cost = _measured(plain, args, kwargs, seed, same_noise(streamed))
    shapes = ", ".join("x".join(map(str, tensor.shape)) for tensor in tensors_of((args, kwargs)).values())
    result = CheckResult(
        title=f"{type(module).__name__} streamed against plain PyTorch: input {shapes}, "
        f"{'automatic tile' if tile is None else f'tile {tile}'}, {device.type}, "
        f"{'train' if module.training else 'eval'} mode, {str(dtype).removeprefix('torch.')}",
        rows=rows_of(step, reference),
        tolerance=tolerance,
        plain=plain_cost,
        streamed=streamed_cost,
        notes=(*_notes_on(dtype, device), *notes),
    )
    if {row.kind for row in result.rows if result.verdict(row) == "FAIL"} != {"input gradient"}:
        return result
    # See the note on ties: the same comparison on input that has none.
    args, kwargs = materialise(shapes_of((args, kwargs)), dtype=dtype, device=device, seed=seed + 1)
    if any(row.error > tolerance for row in compare(plain, streamed, *args, seed=seed, **kwargs)):
        return result
    note = "ties: equal values meet in a max, so the input gradient alone differs; on random input it agrees"
    return replace(result, ties=True, notes=(*result.notes, note))


def _measured(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    seed: int,
    noise: AbstractContextManager[Any] | None = None,
) -> tuple[Step, Cost]:
    """Run a step for its tensors and bytes, and once more for its time: counting takes time of its own."""
    live = LiveBytes()
    with live:
        step = run_step(module, *args, seed=seed, noise=noise, **kwargs)
    start = _now()
    run_step(module, *args, seed=seed, **kwargs)
    return step, Cost(_now() - start, live.peak)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _copy(module: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    duplicate = copy.deepcopy(module)
    return duplicate if dtype is None else duplicate.to(dtype)


def _fit(module: nn.Module, inputs: Inputs, limit: int, dtype: torch.dtype) -> tuple[Inputs, tuple[str, ...]]:
    try:
        plain_bytes(module, *inputs[0], dtype=dtype, **inputs[1])
    except (RuntimeError, ValueError) as error:
        # A module that reads values cannot run on shapes, and a wrong input runs nowhere: run it and see.
        return inputs, (f"plain PyTorch's bytes are not known beforehand: {first_line(error)}",)
    sized, note = fit(inputs, limit, lambda some: plain_bytes(module, *some[0], dtype=dtype, **some[1]))
    return sized, () if note is None else (note,)


def _tolerance(dtype: torch.dtype, device: torch.device) -> float:
    if _tf32(dtype, device):
        return TOLERANCE_TF32
    return TOLERANCES.get(dtype, TOLERANCES[torch.bfloat16])


def _tf32(dtype: torch.dtype, device: torch.device) -> bool:
    return dtype == torch.float32 and device.type == "cuda" and torch.backends.cudnn.allow_tf32


def _notes_on(dtype: torch.dtype, device: torch.device) -> Iterable[str]:
    if dtype == torch.float64:
        yield "in float64, on copies of the module, so that an error is a mistake and not rounding"
    elif _tf32(dtype, device):
        yield (
            "float32 on CUDA multiplies in TF32, which keeps 10 bits: errors near 1e-3 are its rounding; "
            "torch.backends.cudnn.allow_tf32 = False turns it off"
        )


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s"
