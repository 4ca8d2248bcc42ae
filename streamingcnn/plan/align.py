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


def align(steps: Sequence[Stage | Globals], chosen: bool) -> list[Stage | Globals]:
    """The same steps with tiles that are powers of two, and about as large.

    Args:
        steps: the steps of a plan.
        chosen: whether the user chose the tile; only what rounding added to it is then taken off (257 pixels of a
            map become 256).
    """
    aligned: list[Stage | Globals] = []
    for step in steps:
        if not isinstance(step, Stage):
            aligned.append(step)
            continue
        tile = _near(step) if chosen else power_of_two(step.tile, step.target.extents)
        aligned.append(
            Stage(step.graph, step.target, step.stored, step.held, step.reductions, tile, step.way, step.place)
        )
    return aligned


def _near(stage: Stage) -> tuple[int, ...]:
    powers = [2 ** max(0, round(log2(size))) for size in stage.tile]
    return tuple(
        power if abs(power - size) <= 1 and size < extent else size
        for power, size, extent in zip(powers, stage.tile, stage.target.extents, strict=True)
    )


def power_of_two(sizes: tuple[int, ...], extents: tuple[int, ...]) -> tuple[int, ...]:
    """The largest powers of two below a tile's sizes; doubled again, axis by axis, while its volume allows.

    >>> power_of_two((100, 300), (500, 500)), power_of_two((500, 70), (500, 500))
    ((64, 256), (500, 64))
    """
    tile = [s if s >= e else 2 ** int(log2(s)) for s, e in zip(sizes, extents, strict=True)]
    for axis in sorted(range(len(tile)), key=lambda axis: tile[axis] / sizes[axis]):
        doubled = min(2 * tile[axis], extents[axis])
        if tile[axis] < extents[axis] and prod(tile) // tile[axis] * doubled <= prod(sizes):
            tile[axis] = doubled
    return tuple(tile)
