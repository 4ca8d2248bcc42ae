"""Plans for several ranks: the same steps for all, within the budget of the rank that holds most.

A plan of the whole image is looked for within a larger budget, and rehearsed as the ranks would run it: their own
tiles, their seams, their buffers for messages. The largest budget is taken whose rehearsal keeps to the ranks' own.

    ranks' budget 4 GiB, 4 ranks      looked for within 16 GiB    rehearsed: 4.6 GiB
                                      within 4 GiB                rehearsed: 1.3 GiB
                                      within 8 GiB                rehearsed: 2.5 GiB
                                      within 11.3 GiB             rehearsed: 3.6 GiB, taken
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..boxes import Box, sizes, tiles_in, volume
from ..graph import Graph
from ..layout import layout_of
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
        rank: which of them makes the plan.
    """

    division: Division
    gather: bool
    parts: frozenset[str] = frozenset()
    rank: int = 0

    def __len__(self) -> int:
        count = 1
        for along in self.division.parts:
            count *= along
        return count

    def layout(self, graph: Graph, steps: Sequence[Stage | Globals]) -> Layout:
        """What each rank owns and holds."""
        return Layout(graph, steps, self.division, self.gather)

    def boxes(self, stage: Stage) -> tuple[Box, ...]:
        """By rank, what each makes of a stage's target."""
        return self.division.boxes(stage.target.extents)

    def tiles(self, stage: Stage) -> int:
        """How many tiles of a stage this rank runs."""
        return tiles_in(sizes(self.boxes(stage)[self.rank]), stage.tile)

    def members(self, graph: Graph, steps: Sequence[Stage | Globals]) -> list[Member]:
        """The ranks on tensors without numbers; one of those whose boxes have the same sizes and borders everywhere."""
        layout = self.layout(graph, steps)
        tables = [*layout.owned.items(), *layout.held.items(), *layout.pulled.items()]
        unlike: dict[Hashable, int] = {}
        for rank in range(len(self)):
            boxes = [(boxes[rank], graph.nodes[name].value.extents) for name, boxes in tables]
            unlike.setdefault(tuple((sizes(box), _borders(box, extents)) for box, extents in boxes), rank)
        return [_Rehearsing(layout, _Silent(rank, len(self))) for rank in unlike.values()]

    def given(self, value: Value, member: Member) -> tuple[int, ...]:
        """The shape of what a rank is given of an input."""
        return value.shape_at(member.own(value)) if value.name in self.parts else value.shape


def _borders(box: Box, extents: Sequence[int]) -> tuple[tuple[bool, bool], ...]:
    """Which borders of its map a box touches: beyond them, tiles need nothing."""
    return tuple((low == 0, high == extent) for (low, high), extent in zip(box, extents, strict=True))


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

    def failed(self, why: str) -> None:
        """Nobody to tell."""


class _Rehearsing(Member):
    """A member of a rehearsal, which says itself which tiles it looks at."""

    def __init__(self, layout: Layout, link: Link) -> None:
        super().__init__(layout, link, torch.device("meta"))

    def tiles(self, stage: Stage, sharing: Sharing) -> Iterable[tuple[Box, int]]:
        return sharing.tiles(stage)

    def merged(self, reduction: Reduction, state: State | None) -> State:
        if state is None:  # this rank has no tile; its state has the shape of any
            empty = torch.empty(reduction.value.shape_at(self._largest(reduction.value)), device="meta")
            state = reduction.partial(empty.to(reduction.value.dtype))
        return state

    def _largest(self, value: Value) -> Box:
        return max(self.layout.owned[value.name], key=volume)


def plan_for_ranks(graph: Graph, memory: int, ranks: Ranks, image_tile: Sequence[int] | None = None) -> Steps:
    """The fastest plan found whose every rank stays within its budget.

    Raises:
        BudgetError: none does; it names the smallest that was found.
    """
    times, best, least = times_of(graph.device, layout_of(graph)), list[Steps](), list[Any]()

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
