"""Who runs a plan: one process that owns every map, or (distributed/member.py) one of several that own parts.

The runner asks its owner which tiles are its own, where maps live and what becomes of them once they are made. Alone,
every answer is the simple one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .boxes import Box, full
from .maps import DenseMap, Gradients, Map
from .ops.rule import Value
from .places import DEVICE, Place

if TYPE_CHECKING:
    from .ops.reductions import Reduction, State
    from .pages import Table
    from .plan.stages import Stage
    from .runner import Runner
    from .signature import Sharing

__all__ = ["ALONE", "Alone"]


class Alone:
    """One process that owns every map as a whole."""

    def tiles(self, stage: Stage, sharing: Sharing) -> Iterable[tuple[Box, int]]:
        """The tiles that run here, each with the number of tiles it stands for."""
        return sharing.tiles(stage)

    def late(self, stage: Stage, box: Box) -> bool:
        """Whether a tile reads what others have to send; such tiles come last."""
        return False

    def own(self, value: Value) -> Box:
        """The box of a map that is made here."""
        return full(value.extents)

    def input(self, value: Value, given: Any) -> Map:
        """The map of an input."""
        return DenseMap(value, given) if isinstance(given, Tensor) else given

    def release(self, maps: dict[str, Map], value: Value) -> None:
        """Let go of an input that autograd holds from here on."""
        maps.pop(value.name, None)

    def retake(self, maps: dict[str, Map], value: Value, tensor: Tensor) -> None:
        """Take such an input back for the backward."""
        maps[value.name] = DenseMap(value, tensor)

    def made(self, value: Value, place: Place = DEVICE, contiguous: bool = False) -> Any:
        """The map that a stage writes; ``contiguous`` whatever its tiles are."""
        return DenseMap(value, place=place, contiguous=contiguous)

    def pass_on(self, made: Any) -> None:
        """A map is complete."""

    def merged(self, reduction: Reduction, state: State | None) -> State:
        """The state of a reduction over all tiles, wherever they ran."""
        assert state is not None
        return state

    def result(self, made: Map) -> Tensor:
        """A map as the caller gets it."""
        return made.tensor

    @contextmanager
    def answering(self, runner: Runner) -> Iterator[None]:
        """Runs a forward or a backward; at its end nothing is under way, and an error says whose it is."""
        yield

    def gradients(self, places: Mapping[str, Place], tables: Mapping[str, Table]) -> Gradients:
        """Where one backward collects its gradients."""
        return Gradients(places, tables)


ALONE = Alone()
