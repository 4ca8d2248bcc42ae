"""Who owns what: every map divided into one box per rank, by integers alone.

    a map of 13 rows, four ranks       rank 0 [0 3)   1 [3 7)   2 [7 10)   3 [10 13)
    weights 1 : 5, two ranks           rank 0 [0 2)   1 [2 13)
    a map of 2 rows, four ranks        rank 0 [0 1)   1 [1 1)   2 [1 2)    3 [2 2)     two of them own nothing

Each map is divided by its own shape, so strides, odd sizes and maps smaller than the number of ranks need no care:
what a rank's box of the next map needs of this one is what the engine says it needs of any box, and the ranks that own
it send it. A rank holds more of a map than it owns:

    owned       [3 7)        by exactly one rank
    held        [2 8)        with all that its own boxes of later maps read
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise, product
from math import prod

from ..boxes import Box, Interval, full, hull, intersect, volume
from ..graph import Graph, Plain
from ..ops.rule import Value
from ..plan.stages import Globals, Stage

__all__ = ["Division", "Layout", "Message"]


@dataclass(frozen=True)
class Division:
    """How any map is divided: into so many parts along each spatial axis, in proportion to weights.

    >>> Division((2, 1), ((1, 1), (1,))).boxes((13, 8))
    (((0, 7), (0, 8)), ((7, 13), (0, 8)))

    Attributes:
        parts: per spatial axis; 1 where it is not divided.
        weights: per spatial axis, one positive number for each part.
    """

    parts: tuple[int, ...]
    weights: tuple[tuple[float, ...], ...]

    def boxes(self, extents: Sequence[int]) -> tuple[Box, ...]:
        """By rank, the last axis fastest: the box that it owns of a map of these extents; empty for some."""
        return tuple(product(*(self._along(axis, extent) for axis, extent in enumerate(extents))))

    def _along(self, axis: int, extent: int) -> list[Interval]:
        shares = [Fraction(weight) for weight in self.weights[axis]]
        ends, total = [0], sum(shares)
        for k in range(len(shares)):
            ends.append(int(extent * sum(shares[: k + 1]) / total + Fraction(1, 2)))
        return list(pairwise(ends))


@dataclass(frozen=True)
class Message:
    """A box of one map that a rank sends to another."""

    sender: int
    receiver: int
    box: Box


@dataclass(eq=False)
class Layout:
    """What the ranks own and hold of each stored map of a plan.

    Attributes:
        owned: by name and rank.
        held: by name and rank: the owned box and all that the rank's tiles read.
        pulled: by name and rank: where a rank's tiles give gradients to, and what it owns.
    """

    graph: Graph
    steps: Sequence[Stage | Globals]
    division: Division
    #: Whether every rank gets results as a whole.
    gather: bool = True
    owned: dict[str, tuple[Box, ...]] = field(default_factory=dict)
    held: dict[str, tuple[Box, ...]] = field(default_factory=dict)
    pulled: dict[str, tuple[Box, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        read, whole = self._read(), self._whole()
        for value in self._maps():
            own = self._owned(value)
            wanted = read.get(value.name, [[] for _ in own])
            self.owned[value.name] = own
            self.pulled[value.name] = tuple(_hull((box, *more)) for box, more in zip(own, wanted, strict=True))
            everything = full(value.extents)
            self.held[value.name] = (everything,) * len(own) if value.name in whole else self.pulled[value.name]

    @property
    def ranks(self) -> int:
        return prod(self.division.parts)

    def replicated(self, name: str) -> bool:
        """Whether every rank makes the whole map itself."""
        return isinstance(self.graph.nodes[name], Plain)

    def forward(self, name: str) -> Iterator[Message]:
        """Who sends what of a map once it is made."""
        return self._messages(self.owned[name], self.held[name], name)

    def backward(self, name: str) -> Iterator[Message]:
        """Who sends what of a map's gradient before its maker's turn: what it gave to pixels of others."""
        forward = self._messages(self.owned[name], self.pulled[name], name)
        return (Message(message.receiver, message.sender, message.box) for message in forward)

    def bytes_sent(self, value: Value, messages: Iterable[Message], rank: int) -> int:
        """The bytes of those messages that a rank sends."""
        per_pixel = value.depth * value.dtype.itemsize
        return sum(volume(message.box) * per_pixel for message in messages if message.sender == rank)

    def _messages(self, owned: Sequence[Box], wanted: Sequence[Box], name: str) -> Iterator[Message]:
        if self.replicated(name):
            return
        for sender, receiver in product(range(self.ranks), repeat=2):
            box = None if sender == receiver else intersect(owned[sender], wanted[receiver])
            if box is not None:
                yield Message(sender, receiver, box)

    def _maps(self) -> Iterator[Value]:
        """Every map that is an input, stored, made plainly, or summed over."""
        found: dict[str, Value] = {v.name: v for v in self.graph.inputs.values() if v.spatial}
        for step in self.steps:
            values = (step.target,) if isinstance(step, Stage) else (*step.reads, *step.results)
            found.update({value.name: value for value in values if value.spatial})
        return iter(found.values())

    def _owned(self, value: Value) -> tuple[Box, ...]:
        return self.division.boxes(value.extents)

    def _read(self) -> dict[str, list[list[Box]]]:
        """By map and rank the boxes that the rank's tiles read."""
        read: dict[str, list[list[Box]]] = {}
        for step in self.steps:
            if not isinstance(step, Stage):
                continue
            for rank, box in enumerate(self._owned(step.target)):
                if not volume(box):
                    continue
                needed = step.needs(box)
                for value in step.frontier:
                    read.setdefault(value.name, [[] for _ in range(self.ranks)])[rank] += needed[value.name]
        return read

    def _whole(self) -> set[str]:
        """The maps that every rank holds as a whole: what plain nodes read or make, and results where gathered."""
        names = {value.name for value in self.graph.outputs if isinstance(value, Value) and self.gather}
        for step in self.steps:
            if isinstance(step, Globals):
                names |= {value.name for value in (*step.reads, *step.results)}
        return names


def _hull(boxes: Iterable[Box]) -> Box:
    """The hull of the boxes that hold pixels; an empty box where none does."""
    boxes = list(boxes)
    return hull([box for box in boxes if volume(box)] or boxes[:1])
