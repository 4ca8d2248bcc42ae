"""A step without numbers: the real runner and the real autograd function, on tensors that have shapes only.

Bytes could be added up by hand, stage by stage, and once they were: the sum went wrong whenever the runner changed.
So nothing is added up here. The very code of a step runs on the meta device under the counter that measures real
steps; whatever the step makes, holds and drops is made, held and dropped.

What is counted is all that a step makes beside what was there before it. Not counted: parameters, buffers, the
inputs, and gradients from earlier steps. Counted: stored maps and tiles, the results and the gradients that are given
to them, the gradients of inputs and of parameters.

A step of 10,000 tiles needs no 10,000 rehearsals, since most of its tiles are alike:

    axis of 13 pixels, tile 3, window 3       [0 3)  [3 6)  [6 9)  [9 12)  [12 13)
    what the window needs, clipped            [0 4)  [2 7)  [5 10) [8 13)  [11 13)
    kind                                      a      b      b      c       d

Two tiles whose intervals are of the same kind along each axis are the same computation at another place. One of each
kind runs, and a second one where the first found no map to add to yet. Where all graphs of a stage are kept, the
tiles that were skipped are stood for by one tensor of their bytes.

The pages of a paged map come and go tile by tile. So where a stage writes or reads one, every tile that would run is
visited; but after two of a kind the others are not computed: they have the pages that they would write and add to, and
the height of the last one that ran is taken for theirs.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..alone import ALONE, Alone
from ..boxes import Box, Interval, full, merge, split, volume
from ..graph import Given, Graph
from ..maps import Gradients, Map
from ..memory import LiveBytes, allocated, storages
from ..ops.rule import Value
from ..pages import Table
from ..places import Nowhere, Place
from ..runner import Pull, Record, Runner, RunTile, requiring
from ..sides import Sides
from ..signature import Sharing
from ..stream import Job, StreamFunction
from .stages import Globals, Stage

if TYPE_CHECKING:
    from ..distributed.member import Member
    from ..distributed.planning import Ranks

#: A tile whose values take less than this share of the largest tile's cannot be the highest: the copies that padding
#: makes at a border are at most as large as what is padded.
LIGHT = 0.5


class Kind(NamedTuple):
    """What a tile is like along one axis; tiles of equal kinds along every axis are alike."""

    #: How many pixels it needs of each value: of the stage's frontier first, then of its nodes.
    lengths: tuple[int, ...]
    #: The same in detail: of each value the intervals' lengths, and how many borders of the map each touches. What
    #: is padded follows: the window's length less the interval's.
    pieces: tuple[tuple[tuple[int, int], ...], ...]


#: One kind per axis.
Kinds = tuple[Kind, ...]


@dataclass(frozen=True)
class Moment:
    """The bytes alive at the height of one step, in forward or backward."""

    step: Stage | Globals
    backward: bool
    bytes: int


@dataclass
class Representative:
    """A tile that stands for others: those of its kind that come later, and the ones skipped right after it."""

    box: Box
    kind: Kinds
    skipped: Counter[Kinds] = field(default_factory=Counter)


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
                fixed[node.value.name] = _Unread(node.value)
            elif node.source == "constant" or node.key in changed:
                fixed[node.value.name] = _without_numbers(graph, node)
            else:
                tensors[node.value] = _without_numbers(graph, node)
                if ranks is not None and member is not None and node.value.name in ranks.parts:
                    shape, wanted = ranks.given(node.value, member), node.value.name in graph.trained
                    tensors[node.value] = _empty(shape, node.value.dtype).requires_grad_(wanted)
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


def _without_numbers(graph: Graph, node: Given) -> Any:
    """A tensor that has the shape, strides and dtype of the given one, and asks for a gradient where that does."""
    value = node.value
    if node.source == "constant":
        return node.key.to("meta") if isinstance(node.key, Tensor) else node.key
    if prod(value.shape) == 1 and not value.dtype.is_floating_point:
        return torch.zeros(value.shape, dtype=value.dtype)  # a counter of batches, which plain nodes read
    strides = graph.strides.get(value.name)
    if strides is None:
        tensor = torch.empty(value.shape, dtype=value.dtype, device="meta")
    else:
        tensor = torch.empty_strided(value.shape, strides, dtype=value.dtype, device="meta")
    return tensor.requires_grad_(value.name in graph.trained)


#: Operations that name a device and make pixels; all others that rules call with one make indices, which have numbers.
_OF_PIXELS = {torch.ops.aten.full.default, torch.ops.aten._to_copy.default}

#: By graph, operation and arguments: what came out, as the type of the container and each tensor's metadata.
_KNOWN: WeakKeyDictionary[Graph, dict[Any, tuple[type | None, list[Any]]]] = WeakKeyDictionary()


class _Remembering(LiveBytes):
    """Counts, and remembers what an operation gives: the same is asked over and over, and PyTorch takes its time.

    A third of PyTorch's operations find the shape of their result in Python, some in 500 microseconds.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__(fake=True)
        #: Whether a group of plain nodes is running, whose every result is without numbers.
        self.plain = False
        self._known = _KNOWN.setdefault(graph, {})

    def _counts(self, storage: torch.UntypedStorage) -> bool:
        # A few small tensors are made of numbers also here (where pixels come from when a map is resized, counters of
        # batches): they count as in a step.
        return storage.device.type == "meta" or allocated(storage)

    def _result(self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kwargs.get("device") is not None and (self.plain or func in _OF_PIXELS):
            kwargs = {**kwargs, "device": torch.device("meta")}
        try:
            key = func, _metadata(args), _metadata(tuple(kwargs.items()))
            known = self._known.get(key)
        except TypeError:  # an argument that cannot be hashed: a generator, say
            return super()._result(func, args, kwargs)
        if known is not None:
            container, made = known
            if container is _Overwritten:
                return args[0]
            tensors = [one and _strided(*one) for one in made]
            return tensors[0] if container is None else container(tensors)
        result = super()._result(func, args, kwargs)
        if args and result is args[0]:
            if _metadata(result) == key[1][0]:
                self._known[key] = _Overwritten, []
            return result
        several = type(result) in (tuple, list)
        results = list(result) if several else [result]
        given = {id(storage) for storage in storages((args, kwargs))}
        if all(one is None or _is_own(one, given) for one in results):
            made = [one if one is None else (tuple(one.shape), one.stride(), one.dtype) for one in results]
            self._known[key] = type(result) if several else None, made
        return result


class _Overwritten:
    """Stands for the container of a result that is the first argument, written over: without numbers, nothing to do."""


def _empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype, device="meta")


def _strided(shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty_strided(shape, stride, dtype=dtype, device="meta")


def _is_own(result: Any, given: set[int]) -> bool:
    """Whether a result is a tensor over bytes of its own, and over no more than it shows."""
    if not isinstance(result, Tensor) or not result.is_meta:
        return False
    storage, alike = result.untyped_storage(), _strided(result.shape, result.stride(), result.dtype)
    return id(storage) not in given and storage.nbytes() == alike.untyped_storage().nbytes()


def _metadata(argument: Any) -> Any:
    """All that the shape of a result can depend on."""
    if isinstance(argument, Tensor):
        return argument.shape, argument.stride(), argument.dtype, argument.device
    if isinstance(argument, (tuple, list)):
        return tuple(_metadata(item) for item in argument)
    return type(argument), argument


class _Unread:
    """An input that is read from a source: each box of it takes bytes of its own."""

    device = torch.device("meta")

    def __init__(self, value: Value) -> None:
        self.value = value

    def read(self, box: Box) -> Tensor:
        return torch.empty(self.value.shape_at(box), dtype=self.value.dtype, device=self.device)

    @property
    def tensor(self) -> Tensor:
        return self.read(full(self.value.extents))


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
        self.live = _Remembering(graph)
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
            found = representatives(stage, keep, self.owner.own(stage.target))
            self.representatives[stage] = sorted(found, key=lambda one: self.owner.late(stage, one.box))
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


# ------------------------------------------------------------------------------------------- which tiles


class Alike:
    """Which tiles of a stage are alike that reads from paged maps: also their reads go over equally many blocks."""

    def __init__(self, stage: Stage, tables: Mapping[str, Table]) -> None:
        self.stage, self.tables = stage, tables
        self._lines = [
            {interval: self._along(axis, interval) for interval in split(extent, step)}
            for axis, (extent, step) in enumerate(zip(stage.target.extents, stage.tile, strict=True))
        ]

    def _along(self, axis: int, interval: Interval) -> tuple[Hashable, dict[str, list[Interval]]]:
        needed = needed_along(self.stage, axis, interval)
        blocks = []
        for value in self.stage.frontier:
            if value.name in self.tables and needed[value.name]:
                step = self.tables[value.name].steps[axis]
                blocks.append(tuple(-(-high // step) - low // step for low, high in needed[value.name]))
        return (kind_of(self.stage, axis, interval), tuple(blocks)), needed

    def kind(self, box: Box) -> Hashable:
        """Equal for two tiles that take equally many bytes."""
        return tuple(line[interval][0] for line, interval in zip(self._lines, box, strict=True))

    def reads(self, box: Box) -> Iterator[tuple[Value, Box]]:
        """The boxes of the frontier that a tile reads."""
        needed = [line[interval][1] for line, interval in zip(self._lines, box, strict=True)]
        for value in self.stage.frontier:
            for part in itertools.product(*(along[value.name] for along in needed)):
                yield value, part


def representatives(stage: Stage, all_kinds: bool, own: Box) -> list[Representative]:
    """The tiles to run, in the order of the stage: the first of each kind, and a second one where that differs.

    Args:
        stage: the stage, its tile set.
        all_kinds: also kinds that are too small to matter, and what is skipped after each tile.
        own: the box that the tiles make up.
    """
    if not volume(own):
        return []
    intervals = [
        [(low + start, high + start) for low, high in split(end - start, step)]
        for (start, end), step in zip(own, stage.tile, strict=True)
    ]
    along = [[kind_of(stage, axis, interval) for interval in line] for axis, line in enumerate(intervals)]
    if all_kinds:
        places: Iterator[tuple[int, ...]] = itertools.product(*(range(len(line)) for line in intervals))
    else:
        places = itertools.product(*map(_first_two, along))
    light = LIGHT * max(bytes_of_kind(stage, kind) for kind in itertools.product(*map(dict.fromkeys, along)))
    seen: Counter[Kinds] = Counter()
    touched: set[tuple[bool, ...]] = set()
    twice: set[Kinds] = set()
    chosen: list[Representative] = []
    for place in places:
        kind = tuple(line[k] for line, k in zip(along, place, strict=True))
        seen[kind] += 1
        if seen[kind] == 1:
            # The first that touches a map may find no gradient of it to add to: one more of its kind runs.
            reads = tuple(all(k.lengths[i] for k in kind) for i in range(len(stage.frontier)))
            if reads not in touched:
                touched.add(reads)
                twice.add(kind)
        if seen[kind] > 1 + (kind in twice):
            if all_kinds:
                chosen[-1].skipped[kind] += 1
        elif all_kinds or not chosen or kind in twice or bytes_of_kind(stage, kind) >= light:
            chosen.append(Representative(tuple(line[k] for line, k in zip(intervals, place, strict=True)), kind))
    return chosen


def _first_two(line: list[Kind]) -> list[int]:
    """The places of the first two of each kind."""
    seen: Counter[Kind] = Counter()
    found = []
    for k, kind in enumerate(line):
        seen[kind] += 1
        if seen[kind] <= 2:
            found.append(k)
    return found


def kind_of(stage: Stage, axis: int, interval: Interval) -> Kind:
    """The kind of an interval of the target: what it needs along its axis, node by node back to the frontier."""
    needed = needed_along(stage, axis, interval)
    values = (*stage.frontier, *(node.value for node in stage.nodes))
    lengths = tuple(sum(high - low for low, high in needed[v.name]) for v in values)
    pieces = tuple(
        tuple((high - low, (low == 0) + (high == v.extents[axis])) for low, high in needed[v.name]) for v in values
    )
    return Kind(lengths, pieces)


def needed_along(stage: Stage, axis: int, interval: Interval) -> dict[str, list[Interval]]:
    """By value name the intervals that an interval of the target needs along its axis."""
    wanted: dict[str, list[Interval]] = {stage.target.name: [interval]}
    needed: dict[str, list[Interval]] = {}
    for node in reversed(stage.nodes):
        needed[node.value.name] = joined(wanted.get(node.value.name, []))
        for low, high in needed[node.value.name]:
            for read in node.rule.reads:
                wanted.setdefault(read.value.name, []).extend(read.maps[axis].need(low, high))
    for value in stage.frontier:
        needed[value.name] = joined(wanted.get(value.name, []))
    return needed


def joined(intervals: list[Interval]) -> list[Interval]:
    """Intervals as a tile holds them: those that overlap or touch as one."""
    if len(intervals) < 2 or intervals.count(intervals[0]) == len(intervals):
        return intervals[:1]
    return [box[0] for box in merge((interval,) for interval in intervals)]


def bytes_of_kind(stage: Stage, kinds: Kinds) -> int:
    """The bytes of every value that a tile makes or reads."""
    values = (*stage.frontier, *(node.value for node in stage.nodes))
    return sum(v.depth * v.dtype.itemsize * prod(kind.lengths[i] for kind in kinds) for i, v in enumerate(values))
