"""The bytes of a step, from shapes alone.

What is alive during the backward of stage k of n:

    map 0   map 1  ...  map k   |            stored in forward, freed as backward passes
                grad k-1  grad k             a gradient lives from its last reader's backward to its maker's
                          tile of stage k    what autograd saves for one tile, its gradients, its copies

Maps and gradients follow from lifetimes; a tile's own bytes come from running one tile on the meta device,
where tensors have shapes and no numbers, under the counter that measures real runs. Parameters, their gradients
and the input are not counted: a budget is about what comes on top of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..boxes import Box, full
from ..graph import Given, Graph
from ..memory import LiveBytes
from ..ops.rule import Value
from ..signature import Sharing
from ..tile import run_tile
from .cost import map_bytes, tile_bytes, typical_box
from .stages import Globals, Stage


@dataclass(frozen=True)
class Moment:
    """The bytes alive at the height of one step, in forward or backward."""

    step: Stage | Globals
    backward: bool
    bytes: int


def lifetimes(graph: Graph, steps: list[Stage | Globals]) -> dict[str, tuple[int, int, Value]]:
    """By name of a stored map: the step that makes it, the last step that reads it, and its value."""
    made: dict[str, tuple[int, int, Value]] = {}
    outputs = {v.name for v in graph.outputs if isinstance(v, Value)}
    for k, step in enumerate(steps):
        reads = step.frontier if isinstance(step, Stage) else step.reads
        for value in reads:
            if value.name in made:
                made[value.name] = (made[value.name][0], k, value)
        if isinstance(step, Stage):
            if step.stored:
                made[step.target.name] = (k, k, step.target)
        else:
            made.update({v.name: (k, k, v) for v in step.results if v.spatial})
    end = len(steps)
    return {n: (first, end if n in outputs else last, v) for n, (first, last, v) in made.items()}


def moments(
    graph: Graph, steps: list[Stage | Globals], tiles: TileBytes, sharing: Sharing | None = None
) -> list[Moment]:
    """The height of every step of a training step whose parameters all need gradients."""
    sharing = Sharing() if sharing is None else sharing
    map_bytes = sharing.map_bytes
    lives = lifetimes(graph, steps)
    outputs = {v.name for v in graph.outputs if isinstance(v, Value)}
    read = {v.name for s in steps for v in (s.frontier if isinstance(s, Stage) else s.reads)}
    found = []
    kept = 0
    for k, step in enumerate(steps):
        maps = sum(map_bytes(v) for n, (first, _, v) in lives.items() if first <= k and (n in read or n in outputs))
        if isinstance(step, Stage):
            if step.way == "keep":
                kept += tiles.saved(step) * sharing.count(step)
            found.append(Moment(step, False, maps + kept + tiles.forward(step)))
        else:
            kept += plain_bytes(step)
            found.append(Moment(step, False, maps + kept))
    for k in reversed(range(len(steps))):
        step = steps[k]
        maps = sum(map_bytes(v) for n, (first, _, v) in lives.items() if (first <= k and n in read) or n in outputs)
        gradients = sum(map_bytes(v) for first, last, v in lives.values() if first <= k <= last)
        working = tiles.backward(step) if isinstance(step, Stage) else plain_bytes(step)
        found.append(Moment(step, True, maps + gradients + kept + working))
        if isinstance(step, Globals):
            kept -= plain_bytes(step)
        elif step.way == "keep":
            kept -= tiles.saved(step) * sharing.count(step)
    return found


def peak(graph: Graph, steps: list[Stage | Globals], tiles: TileBytes, sharing: Sharing | None = None) -> Moment:
    """The highest moment of a step; ``sharing`` says which tiles run and which pages maps share."""
    return max(moments(graph, steps, tiles, sharing), key=lambda moment: moment.bytes)


def plain_bytes(step: Globals) -> int:
    """What the results of plain nodes take; small where only heads and statistics run plainly."""
    total = 0
    for node in step.nodes:
        elements = 1
        for size in node.value.shape:
            elements *= size
        total += elements * node.value.dtype.itemsize
    return total


class TileBytes:
    """What one tile of a stage takes, by a quick estimate: every value it makes, and as much for gradients."""

    def forward(self, stage: Stage) -> int:
        return tile_bytes(stage)

    def saved(self, stage: Stage) -> int:
        return tile_bytes(stage)

    def backward(self, stage: Stage) -> int:
        return 0 if stage.way == "keep" else 2 * tile_bytes(stage)


class MeasuredTileBytes(TileBytes):
    """The same, measured: one typical tile runs on the meta device, forward and backward."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, tuple[str, ...], tuple[int, ...]], tuple[int, int, int]] = {}

    def _of(self, stage: Stage) -> tuple[int, int, int]:
        key = (stage.name, tuple(node.value.name for node in stage.nodes), stage.tile)
        if key not in self._known:
            self._known[key] = measure_tile(stage, typical_box(stage))
        return self._known[key]

    def forward(self, stage: Stage) -> int:
        return self._of(stage)[0]

    def saved(self, stage: Stage) -> int:
        return self._of(stage)[1]

    def backward(self, stage: Stage) -> int:
        return self._of(stage)[2]


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
    reads = [
        (value, part, meta(value, _box_shape(value, part), value is not stage.graph.image))
        for value, part in program.reads
    ]

    def get(argument: Any) -> Any:
        return env[argument.name] if isinstance(argument, Value) else argument

    def run(grad: bool, ghost: bool = False) -> Tensor:
        with torch.set_grad_enabled(grad):
            return run_tile(program, {(v.name, b): t for v, b, t in reads}, get, stage.target, ghost)

    if not stage.nodes:
        return 0, 0, elements_bytes(stage)
    with LiveBytes(fake=True) as live:
        run(False)
    forward = live.peak
    with LiveBytes(fake=True) as live:
        tile = run(True, ghost=stage.way == "recompute")
        saved = live.current
        if tile.requires_grad:
            leaves = [t for _, _, t in reads if t.requires_grad]
            sides = [t for t in env.values() if isinstance(t, Tensor) and t.requires_grad]
            given = torch.autograd.grad(tile, leaves + sides, torch.empty_like(tile), allow_unused=True)
            del given
    return forward, saved, live.peak


def _box_shape(value: Value, box: Box) -> tuple[int, ...]:
    shape = list(value.shape)
    for dim, (low, high) in zip(value.axes or (), box, strict=True):
        shape[dim] = high - low
    return tuple(shape)


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
