"""Planning for a budget: the fastest plan whose step takes no more bytes than allowed.

Three things are traded. Dropping a stored map saves its bytes (and its gradient's) and costs arithmetic, since
its pixels are computed again by each stage that needs them. Smaller tiles save what a tile's autograd graph
takes and cost wider halos. Keeping a stage's graphs costs bytes and saves computing its tiles again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..graph import Graph
from ..memory import format_bytes
from .choose import TILE_BYTES, Draft, choose_stored
from .cost import graph_work, map_bytes, stage_work
from .peak import MeasuredTileBytes, Moment, TileBytes, peak
from .place import place_maps
from .stages import Globals, Stage, must_store

Steps = list[Stage | Globals]


def parse_bytes(memory: int | str) -> int:
    """``"4GiB"``, ``"500 MB"`` or a number of bytes.

    >>> parse_bytes("4GiB"), parse_bytes("1.5 MB"), parse_bytes(1000)
    (4294967296, 1500000, 1000)
    """
    if isinstance(memory, int) and not isinstance(memory, bool):
        count = memory
    else:
        match = re.fullmatch(r"\s*([0-9.]+)\s*([kKMGT]?)(i?)B?\s*", str(memory))
        if match is None:
            raise ValueError(f"memory={memory!r}; needed is a number of bytes or a text such as '4GiB' or '500MB'")
        base = 1024 if match[3] else 1000
        count = int(float(match[1]) * base ** " KMGT".index(match[2].upper() or " "))
    if count <= 0:
        raise ValueError(f"memory={memory!r}; a plan needs more than 0 bytes")
    return count


class BudgetError(ValueError):
    """No plan fits in the given bytes; ``smallest`` would."""

    def __init__(self, given: int, smallest: int, stage: str) -> None:
        self.given, self.smallest, self.stage = given, smallest, stage
        super().__init__(
            f"memory={format_bytes(given)} is too small for this network at this size: the smallest plan found takes "
            f"{format_bytes(smallest)}, most of it in stage '{stage}'; give memory={smallest} or a smaller image"
        )

    def __reduce__(self) -> tuple[type[BudgetError], tuple[int, int, str]]:
        return type(self), (self.given, self.smallest, self.stage)


def search(graph: Graph, budget: int, image_tile: Sequence[int] | None, where: str = "device") -> Steps:
    """The steps of the fastest plan found within a budget, its maps all in one place.

    Raises:
        BudgetError: none fits; it names the smallest that was found, and the stage that needs most.
    """
    measured = MeasuredTileBytes()
    target = budget
    smallest: Moment | None = None
    for _ in range(6):
        steps = _search(graph, target, image_tile, where)
        height = peak(graph, steps, measured)
        if smallest is None or height.bytes < smallest.bytes:
            smallest = height
        if height.bytes <= budget:
            return steps
        # The estimate of a tile was short: aim lower by as much as it missed.
        target = min(int(target * budget / height.bytes * 0.98), target - 1)
    assert smallest is not None
    raise BudgetError(budget, smallest.bytes, getattr(smallest.step, "layer", "the global part"))


def _search(graph: Graph, budget: int, image_tile: Sequence[int] | None, where: str) -> Steps:
    """The best over a few tile sizes; the smallest in bytes where none fits."""
    first = choose_stored(graph, image_tile)
    best: tuple[bool, float, Steps] | None = None
    limit = TILE_BYTES
    while limit >= TILE_BYTES >> 8:
        steps, height = _fit(graph, set(first), budget, image_tile, limit, where)
        fits = height <= budget
        score = work_of(steps) if fits else float(height)
        if best is None or (fits, -score) > (best[0], -best[1]):
            best = (fits, score, steps)
        if image_tile is not None or (best[0] and not fits):
            break
        limit >>= 1
    assert best is not None
    if best[0]:
        _keep_what_fits(graph, best[2], budget)
    return best[2]


def _fit(
    graph: Graph, stored: set[str], budget: int, image_tile: Sequence[int] | None, limit: int, where: str
) -> tuple[Steps, int]:
    """Drop stored maps, the most bytes for the least arithmetic first, until the plan fits or nothing helps."""
    estimate = TileBytes()
    draft = Draft(graph, stored, image_tile, limit)
    optional = draft.stored - must_store(graph)
    least = 1e-3 * graph_work(graph)

    def worth(name: str) -> float:
        return map_bytes(graph.nodes[name].value) / max(draft.extra_work(name), least)

    worths = {name: worth(name) for name in graph.locals if name in optional}
    best_steps = place_maps(graph, draft.steps(), where)
    best = peak(graph, best_steps, estimate).bytes
    while best > budget and worths:
        dropped = max(worths, key=worths.__getitem__)
        del worths[dropped]
        for name in draft.drop(dropped) & worths.keys():
            worths[name] = worth(name)
        steps = place_maps(graph, draft.steps(), where)
        height = peak(graph, steps, estimate).bytes
        if height < best:
            best, best_steps = height, steps
    return best_steps, best


def _keep_what_fits(graph: Graph, steps: Steps, budget: int) -> None:
    """Spend what is left of the budget on stages that then need not be computed twice."""
    estimate = TileBytes()
    stages = [step for step in steps if isinstance(step, Stage) and step.nodes]
    by_worth = sorted(stages, key=lambda s: stage_work(s) / max(1, estimate.saved(s) * s.tiles), reverse=True)
    for stage in by_worth:
        stage.way = "keep"
        if peak(graph, steps, estimate).bytes > budget:
            stage.way = "recompute"


def work_of(steps: Steps) -> float:
    """The multiply-adds of one forward, halos and maps computed twice counted."""
    return sum(stage_work(step) for step in steps if isinstance(step, Stage))
