"""Plans for several ranks: the same steps for all, within the budget of the rank that holds most.

A plan of the whole image is looked for within a larger budget, and rehearsed as the rank with the largest parts would
run it: its own tiles, its seams, its buffers for messages. The larger budget is corrected until the rehearsal keeps to
the rank's own.

    rank's budget 4 GiB, 4 ranks      looked for within 16 GiB    rehearsed: 4.6 GiB
                                      within 13.6 GiB             rehearsed: 3.9 GiB, taken
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
#: How often the larger budget is corrected.
ROUNDS = 6


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

    def summed(self, what: str, tensors: Sequence[Tensor]) -> list[Tensor]:
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        return [part.view(t.shape) for part, t in zip(flat.split([t.numel() for t in tensors]), tensors, strict=True)]


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
    times = times_of(graph.device)
    best: Steps | None = None
    least: tuple[int, Any] | None = None
    larger = memory * len(ranks)
    for _ in range(ROUNDS):
        try:
            steps = search(graph, larger, times, image_tile)
        except BudgetError:
            break
        highest = exact_peak(graph, steps, ranks=ranks)
        least = min(least or (highest.bytes, highest), (highest.bytes, highest), key=lambda one: one[0])
        if highest.bytes <= memory:
            best = steps
            if highest.bytes > 0.9 * memory or larger >= 64 * memory * len(ranks):
                break
            larger = int(larger * min(1.5, 0.97 * memory / max(highest.bytes, 1)))
        elif best is not None:
            break
        else:
            larger = int(larger * max(0.2, 0.95 * memory / highest.bytes))
    if best is not None:
        return best
    steps = smallest(graph, times, image_tile)
    highest = exact_peak(graph, steps, ranks=ranks)
    if highest.bytes <= memory:
        return steps
    if least is not None and least[0] < highest.bytes:
        highest = least[1]
    raise BudgetError(memory, highest.bytes, getattr(highest.step, "layer", "the global part"))
