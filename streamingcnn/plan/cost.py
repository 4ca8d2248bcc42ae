"""What a stage costs: multiply-adds and bytes, from shapes alone."""

from __future__ import annotations

from math import prod

from ..boxes import Box, full, sizes, volume
from ..graph import Graph
from ..ops.rule import Value
from .stages import Stage


def elements(value: Value, box: Box) -> int:
    """How many numbers a box of a value holds, all channels and images counted."""
    others = prod(size for dim, size in enumerate(value.shape) if dim not in (value.axes or ()))
    return others * volume(box)


def map_bytes(value: Value) -> int:
    """The bytes of a whole map."""
    return prod(value.shape) * value.dtype.itemsize


def graph_work(graph: Graph) -> float:
    """The multiply-adds of one plain forward, local operations only."""
    return sum(node.rule.work * prod(node.value.shape) for node in graph.locals.values())


def typical_box(stage: Stage) -> Box:
    """A tile in the middle of the map: one whose halo is whole."""
    box = []
    for extent, step in zip(stage.target.extents, stage.tile, strict=True):
        low = (extent // step // 2) * step
        low = low if low < extent else 0
        box.append((low, min(low + step, extent)))
    return tuple(box)


def tile_work(stage: Stage) -> float:
    """The multiply-adds of a typical tile, halo counted."""
    program = stage.program(typical_box(stage))
    return sum(step.node.rule.work * elements(step.node.value, step.box) for step in program.steps)


def stage_work(stage: Stage) -> float:
    """The multiply-adds of all tiles of a stage, halo counted."""
    share = volume(full(stage.target.extents)) / max(1, volume(typical_box(stage)))
    return tile_work(stage) * share


def tile_bytes(stage: Stage) -> int:
    """The bytes of every value a typical tile makes or reads: about what its autograd graph keeps."""
    program = stage.program(typical_box(stage))
    made = sum(elements(s.node.value, s.box) * s.node.value.dtype.itemsize for s in program.steps)
    return made + sum(elements(v, b) * v.dtype.itemsize for v, b in program.reads)


def box_sizes(stage: Stage) -> tuple[int, ...]:
    """The size of a typical tile per axis."""
    return sizes(typical_box(stage))
