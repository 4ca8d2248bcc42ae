"""A step without numbers: the real runner and the real autograd function, on tensors that have shapes only.

Bytes could be added up by hand, stage by stage, and once they were: the sum went wrong whenever the runner changed.
So nothing is added up here. The very code of a step runs on the meta device under the counter that measures real
steps; whatever the step makes, holds and drops is made, held and dropped.

What is counted is all that a step makes beside what was there before it. Not counted: parameters, buffers, the
inputs, and gradients from earlier steps. Counted: stored maps and tiles, the results and the gradients that are given
to them, the gradients of inputs and of parameters.

A step of 10,000 tiles needs no 10,000 rehearsals, since most of its tiles are alike
(:mod:`streamingcnn.plan.alike`). One of each kind runs, and a second one where the first found no map to add to yet.
Where all graphs of a stage are kept, the tiles that were skipped are stood for by one tensor of their bytes.

The pages of a paged map come and go tile by tile. So where a stage writes or reads one, every tile that would run is
visited; but after two of a kind the others are not computed: they have the pages that they would write and add to, and
the height of the last one that ran is taken for theirs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..alone import ALONE, Alone
from ..boxes import Box
from ..graph import Given, Graph, requiring
from ..maps import Gradients, Map
from ..ops.rule import Value
from ..places import Nowhere, Place
from ..record import Pull, Record, RunTile
from ..runner import Runner
from ..sides import Sides
from ..signature import Sharing
from ..stream import Job, StreamFunction
from .alike import Alike, Kinds, Representative, representatives
from .meta import Remembering, Unread, shaped, without_numbers
from .stages import Globals, Stage

if TYPE_CHECKING:
    from ..distributed.member import Member
    from ..distributed.planning import Ranks


@dataclass(frozen=True)
class Moment:
    """The bytes alive at the height of one step, in forward or backward."""

    step: Stage | Globals
    backward: bool
    bytes: int


def rehearse(
    graph: Graph,
    steps: list[Stage | Globals],
    sharing: Sharing | None = None,
    ranks: Ranks | None = None,
    member: Member | None = None,
) -> Moment:
    """The highest moment of a step: forward and backward, or forward alone where nothing needs a gradient.

    Which gradients are wanted was seen at capture (``graph.trained``). ``sharing`` says which tiles run and which pages
    maps have, and which inputs are read from a source; None: all tiles, and none. Of several ``ranks`` it is the
    step of one ``member``.
    """
    sharing = Sharing() if sharing is None else sharing
    tensors: dict[Value, Tensor] = {}
    fixed: dict[str, Any] = {}
    changed = {name for name, _ in graph.mutations}
    for node in graph.nodes.values():
        if isinstance(node, Given):
            if node.source == "seed":
                fixed[node.value.name] = 0
            elif node.value.name in sharing.sources:
                fixed[node.value.name] = Unread(node.value)
            elif node.source == "constant" or node.key in changed:
                fixed[node.value.name] = without_numbers(graph, node)
            else:
                tensors[node.value] = without_numbers(graph, node)
                if ranks is not None and member is not None and node.value.name in ranks.parts:
                    shape, wanted = ranks.given(node.value, member), node.value.name in graph.trained
                    tensors[node.value] = shaped(shape, node.value.dtype).requires_grad_(wanted)
    runner = _RehearsedRunner(graph, steps, requiring(graph, set(graph.trained)), sharing, member or ALONE)
    try:
        runner.rehearse(tensors, fixed)
    except Exception as error:
        layer = getattr(runner.now[0], "layer", "what runs plainly")
        raise RuntimeError(
            f"the bytes of this plan are not known: '{layer}' does not run on tensors without numbers (the meta "
            f"device): {error}; an operation of your own needs a register_fake, a rule of your own torch operations"
        ) from error
    return runner.highest


class _Rehearsed(Sharing):
    """The same maps and pages, and the tiles that a rehearsal looks at."""

    def __init__(self, sharing: Sharing, tiles: Callable[[Stage], Iterator[tuple[Box, int]]]) -> None:
        super().__init__(sharing.tables, sharing.runs, sharing.sources)
        self._tiles = tiles

    def tiles(self, stage: Stage) -> Iterator[tuple[Box, int]]:
        return self._tiles(stage)


@dataclass
class _StandIn(RunTile):
    """A tile that was not run: its result has no numbers and no graph, but the graph's bytes."""

    graph: Tensor | None = None


class _RehearsedRunner(Runner):
    """The runner, on a few tiles of each stage; it notes in which step the most bytes are alive."""

    def __init__(
        self, graph: Graph, steps: list[Stage | Globals], needs: frozenset[str], sharing: Sharing, owner: Alone
    ) -> None:
        super().__init__(graph, steps, needs, "cpu", owner=owner)
        self.sharing = sharing
        self.live = Remembering(graph)
        self._alike: dict[Stage, Alike | None] = {}
        #: By stage, direction and kind of tile: how many were run, and what the last one took above what was there.
        self._ran: Counter[tuple[Stage, bool, Hashable]] = Counter()
        self._above: dict[tuple[Stage, bool, Hashable], int] = {}
        #: By kind of tile of a kept stage, what a tile and its graph take.
        self._kept: dict[tuple[Stage, bool, Hashable], int] = {}
        self._start: int | None = None
        self.recording = False
        self.highest = Moment(steps[0], False, 0)
        self.representatives: dict[Stage, list[Representative]] = {}
        #: Per kept stage and representative: what the graphs of the tiles skipped after it take.
        self.skipped: dict[Stage, list[Tensor | None]] = {}

    def rehearse(self, tensors: dict[Value, Tensor], fixed: dict[str, Any]) -> None:
        """One step, as a module makes it."""
        few = _Rehearsed(self.sharing, self._few_tiles)
        with torch.inference_mode(False), torch.set_grad_enabled(bool(self.needs)), self.live:
            if any(output.name in self.needs for output in self.outputs):
                self.recording = True
                job = Job(self, tuple(tensors), fixed, few)
                results = StreamFunction.apply(job, *tensors.values())  # type: ignore[no-untyped-call]
                job.results.clear()
                graded = [result for result in results if result.requires_grad]
                torch.autograd.backward(graded, [torch.empty_like(result) for result in graded])
            else:
                self.forward({**fixed, **{value.name: tensor for value, tensor in tensors.items()}}, None, few)
            self.see()

    def see(self) -> None:
        """Take note of the step that is going on, if it is the highest so far."""
        if self.live.peak > self.highest.bytes:
            self.highest = Moment(*self.now, self.live.peak)

    @contextmanager
    def _at(self, step: Stage | Globals, backward: bool) -> Iterator[None]:
        self.see()
        self.now = step, backward
        yield
        self.see()

    def _forward_stage(self, stage: Stage, *rest: Any) -> None:
        with self._at(stage, False):
            super()._forward_stage(stage, *rest)

    def _forward_globals(self, group: Globals, *rest: Any) -> None:
        with self._at(group, False):
            self.live.plain = True
            super()._forward_globals(group, *rest)
            self.live.plain = False

    def _backward_stage(self, stage: Stage, *rest: Any) -> None:
        with self._at(stage, True):
            super()._backward_stage(stage, *rest)

    def _backward_globals(self, group: Globals, *rest: Any) -> None:
        with self._at(group, True):
            super()._backward_globals(group, *rest)

    def _places(self, device: torch.device, recording: bool, sharing: Sharing) -> dict[str, Place]:
        """Maps outside take nothing; on a GPU, what is read of them does."""
        nowhere = Nowhere(copies=self.graph.device.type != "cpu")
        written = self.graph.written
        return {s.name: nowhere for s in self._outside() if s.name not in sharing.tables or s.name in written}

    def _few_tiles(self, stage: Stage) -> Iterator[tuple[Box, int]]:
        if self._alike_in(stage) is not None:
            return self.sharing.tiles(stage)
        return ((box, 1) for box in self._few_boxes(stage))

    def _few_boxes(self, stage: Stage) -> Iterator[Box]:
        if stage not in self.representatives:
            keep = stage.way == "keep" and self.recording and self._trains(stage)
            own = self.owner.own(stage.target)
            self.representatives[stage] = representatives(stage, keep, own, partial(self.owner.late, stage))
            if keep:
                yield from self._kept_boxes(stage)
                return
        held = self.skipped.get(stage)
        for k, one in enumerate(self.representatives[stage]):
            yield one.box
            if held is not None:
                held[k] = None  # in backward each graph goes with its tile

    def _kept_boxes(self, stage: Stage) -> Iterator[Box]:
        """The forward of a kept stage: between two tiles it shows what the graph of the first one takes."""
        held = self.skipped[stage] = []
        saved: dict[Kinds, int] = {}
        for one in self.representatives[stage]:
            before = self.live.current
            yield one.box
            # The very first tile also made the map; where tiles of its kind are skipped, a second one ran.
            saved[one.kind] = self.live.current - before
            rest = sum(saved[kind] * count for kind, count in one.skipped.items())
            held.append(torch.empty(rest, dtype=torch.uint8, device="meta"))

    # ------------------------------------------------------------------ stages with pages: every tile is visited

    def _alike_in(self, stage: Stage) -> Alike | None:
        """Which tiles of a stage are alike, where it has to do with pages; None where it has not."""
        if stage not in self._alike:
            tables = self.sharing.tables
            pages = stage in self.sharing.runs or any(value.name in tables for value in stage.frontier)
            self._alike[stage] = Alike(stage, tables) if pages and stage.nodes else None
        return self._alike[stage]

    def _mark(self) -> int:
        """Begin to look for the height of what follows; return what is there now."""
        self.see()
        self.live.peak = self.live.current
        return self.live.current

    def _stands_for(self, key: tuple[Stage, bool, Hashable]) -> None:
        """Take note of the height that a tile would reach which is not run."""
        height = self.live.current + self._above[key]
        if height > self.highest.bytes:
            self.highest = Moment(*self.now, height)

    def _forward_tile(self, stage: Stage, box: Box, maps: dict[str, Map], sides: Sides, keep: bool) -> RunTile:
        alike = self._alike_in(stage)
        if alike is None:
            return super()._forward_tile(stage, box, maps, sides, keep)
        key = stage, False, alike.kind(box)
        if self._ran[key] < 2:
            self._ran[key] += 1
            start = self._mark()
            done = super()._forward_tile(stage, box, maps, sides, keep)
            self._above[key], self._kept[key] = self.live.peak - start, self.live.current - start
            return done
        self._stands_for(key)
        result = torch.empty(stage.target.shape_at(box), dtype=stage.target.dtype, device="meta")
        rest = max(0, self._kept[key] - result.untyped_storage().nbytes()) if keep else 0
        return _StandIn([], result, torch.empty(rest, dtype=torch.uint8, device="meta") if rest else None)

    def _recomputed(self, stage: Stage, box: Box, record: Record, sides: Sides) -> RunTile:
        alike = self._alike_in(stage)
        if alike is None:
            return super()._recomputed(stage, box, record, sides)
        key = stage, True, alike.kind(box)
        if self._ran[key] < 2:
            self._ran[key] += 1
            self._start = self._mark()
            return super()._recomputed(stage, box, record, sides)
        return _StandIn([], torch.empty(stage.target.shape_at(box), dtype=stage.target.dtype, device="meta"))

    def _backward_tile(
        self,
        stage: Stage,
        box: Box,
        tile: RunTile,
        pull: Pull,
        count: int,
        sides: Sides,
        gradients: Gradients,
        retain: bool,
    ) -> None:
        alike = self._alike_in(stage)
        if alike is None:
            super()._backward_tile(stage, box, tile, pull, count, sides, gradients, retain)
            return
        key = stage, True, alike.kind(box)
        if not isinstance(tile, _StandIn):
            start = self._mark() if self._start is None else self._start
            super()._backward_tile(stage, box, tile, pull, count, sides, gradients, retain)
            self._above[key], self._start = self.live.peak - start, None
            return
        self._stands_for(key)
        pull.at(box, tile.result, count)  # takes the page of its gradient
        for value, part in alike.reads(box):
            if value.name in self.needs and value.name in gradients.tables:
                gradient = torch.empty(value.shape_at(part), dtype=value.dtype, device="meta")
                gradients.paged_of(value).reserve(part, gradient)
