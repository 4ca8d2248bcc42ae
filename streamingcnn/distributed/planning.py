"""Plans for several ranks: the same steps for all, within the budget of the rank that holds most.

A plan of the whole image is looked for within a larger budget, and rehearsed as the rank with the largest parts would
run it: its own tiles, its seams, its buffers for messages. The largest budget is taken whose rehearsal keeps to the
rank's own.

    rank's budget 4 GiB, 4 ranks      looked for within 16 GiB    rehearsed: 4.6 GiB
                                      within 4 GiB                rehearsed: 1.3 GiB
                                      within 8 GiB                rehearsed: 2.5 GiB
                                      within 11.3 GiB             rehearsed: 3.6 GiB, taken
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..boxes import Box, volume
from ..graph import Graph
from ..ops.rule import Value
from ..plan.peak import exact_peak
from ..plan.search import BudgetError, search, smallest
from ..plan.stages import Globals, Stage
from ..plan.times import times_of
from ..signature import Sharing
from .link import Link, Parcel, Pending
from .member import Member
from .ownership import Division, Layout

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..ops.reductions import Reduction, State

__all__ = ["Ranks", "plan_for_ranks"]

Steps = list[Stage | Globals]
#: How often the larger budget is halved (in proportion) towards one that fits.
ROUNDS = 3


@dataclass(frozen=True, eq=False)
class Ranks:
    """The ranks that a plan is made for.

    Attributes:
        division: how they divide maps.
        gather: whether each gets results as a whole.
        parts: the names of the inputs of which each is given its own box only.
    """

    division: Division
    gather: bool
    parts: frozenset[str] = frozenset()

    def __len__(self) -> int:
        count = 1
        for along in self.division.parts:
            count *= along
        return count

    def layout(self, graph: Graph, steps: Sequence[Stage | Globals]) -> Layout:
        """What each rank owns and holds."""
        return Layout(graph, steps, self.division, self.gather)

    def member(self, graph: Graph, steps: Sequence[Stage | Globals]) -> Member:
        """The rank that holds most, on tensors without numbers."""
        layout = self.layout(graph, steps)
        held = [0] * len(self)
        for name, boxes in layout.held.items():
            value = graph.nodes[name].value
            for rank, box in enumerate(boxes):
                held[rank] += volume(box) * value.depth * value.dtype.itemsize
        return _Rehearsing(layout, _Silent(held.index(max(held)), len(self)))

    def given(self, value: Value, member: Member) -> tuple[int, ...]:
        """The shape of what a rank is given of an input."""
        return value.shape_at(member.own(value)) if value.name in self.parts else value.shape


class _Silent(Link):
    """A link without ranks at its other ends: buffers are made, and nothing comes."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size, self.timeout = rank, size, timedelta(0)
        self.sent, self.summed_bytes, self.waited = 0, 0, 0.0
        self._under_way: list[Pending] = []

    def start(self, what: str, sent: Sequence[Parcel], received: Sequence[Parcel]) -> Pending:
        self.finish()
        pending = Pending(self, what, sent, received)
        self._under_way.append(pending)
        return pending

    def add_up(self, what: str, tensor: Tensor) -> None:
        """Nothing to add."""


class _Rehearsing(Member):
    """A member of a rehearsal, which says itself which tiles it looks at."""

    def __init__(self, layout: Layout, link: Link) -> None:
        super().__init__(layout, link, torch.device("meta"))

    def tiles(self, stage: Stage, sharing: Sharing) -> Iterable[tuple[Box, int]]:
        return sharing.tiles(stage)

    def merged(self, reduction: Reduction, state: State | None) -> State:
        assert state is not None
        return state


def plan_for_ranks(graph: Graph, memory: int, ranks: Ranks, image_tile: Sequence[int] | None = None) -> Steps:
    """The fastest plan found whose every rank stays within its budget.

    Raises:
        BudgetError: none does; it names the smallest that was found.
    """
    times, best, least = times_of(graph.device), list[Steps](), list[Any]()

    def fits(larger: int) -> bool:
        try:
            steps = search(graph, larger, times, image_tile)
        except BudgetError:
            return False
        least.append(exact_peak(graph, steps, ranks=ranks))
        if least[-1].bytes <= memory:
            best.append(steps)
        return bool(least[-1].bytes <= memory)

    low, high = memory, memory * len(ranks)
    if not fits(high) and fits(low):
        # What does not shrink with the number of ranks (gradients of parameters, a tile) decides where between.
        for _ in range(ROUNDS):
            middle = int((low * high) ** 0.5)
            low, high = (middle, high) if fits(middle) else (low, middle)
    if best:
        return best[-1]
    steps = smallest(graph, times, image_tile)
    least.append(exact_peak(graph, steps, ranks=ranks))
    if least[-1].bytes <= memory:
        return steps
    highest = min(least, key=lambda moment: moment.bytes)
    raise BudgetError(memory, highest.bytes, getattr(highest.step, "layer", "the global part"))
