"""What is left to run of a prediction that goes on: the tiles that are missing, and what these need of earlier stages.

    result      # # # # # #          #  there already
                # # # . . .          .  missing
    map         o o o o o o          o  its tiles that a missing one reads, halo and all
                  o o o o o
    image       as much of it as those read

A map that is summed, or that something reads as a whole, is needed with all its tiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

from .boxes import Box
from .maps import Sink
from .plan.stages import Globals, Stage
from .signature import Sharing

__all__ = ["remaining"]


def remaining(
    steps: Sequence[Stage | Globals], sharing: Sharing, into: Mapping[str, Sink]
) -> dict[Stage, frozenset[Box]]:
    """By stage, the tiles that must run for the results in sinks to become whole.

    Args:
        steps: of the plan, in the order of the forward.
        sharing: which tiles run at all.
        into: by name, the results that are written and where to.
    """
    stages = {step.name: step for step in steps if isinstance(step, Stage) and step.stored}
    wanted: dict[str, set[Box]] = {name: set() for name in stages}
    whole = {value.name for step in steps if isinstance(step, Globals) for value in step.reads}
    standing = {name: _standing(stage, sharing) for name, stage in stages.items()}
    found = {}
    for stage in reversed([step for step in steps if isinstance(step, Stage)]):
        boxes = [box for box, _ in sharing.tiles(stage)]
        sink = into.get(stage.name)
        if sink is not None and not stage.reductions:
            boxes = [box for box in boxes if not sink.has(box)]
        elif stage.stored and not stage.reductions and stage.name not in whole:
            boxes = [box for box in boxes if box in wanted[stage.name]]
        found[stage] = frozenset(boxes)
        for box in boxes:
            for value, part in stage.program(box).reads:
                if value.name in stages:
                    wanted[value.name].update(_tiles(stages[value.name], part, standing[value.name], sharing))
    return found


def _standing(stage: Stage, sharing: Sharing) -> dict[int, Box]:
    """By page of a map with shared pages, the tile that runs for it."""
    table = sharing.tables.get(stage.name)
    if table is None:
        return {}
    return {page: box for box, _ in sharing.tiles(stage) for page, _, _ in table.parts(box)}


def _tiles(stage: Stage, part: Box, standing: Mapping[int, Box], sharing: Sharing) -> Iterator[Box]:
    """The tiles of a stage that a box of its map comes from."""
    table = sharing.tables.get(stage.name)
    if table is not None:
        yield from (standing[page] for page, _, _ in table.parts(part))
        return
    ranges = (range(low // step, -(-high // step)) for (low, high), step in zip(part, stage.tile, strict=True))
    for place in product(*ranges):
        yield tuple(
            (k * step, min((k + 1) * step, extent))
            for k, step, extent in zip(place, stage.tile, stage.target.extents, strict=True)
        )
