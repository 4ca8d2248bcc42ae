"""What a convolution takes beside tensors: the scratch memory of its kernel on CUDA.

Shapes do not tell it: cuDNN picks an algorithm by trying, and each has a workspace of its own. So one real tile of
every stage runs on the device, forward and backward, and what the allocator saw above the tensors is the allowance
that a budget has to leave. Tiles run one after another, so the largest allowance serves all.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ..graph import requiring
from ..memory import LiveBytes
from ..ops.rule import Value
from ..sides import Sides
from ..tile import run_tile
from .cost import typical_box
from .stages import Globals, Stage


def workspace_bytes(steps: Iterable[Stage | Globals], device: torch.device) -> int:
    """The scratch memory that the tiles of a plan need on a device, at most; 0 where kernels' memory is not counted.

    Numbers do not matter: the tiles are filled with ones. Costs one tile of each stage in time and memory.
    """
    if device.type != "cuda":
        return 0
    return max((_of_stage(step, device) for step in steps if isinstance(step, Stage) and step.nodes), default=0)


def _of_stage(stage: Stage, device: torch.device) -> int:
    program, needs = stage.program(typical_box(stage)), requiring(stage.graph, set(stage.graph.trained))

    def ones(value: Value, shape: list[int]) -> Any:
        tensor = torch.ones(shape, dtype=value.dtype, device=device)
        return tensor.requires_grad_(value.name in needs)

    reads = {}
    for value, box in program.reads:
        shape = list(value.shape)
        for dim, (low, high) in zip(value.axes or (), box, strict=True):
            shape[dim] = high - low
        reads[value.name, box] = ones(value, shape)
    env = {v.name: 0 if v.name == "seed" else ones(v, list(v.shape)) for v in stage.side}
    sides = Sides(stage, env, needs)
    leaves = [*(tensor for tensor in reads.values() if tensor.requires_grad), *sides.leaves]
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = int(torch.cuda.memory_allocated(device))
    live = LiveBytes()
    with torch.inference_mode(False), torch.enable_grad(), live:
        result = run_tile(program, dict(reads), sides.get)
        if result.requires_grad:
            torch.autograd.grad(result, leaves, torch.ones_like(result), allow_unused=True)
    torch.cuda.synchronize(device)
    height = int(torch.cuda.max_memory_allocated(device)) - before
    return max(0, height - live.peak)
