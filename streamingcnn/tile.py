"""Running one tile: from the boxes it reads to the box of its target.

A program says which box of which node follows from which; here the tensors are. Nothing is planned, and nothing of
stages, maps or gradients is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .boxes import Box, Region, relative
from .ops.rule import Read, Tile, Value, along
from .plan.stages import Program

#: The tensors a tile holds, by value name and box.
Held = dict[tuple[str, Box], Tensor]


def assemble(read: Read, region: Region, sources: tuple[Box, ...] | None, held: Held) -> Tensor | None:
    """The tensor of exactly a region, cut from what the tile holds; several pieces are put side by side."""
    if sources is None:
        return None
    return _joined(read, region, iter(sources), held, ())


def _joined(read: Read, region: Region, sources: Iterator[Box], held: Held, chosen: Box) -> Tensor:
    """The pieces of a region whose first axes are chosen already.

    No inner function that calls itself: it would be a reference cycle, and each tile would live until Python's
    collector comes by (ResNet-18 at 768: 184 MiB where 107 are needed).
    """
    axes, axis = read.value.axes or (), len(chosen)
    if axis == len(region):
        source = next(sources)
        return along(held[read.value.name, source], axes, relative(chosen, source))
    parts = [_joined(read, region, sources, held, (*chosen, interval)) for interval in region[axis]]
    return parts[0] if len(parts) == 1 else torch.cat(parts, axes[axis])


def run_tile(program: Program, held: Held, get: Callable[[Any], Any], target: Value, ghost: bool = False) -> Tensor:
    """Run a tile's steps; ``held`` comes with the boxes it reads, dead values are dropped on the way.

    With ``ghost`` the last step may leave its values out, and give a result that only differentiates.
    """
    last = program.steps[-1] if program.steps else None
    for step, dead in zip(program.steps, program.dead, strict=True):
        rule = step.node.rule
        inputs = tuple(
            assemble(read, region, sources, held)
            for read, region, sources in zip(rule.reads, step.regions, step.sources, strict=True)
        )
        compute = rule.ghost if ghost and step is last and rule.ghost is not None else rule.compute
        held[step.node.value.name, step.box] = compute(Tile(step.box, inputs, step.regions, get))
        del inputs
        for key in dead:
            del held[key]
    return held[target.name, program.box]


def getter(env: dict[str, Any], sides: dict[str, Any]) -> Callable[[Any], Any]:
    """What rules ask global values of: a stage's own aliases first, then the values of the step."""

    def get(argument: Any) -> Any:
        if isinstance(argument, Value):
            return sides[argument.name] if argument.name in sides else env[argument.name]
        return argument

    return get
