"""A good default: which maps to store and how large the tiles are, where only the network is given.

Every point where a map is worth storing starts out stored: what a windowed operation reads, what is read more
than once, what statistics are taken of. Then, one by one, the map is dropped that saves the most bytes for the
least extra arithmetic, as long as the saving is worth it. What is left are the network's own blocks and scales.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

from ..graph import Graph, Local, Reduced
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
    limit = usual_tile_bytes(graph) if limit is None else limit
    for stage in stages:
        if image_tile is not None:
            stage.tile = tile_of(graph, stage.target, image_tile)
            continue
        shapes = {_fitted(stage, limit, thin) for thin in (1.0, 1.6, 2.5, 4.0)}
        # The least work; among equals the fewest tiles.
        stage.tile = min(shapes, key=lambda tile: _effort(stage, tile))


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
        if heavy or len(readers) > 1:
            found.add(name)
    return found


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
    optional = [name for name in graph.locals if name in candidates(graph) - fixed]
    total_work = max(graph_work(graph), 1.0)
    total_bytes = max(
        sum(map_bytes(n.value) for n in graph.locals.values() if n.value.name in fixed | set(optional)), 1
    )
    chosen = fixed | set(optional)
    costs = _Costs(graph, image_tile)
    current = costs.of(chosen)
    while True:
        best: tuple[float, str, float] | None = None
        for name in optional:
            if name not in chosen:
                continue
            work = costs.of(chosen - {name}, current_without=name)
            extra = (work - current) / total_work
            saved = map_bytes(graph.nodes[name].value) / total_bytes
            score = saved * WORTH - extra
            if score > 0 and (best is None or score > best[0]):
                best = (score, name, work)
        if best is None:
            return chosen
        chosen = chosen - {best[1]}
        current = best[2]


class _Costs:
    """The work of a stored set, each distinct stage computed once."""

    def __init__(self, graph: Graph, image_tile: Sequence[int] | None) -> None:
        self.graph, self.image_tile = graph, image_tile
        self.known: dict[tuple[str, frozenset[str]], float] = {}

    def of(self, stored: set[str], current_without: str | None = None) -> float:
        total = 0.0
        for step in build_steps(self.graph, stored):
            if isinstance(step, Globals):
                continue
            key = (step.name, frozenset(node.value.name for node in step.nodes))
            if key not in self.known:
                choose_tiles(self.graph, [step], self.image_tile)
                self.known[key] = stage_work(step)
            total += self.known[key]
        return total
