"""One rank of several that run a plan together.

Every rank walks the same steps and runs its own boxes of each. Between them:

    forward     a map is made      its seams go to the ranks whose tiles will read them
                sums over a map    the states of all ranks are merged, in the order of the ranks, on each of them
                plain nodes        run on every rank, on whole maps
    backward    of a map           what tiles gave to pixels of others goes to their owners
                of a global value  what came from tiles is summed over the ranks; what came from plain nodes is the
                                   same everywhere, and counts once

The ranks take part in the same messages in the same order, whether or not they have tiles of a stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..alone import Alone
from ..boxes import Box, contains, shift, sizes, volume
from ..boxes import grid as tiled
from ..maps import Gradients, Map
from ..ops.rule import Value, along
from ..pages import Table
from ..places import DEVICE, Place
from .ended import last_words
from .link import Link, PartitionError
from .maps import PartGradient, PartMap, whole
from .ownership import Layout

if TYPE_CHECKING:
    from ..ops.reductions import Reduction, State
    from ..plan.stages import Stage
    from ..runner import Runner
    from ..signature import Sharing

__all__ = ["Member"]


class Member(Alone):
    """A rank's part in a plan.

    Args:
        layout: what every rank owns and holds.
        link: the connection to the others.
        device: where this rank computes.
    """

    def __init__(self, layout: Layout, link: Link, device: torch.device) -> None:
        self.layout, self.link, self.device = layout, link, device
        self._tiles: dict[Stage, list[tuple[Box, int]]] = {}

    # ------------------------------------------------------------------ forward

    def tiles(self, stage: Stage, sharing: Sharing) -> Iterable[tuple[Box, int]]:
        """The tiles of the own box; those that read nothing of others come first, while the seams travel."""
        if stage not in self._tiles:
            own = self.own(stage.target)
            low = [start for start, _ in own]
            boxes = [shift(box, low) for box in tiled(sizes(own), stage.tile)] if volume(own) else []
            boxes.sort(key=lambda box: self.late(stage, box))
            self._tiles[stage] = [(box, 1) for box in boxes]
        return self._tiles[stage]

    def own(self, value: Value) -> Box:
        """The box of a map that this rank owns."""
        return self.layout.owned[value.name][self.link.rank]

    def late(self, stage: Stage, box: Box) -> bool:
        return not all(contains(self.own(value), read) for value, read in stage.program(box).reads)

    def input(self, value: Value, given: Any) -> Map:
        if not isinstance(given, Tensor) or tuple(given.shape) == value.shape:
            return super().input(value, given)
        made = self.made(value)
        if given.numel():
            made.write(made.own, given)
        self.pass_on(made)
        return made

    def release(self, maps: dict[str, Map], value: Value) -> None:
        # A part holds pixels of others, which autograd does not have.
        if not isinstance(maps.get(value.name), PartMap):
            super().release(maps, value)

    def retake(self, maps: dict[str, Map], value: Value, tensor: Tensor) -> None:
        if tuple(tensor.shape) == value.shape:
            super().retake(maps, value, tensor)

    def made(self, value: Value, place: Place = DEVICE, contiguous: bool = False) -> PartMap:
        held = self.layout.held[value.name][self.link.rank]
        return PartMap(value, self.own(value), held, self.device, contiguous=contiguous)

    def pass_on(self, made: Any) -> None:
        if isinstance(made, PartMap):
            made.exchange(self.link, self.layout.forward(made.value.name))

    def merged(self, reduction: Reduction, state: State | None) -> State:
        here = pytree.tree_map_only(Tensor, lambda tensor: tensor.cpu(), state)
        states = [one for one in self.link.all_of(f"merge sums over {reduction.value.name}", here) if one is not None]
        total = states[0]
        for one in states[1:]:
            total = reduction.merge(total, one)
        moved: State = pytree.tree_map_only(Tensor, lambda tensor: tensor.to(self.device), total)
        return moved

    @contextmanager
    def answering(self, runner: Runner) -> Iterator[None]:
        def stage() -> str:
            step, backward = runner.now
            return f"{'backward' if backward else 'forward'} of '{getattr(step, 'layer', 'what runs plainly')}'"

        with last_words(lambda: self.link.last_words(stage())):
            try:
                yield
                self.link.finish()
            except Exception as error:
                if not isinstance(error, PartitionError):  # which says what it knows of others
                    self.link.failed(f"{type(error).__name__}: {error} ({stage()})")
                error.add_note(
                    f"(rank {self.link.rank} of {self.link.size}, {stage()}; the other ranks lose this one when its "
                    "process ends)"
                )
                raise

    def result(self, made: Map) -> Tensor:
        return made.part if isinstance(made, PartMap) and not self.layout.gather else made.tensor

    # ----------------------------------------------------------------- backward

    def gradients(self, places: Mapping[str, Place], tables: Mapping[str, Table]) -> Gradients:
        return _PartGradients(self)


class _PartGradients(Gradients):
    """Gradients of which every rank has a part: of maps by ownership, of global values as a summand."""

    def __init__(self, member: Member) -> None:
        super().__init__()
        self.member, self.layout, self.link = member, member.layout, member.link
        self._parts: dict[str, PartGradient] = {}
        #: Names that tiles give gradients to, on this rank or another.
        self._reached: set[str] = set()
        #: Complete by themselves, the same on every rank.
        self._by_all: dict[str, Tensor] = {}

    def clear(self) -> None:
        super().clear()
        for held in (self._parts, self._reached, self._by_all):
            held.clear()

    def reach(self, values: Iterable[Value]) -> None:
        self._reached |= {value.name for value in values}

    def add_box(self, value: Value, box: Box, gradient: Tensor | None) -> None:
        if gradient is None:
            return
        if self.layout.replicated(value.name):
            super().add_box(value, box, gradient)
        else:
            self._part(value).add(box, gradient)

    def _part(self, value: Value) -> PartGradient:
        if value.name not in self._parts:
            pulled = self.layout.pulled[value.name][self.link.rank]
            self._parts[value.name] = PartGradient(value, self.member.own(value), pulled, self.member.device)
        return self._parts[value.name]

    def add_by_all(self, value: Value, gradient: Tensor | None) -> None:
        if gradient is None:
            return
        if value.spatial and not self.layout.replicated(value.name):
            own = self.member.own(value)
            mine = tuple(gradient.shape) == value.shape
            self.add_box(value, own, along(gradient, value.axes or (), own) if mine else gradient)
        elif value.name in self._by_all:
            self._by_all[value.name] = self._by_all[value.name] + gradient
        else:
            self._by_all[value.name] = gradient

    def settle(self, values: Iterable[Value]) -> None:
        """Sum what tiles gave over the ranks; it is complete from here on."""
        waiting = [v for v in values if v.name in self._reached and (not v.spatial or self.layout.replicated(v.name))]
        self._reached -= {value.name for value in waiting}
        summands = []
        for value in waiting:
            found = super().pop(value)
            wide = value.dtype if value.dtype == torch.float64 or value.spatial else torch.float32
            if found is None:
                found = torch.zeros(value.shape, dtype=wide, device=self.member.device)
            summands.append(found.to(wide).contiguous())
        if summands:
            names = waiting[0].name + (f" and {len(waiting) - 1} more" if len(waiting) > 1 else "")
            for value, total in zip(waiting, self.link.summed(f"sum the gradient of {names}", summands), strict=True):
                before = self._by_all.get(value.name)
                self._by_all[value.name] = total if before is None else total + before

    def pop(self, value: Value) -> Tensor | None:
        self.settle([value])
        if not value.spatial or self.layout.replicated(value.name):
            return self._by_all.pop(value.name, None)
        part = self._complete(value)
        return None if part is None else part.part

    def pop_map(self, value: Value) -> Callable[[Box], Tensor] | None:
        if self.layout.replicated(value.name):
            self.settle([value])
            found = self._by_all.pop(value.name, None)
            if found is None:
                return None
            axes = value.axes or ()
            return lambda box: along(found, axes, box)
        part = self._complete(value)
        return None if part is None else part.read

    def pop_given(self, value: Value, given: Tensor) -> Tensor | None:
        gradient = self.pop(value)
        if gradient is None or not value.spatial or tuple(given.shape) != value.shape:
            return gradient
        # Every rank was given all of the image, and gets all of its gradient.
        return whole(gradient, value, self.link, self.layout.owned[value.name], self.member.device)

    def _complete(self, value: Value) -> PartGradient | None:
        if value.name not in self._parts and value.name not in self._reached:
            return None
        self._reached.discard(value.name)
        part = self._part(value)
        del self._parts[value.name]
        part.exchange(self.link, self.layout.backward(value.name))
        return part
