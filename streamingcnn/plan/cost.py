"""What a stage costs: multiply-adds and bytes, from shapes alone."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from ..boxes import Box, full, volume
from ..graph import Graph, Local
from ..ops.rule import Value
from .stages import Stage


def elements(value: Value, box: Box) -> int:
    """How many numbers a box of a value holds, all channels and images counted."""
    return value.depth * volume(box)


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


def tile_work(stage: Stage, of: Callable[[Local, Box], float]) -> float:
    """The multiply-adds of a typical tile, halo counted."""
    needed = stage.needs(typical_box(stage))
    return sum(of(node, box) for node in stage.nodes if node.rule.work for box in needed[node.value.name])


def arithmetic(node: Local, box: Box) -> float:
    """The multiply-adds of one operation on one box."""
    return node.rule.work * elements(node.value, box)


def box_work(node: Local, box: Box) -> float:
    """The multiply-adds of one operation on one box, weighted by how slow it is on a box of that size."""
    rule = node.rule
    if rule.slowness is None:
        return arithmetic(node, box)
    lengths = [sum(high - low for low, high in intervals) for intervals in rule.reads[0].need(box)]
    return arithmetic(node, box) * float(rule.slowness(lengths))


def stage_work(stage: Stage, of: Callable[[Local, Box], float] = box_work, runs: int | None = None) -> float:
    """The multiply-adds of all tiles of a stage, halo counted; by default weighted by how slow boxes are.

    ``runs`` says how many tiles run, where that is fewer (:meth:`~streamingcnn.signature.Sharing.count`).
    """
    share = volume(full(stage.target.extents)) / max(1, volume(typical_box(stage)))
    return tile_work(stage, of) * share * (1.0 if runs is None else runs / stage.tiles)


def tile_bytes(stage: Stage) -> int:
    """The bytes of every value a typical tile makes or reads: about what its autograd graph keeps."""
    needed = stage.needs(typical_box(stage))
    values = (*(node.value for node in stage.nodes if node.value.name not in stage.over), *stage.frontier)
    return sum(elements(v, box) * v.dtype.itemsize for v in values for box in needed[v.name])
