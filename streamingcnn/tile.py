"""Running one tile: from the boxes it reads to the box of its target.

A program says which box of which node follows from which; here the tensors are. Nothing is planned, and nothing of
stages, maps or gradients is known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .boxes import Box
from .ops.rule import Tile
from .plan.stages import Cut, Joined, Program

#: The tensors a tile reads, by value name and box.
Held = dict[tuple[str, Box], Tensor]


def run_tile(program: Program, held: Held, get: Callable[[Any], Any], ghost: bool = False) -> Tensor:
    """Run a tile's steps on the boxes that it reads; dead values are dropped on the way.

    With ``ghost`` the last step may leave its values out, and give a result that only differentiates.
    """
    tensors: list[Tensor | None] = [held[value.name, box] for value, box in program.reads]
    last = program.steps[-1] if program.steps else None
    for step, dead in zip(program.steps, program.dead, strict=True):
        compute = step.compute
        if ghost and step is last:
            compute = step.node.rule.ghost or compute
        tensors.append(compute(Tile(step.box, tuple([assemble(g, tensors) for g in step.inputs]), step.regions, get)))
        for place in dead:
            tensors[place] = None
    result = tensors[-1]
    assert result is not None
    return result


def assemble(given: Cut | Joined | None, tensors: list[Tensor | None]) -> Tensor | None:
    """An input of a step: a view of what the tile holds, or several put side by side."""
    if given is None:
        return None
    if isinstance(given, Joined):
        return torch.cat([part for part in (assemble(p, tensors) for p in given.parts) if part is not None], given.dim)
    tensor = tensors[given.place]
    assert tensor is not None
    for dim, start, length in given.crops:
        tensor = tensor.narrow(dim, start, length)
    return tensor
