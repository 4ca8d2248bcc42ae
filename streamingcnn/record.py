"""What a forward leaves for its backward, and the gradient that arrives there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .boxes import Box
from .maps import Map
from .ops.rule import Value
from .places import Place
from .plan.stages import Globals, Stage
from .sides import Sides
from .signature import Sharing

if TYPE_CHECKING:
    from .ops.reductions import Reduction


@dataclass
class RunTile:
    """A tile that was run: what it read, and its result, which may hold an autograd graph."""

    reads: list[tuple[Value, Box, Tensor]]
    result: Tensor


@dataclass
class Record:
    """All that backward needs of one forward."""

    maps: dict[str, Map] = field(default_factory=dict)
    env: dict[str, Any] = field(default_factory=dict)
    groups: dict[Globals, tuple[dict[str, Tensor], dict[str, Tensor]]] = field(default_factory=dict)
    kept: dict[Stage, tuple[Sides, dict[Box, RunTile]]] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    sharing: Sharing = field(default_factory=Sharing)

    def clear(self) -> None:
        """Let go of everything."""
        for held in (self.maps, self.env, self.groups, self.kept, self.versions, self.places):
            held.clear()


@dataclass
class Pull:
    """The gradient that arrives at a stage's target: of its map, and of the sums over it."""

    target: Value
    of_map: Callable[[Box], Tensor] | None
    of_sums: list[tuple[Reduction, Tensor, Tensor]]
    map: Map | None

    def at(self, box: Box, tile: Tensor | None, count: int = 1) -> Tensor:
        """The gradient at one tile, or at all those together that it stands for; sums need the tile's values."""
        gradient = None if self.of_map is None else self.of_map(box)
        values = self.map.read(box) if self.map is not None else None if tile is None else tile.detach()
        for reduction, result, of_sum in self.of_sums:
            assert values is not None
            pulled = reduction.pull(values, result, of_sum).expand_as(values)
            pulled = pulled if count == 1 else pulled * count
            gradient = pulled if gradient is None else gradient + pulled
        assert gradient is not None
        return gradient
