"""Tiles on a common grid, for images with constant parts.

Two tiles are the same computation only where they read the same places of the same pages. On a grid of powers of
two, tiles of one stage begin at the same place in the blocks of another, or at one of a few:

    blocks of 8         |-------|-------|-------|-------|
    tiles of 4, halo 1  [-----)...[-----)                     begin 1 before a block's start, or 3 after it
    tiles of 6, halo 1  [-------)...[-------)...              begin anywhere
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log2, prod

from .stages import Globals, Stage


def align(stages: Sequence[Stage | Globals], chosen: bool) -> list[Stage | Globals]:
    """The same steps with tiles that are powers of two, and about as large.

    Args:
        stages: the steps of a plan.
        chosen: whether the user chose the tile; only what rounding added to it is then taken off (257 pixels of a
            map become 256).
    """
    aligned: list[Stage | Globals] = []
    for step in stages:
        if not isinstance(step, Stage):
            aligned.append(step)
            continue
        again = Stage(step.graph, step.target, step.stored, step.held, step.reductions, step.tile, step.way)
        again.tile = _near(step) if chosen else _power_of_two(step)
        aligned.append(again)
    return aligned


def _near(stage: Stage) -> tuple[int, ...]:
    powers = [2 ** max(0, round(log2(size))) for size in stage.tile]
    return tuple(
        power if abs(power - size) <= 1 and size < extent else size
        for power, size, extent in zip(powers, stage.tile, stage.target.extents, strict=True)
    )


def _power_of_two(stage: Stage) -> tuple[int, ...]:
    """The largest powers of two below the tile's sizes; doubled again, axis by axis, while its volume allows."""
    extents = stage.target.extents
    tile = [s if s >= e else 2 ** int(log2(s)) for s, e in zip(stage.tile, extents, strict=True)]
    for axis in sorted(range(len(tile)), key=lambda axis: tile[axis] / stage.tile[axis]):
        doubled = min(2 * tile[axis], extents[axis])
        if tile[axis] < extents[axis] and prod(tile) // tile[axis] * doubled <= prod(stage.tile):
            tile[axis] = doubled
    return tuple(tile)
