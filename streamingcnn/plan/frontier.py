"""What memory buys: the fastest plan at each of several budgets.

time
 |  *  the smallest budget that works
 |     *
 |         *   *
 |                 *    *    plain PyTorch's bytes
 +------------------------|-----> bytes
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ..graph import Graph
from .cost import graph_work, stage_work
from .plan import Plan, make_plan
from .search import BudgetError

__all__ = ["budgets", "frontier", "smallest_budget", "step_work"]


def smallest_budget(graph: Graph, tile: int | Sequence[int] | None = None) -> int:
    """The fewest bytes for which a plan is found."""
    try:
        make_plan(graph, tile, memory=1)
    except BudgetError as error:
        return error.smallest
    return 1  # a network that keeps nothing


def budgets(smallest: int, largest: int, count: int = 8) -> list[int]:
    """Budgets in equal ratios, both ends among them.

    >>> budgets(1000, 8000, 4)
    [1000, 2000, 4000, 8000]
    """
    largest = max(smallest, largest)
    ratio = (largest / smallest) ** (1 / (count - 1))
    steps = (round(smallest * ratio**k) for k in range(1, count - 1))
    return list(dict.fromkeys([smallest, *steps, largest]))


def frontier(graph: Graph, given: Iterable[int], tile: int | Sequence[int] | None = None) -> Iterator[Plan]:
    """The plan of each budget; a budget for which none is found is passed over."""
    for budget in given:
        try:
            yield make_plan(graph, tile, memory=budget)
        except BudgetError:
            continue


def step_work(plan: Plan) -> float:
    """The multiply-adds of one training step, in those of plain PyTorch.

    Forward counts one and backward two; a stage that is computed again for its backward counts one more.
    """
    work = sum(stage_work(stage) * (3 if stage.way == "keep" else 4) for stage in plan.stages)
    return work / max(3 * graph_work(plan.graph), 1)
