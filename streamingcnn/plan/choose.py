"""A good default: which maps to store and how large the tiles are, where only the network is given.

Every point where a map is worth storing starts out stored: what a windowed operation reads, what is read more
than once, what statistics are taken of. Then, one by one, the map is dropped that saves the most bytes for the
least extra arithmetic, as long as the saving is worth it. What is left are the network's own blocks and scales.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

from ..graph import Graph, Local, Plain, Reduced
from ..ops.rule import Value
from .cost import graph_work, map_bytes, stage_work, tile_bytes
from .stages import Globals, Stage, build_steps, must_store, phases

#: Bytes that a tile's values may take before the tile is made smaller: about what stays in a processor's cache.
TILE_BYTES = 24 << 20
#: Stored bytes are worth this many times their share in extra arithmetic.
WORTH = 0.35


def tile_of(graph: Graph, value: Value, image_tile: Sequence[int]) -> tuple[int, ...]:
    """The tile of a map that covers so many pixels of the image.

    A map of extent 50 of an image of 200 pixels, tile 64: ``ceil(64 * 50 / 200) = 16`` pixels of the map.
    """
    return tuple(
        min(own, max(1, -(-tile * own // extent)))
        for tile, own, extent in zip(image_tile, value.extents, graph.image.extents, strict=True)
    )


def choose_tiles(
    graph: Graph, stages: Iterable[Stage], image_tile: Sequence[int] | None, limit: int | None = None
) -> None:
    """Set each stage's tile: the one asked for, or the largest whose values fit in ``limit`` bytes."""
    if image_tile is not None:
        for stage in stages:
            stage.tile = tile_of(graph, stage.target, image_tile)
        return
    limit = usual_tile_bytes(graph) if limit is None else limit
    for stage in stages:
        shapes = {_fitted(stage, limit, thin) for thin in (1.0, 1.6, 2.5, 4.0)}
        # The least work; among equals the fewest tiles.
        stage.tile = min(sorted(shapes), key=lambda tile: _effort(stage, tile))


def usual_tile_bytes(graph: Graph) -> int:
    """``TILE_BYTES``, or less where the maps of a small image are themselves no larger."""
    maps = sum(map_bytes(graph.nodes[name].value) for name in candidates(graph))
    return max(2 << 20, min(TILE_BYTES, maps // 12))


def _effort(stage: Stage, tile: tuple[int, ...]) -> tuple[float, int]:
    stage.tile = tile
    return stage_work(stage), stage.tiles


def _fitted(stage: Stage, limit: int, thin: float) -> tuple[int, ...]:
    """Cut the widest axis, over and over, until a tile fits; the last axis counts ``thin`` times its width.

    A tile's bytes fall a little more slowly than its volume, since its halo stays, so the first cuts need no look.
    """
    extents = stage.target.extents
    weights = [1.0] * (len(extents) - 1) + [thin]
    tile = list(extents)
    stage.tile = extents
    volume, whole = prod(extents), tile_bytes(stage)
    while whole > limit and prod(tile) > 64:
        if whole * prod(tile) <= limit * volume:
            stage.tile = tuple(tile)
            if tile_bytes(stage) <= limit:
                break
        widest = max(range(len(extents)), key=lambda axis: tile[axis] * weights[axis])
        pieces = -(-extents[widest] // tile[widest]) + 1
        tile[widest] = max(1, min(tile[widest] - 1, -(-extents[widest] // pieces)))
    return tuple(tile)


def candidates(graph: Graph) -> set[str]:
    """Local values worth storing: read by an operation with work, or by several."""
    found = set()
    for name in graph.locals:
        readers = graph.readers[name]
        heavy = any(isinstance(r, Local) and not r.rule.cheap for r in readers)
        if heavy or (len(readers) > 1 and not only_summed(graph, name) and not of_inputs(graph, name)):
            found.add(name)
    return found


def of_inputs(graph: Graph, name: str) -> bool:
    """Whether a map is made of inputs by cheap operations alone, as a one-hot target is."""
    todo = [name]
    while todo:
        node = graph.nodes[todo.pop()]
        if isinstance(node, Plain) or (isinstance(node, Local) and not node.rule.cheap):
            return False
        if isinstance(node, Local):
            todo += [read.value.name for read in node.rule.reads]
    return True


def only_summed(graph: Graph, name: str) -> bool:
    """Whether a map is read, over cheap operations, by the sums over one map alone.

    The logits under a loss are the usual case. One stage computes them and nothing else wants them: to store them
    would save nothing, and they are as large as the image.
    """
    sums: set[str] = set()
    todo, seen = [name], set()
    while todo:
        current = todo.pop()
        if current in seen:
            continue
        seen.add(current)
        readers = graph.readers[current]
        if not readers or any(isinstance(r, Plain) or (isinstance(r, Local) and not r.rule.cheap) for r in readers):
            return False
        sums |= {current} if any(isinstance(r, Reduced) for r in readers) else set()
        todo += [r.value.name for r in readers if isinstance(r, Local)]
    return len(sums) == 1


def feeding_statistics(graph: Graph) -> set[str]:
    """What must not be computed twice: the costly values under a reduction that is followed by more of the same map.

    Walk back from the reduced map over cheap operations to the first costly ones:

        conv --> relu --> cat --> [mean, variance]        conv is stored, relu and cat are cheap to repeat
    """
    phase = phases(graph)
    found: set[str] = set()
    for node in graph.nodes.values():
        if not isinstance(node, Reduced) or len(graph.readers[node.reduction.value.name]) < 2:
            continue
        todo, seen = [node.reduction.value.name], set()
        while todo:
            name = todo.pop()
            local = graph.nodes[name]
            if name in seen or not isinstance(local, Local):
                continue
            seen.add(name)
            if not local.rule.cheap:
                found.add(name)
            else:
                todo += [read.value.name for read in local.rule.reads if phase[read.value.name] <= phase[name]]
    return found


def choose_stored(graph: Graph, image_tile: Sequence[int] | None) -> set[str]:
    """The default stored nodes."""
    fixed = must_store(graph) | feeding_statistics(graph)
    optional = candidates(graph) - fixed
    total_work = max(graph_work(graph), 1.0)
    total_bytes = max(sum(map_bytes(graph.nodes[name].value) for name in graph.locals if name in fixed | optional), 1)
    draft = Draft(graph, fixed | optional, image_tile)

    def score(name: str) -> float:
        return map_bytes(graph.nodes[name].value) / total_bytes * WORTH - draft.extra_work(name) / total_work

    scores = {name: score(name) for name in graph.locals if name in optional}
    while scores:
        best = max(scores, key=scores.__getitem__)
        if scores[best] <= 0:
            break
        del scores[best]
        for name in draft.drop(best) & scores.keys():
            scores[name] = score(name)
    return draft.stored


class Draft:
    """Stored nodes under consideration, the stages between them, and what each stage costs.

    Dropping a node touches its readers only: they take over its stage.

        x --> [a] --> [b] --> [c]      dropping b:  x --> [a] --> [c], where c now computes b as well
    """

    def __init__(
        self, graph: Graph, stored: set[str], image_tile: Sequence[int] | None, limit: int | None = None
    ) -> None:
        self.graph, self.image_tile = graph, image_tile
        self.limit = usual_tile_bytes(graph) if limit is None and image_tile is None else limit
        self.stored = set(stored)
        self.stages = {step.name: step for step in build_steps(graph, stored) if isinstance(step, Stage)}
        self.held = frozenset().union(*(stage.held | {name} for name, stage in self.stages.items()))
        self.readers: dict[str, set[str]] = {name: set() for name in self.held}
        self.costs: dict[tuple[str, frozenset[str]], tuple[tuple[int, ...], float]] = {}
        for name, stage in self.stages.items():
            for value in stage.frontier:
                self.readers[value.name].add(name)

    def extra_work(self, name: str) -> float:
        """The multiply-adds that are done more often where a node is not stored."""
        without = self._readers_without(name)
        extra = sum(self._work(stage) - self._work(self.stages[stage.name]) for stage in without)
        # A stage with a reduction stays: it still has to sum over its tiles.
        return extra if self.stages[name].reductions else extra - self._work(self.stages[name])

    def drop(self, name: str) -> set[str]:
        """Store a node no longer; return the nodes whose own extra work may have changed by that."""
        without = self._readers_without(name)
        self.stored.remove(name)
        self.held -= {name}
        if self.stages[name].reductions:
            self.stages[name].stored = False
        else:
            for value in self.stages.pop(name).frontier:
                self.readers[value.name].discard(name)
        del self.readers[name]
        for stage in without:
            self.stages[stage.name] = stage
            for value in stage.frontier:
                self.readers[value.name].add(stage.name)
        return {stage.name for stage in without} | {value.name for stage in without for value in stage.frontier}

    def _readers_without(self, name: str) -> list[Stage]:
        stages = (self.stages[reader] for reader in self.readers[name])
        held = self.held - {name}
        return [Stage(self.graph, s.target, s.stored, held - {s.name}, s.reductions) for s in stages]

    def _work(self, stage: Stage) -> float:
        key = (stage.name, frozenset(node.value.name for node in stage.nodes))
        if key not in self.costs:
            choose_tiles(self.graph, [stage], self.image_tile, self.limit)
            self.costs[key] = (stage.tile, stage_work(stage))
        stage.tile, work = self.costs[key]
        return work

    def steps(self) -> list[Stage | Globals]:
        """The steps of the plan as it stands, with their tiles."""
        steps = build_steps(self.graph, self.stored)
        for step in steps:
            if isinstance(step, Stage):
                self._work(step)
        return steps
