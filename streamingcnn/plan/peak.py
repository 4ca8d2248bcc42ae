"""The bytes of a plan: of a whole step, and of one tile.

Neither is added up by hand. A step is rehearsed (:mod:`streamingcnn.plan.rehearsal`), and a tile runs on the meta
device, where tensors have shapes and no numbers, under the counter that measures real runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..boxes import Box, full
from ..graph import Given, Graph
from ..ops.rule import Value
from ..sides import Sides
from ..signature import Sharing
from ..tile import run_tile
from .cost import map_bytes, typical_box
from .meta import Remembering
from .rehearsal import Moment, rehearse
from .stages import Globals, Stage

if TYPE_CHECKING:
    from ..distributed.planning import Ranks


def exact_peak(
    graph: Graph, steps: list[Stage | Globals], sharing: Sharing | None = None, ranks: Ranks | None = None
) -> Moment:
    """The highest moment of a step, by rehearsal: never below what a real step takes, and within 2 % of it."""
    if ranks is None:
        return rehearse(graph, steps, sharing)
    moments = (rehearse(graph, steps, sharing, ranks, member) for member in ranks.members(graph, steps))
    return max(moments, key=lambda moment: moment.bytes)


def plain_bytes(step: Globals) -> int:
    """What the results of plain nodes take; small where only heads and statistics run plainly."""
    total = 0
    for node in step.nodes:
        elements = 1
        for size in node.value.shape:
            elements *= size
        total += elements * node.value.dtype.itemsize
    return total


class MeasuredTiles:
    """The bytes of one typical tile of a stage, run on the meta device: forward, graph, backward; remembered."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, tuple[str, ...], tuple[int, ...], str], tuple[int, int, int]] = {}

    def of(self, stage: Stage) -> tuple[int, int, int]:
        """See :func:`measure_tile`."""
        key = (stage.name, tuple(node.value.name for node in stage.nodes), stage.tile, stage.way)
        if key not in self._known:
            self._known[key] = measure_tile(stage, typical_box(stage))
        return self._known[key]


def measure_tile(stage: Stage, box: Box) -> tuple[int, int, int]:
    """Bytes of one tile: the height of its forward, what autograd saves of it, the height of its backward."""
    program = stage.program(box)

    def meta(value: Value, shape: tuple[int, ...], leaf: bool) -> Any:
        if value.name == "seed":
            return 0
        tensor = torch.empty(shape, dtype=value.dtype, device="meta")
        return tensor.requires_grad_(leaf and value.dtype.is_floating_point)

    def trained(value: Value) -> bool:
        node = stage.graph.nodes[value.name]
        return not (isinstance(node, Given) and node.source != "parameter")

    env = {value.name: meta(value, value.shape, trained(value)) for value in stage.side}
    sides = Sides(stage, env, {value.name for value in stage.side if trained(value)})
    reads = [
        (value, part, meta(value, value.shape_at(part), value is not stage.graph.image))
        for value, part in program.reads
    ]

    def run(grad: bool, ghost: bool = False) -> Tensor:
        with torch.set_grad_enabled(grad):
            return run_tile(program, {(v.name, b): t for v, b, t in reads}, sides.get, ghost)

    if not stage.nodes:
        return 0, 0, elements_bytes(stage)
    with Remembering(stage.graph) as live:
        run(False)
    forward = live.peak
    with Remembering(stage.graph) as live:
        tile = run(True, ghost=stage.way == "recompute")
        # Where one tile is the whole map, its result is the map itself and no bytes beside it.
        whole = stage.stored and stage.tiles == 1
        saved = live.current - (tile.untyped_storage().nbytes() if whole else 0)
        if tile.requires_grad:
            leaves = [t for _, _, t in reads if t.requires_grad]
            given = torch.autograd.grad(tile, (*leaves, *sides.leaves), torch.empty_like(tile), allow_unused=True)
            del given
    return forward, saved, live.peak


def elements_bytes(stage: Stage) -> int:
    """The bytes of one tile of a stage that only reads."""
    whole = map_bytes(stage.target)
    pixels = 1
    for low, high in full(stage.target.extents):
        pixels *= high - low
    tile = 1
    for low, high in typical_box(stage):
        tile *= high - low
    return 2 * whole * tile // max(pixels, 1)
