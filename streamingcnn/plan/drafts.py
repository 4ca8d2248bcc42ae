"""Drafts of a plan: which maps are stored, which stages keep their graphs, and what that costs.

A :class:`Workshop` knows one graph. It answers what a draft takes in seconds and bytes, and remembers every stage it
has seen, so that storing or dropping one map costs a look at the few stages around it:

    x --> [a] --> [b] --> [c]      dropping b:  x --> [a] --> [c], where c now computes b as well
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate

from ..graph import Given, Graph, Plain, Reduced, requiring
from ..ops.rule import Value
from ..signature import NOTHING, Content, share
from .align import align, power_of_two
from .choose import candidates, feeding_statistics, tile_of
from .cost import map_bytes
from .options import Option, Piece
from .peak import plain_bytes
from .running import Running
from .stages import Globals, Stage, build_steps, must_store, stage_of
from .tiles import candidate_tiles
from .times import Times


@dataclass(frozen=True)
class Outcome:
    """What a draft costs.

    Attributes:
        seconds: of one step.
        over: bytes over the budget, all moments together; 0 where the step fits.
        highest: the position of the step that needs most.
        peak: the bytes at that moment.
        options: how each stage runs.
    """

    seconds: float
    over: int
    highest: int
    peak: int
    options: dict[Piece, Option]


@dataclass(frozen=True, eq=False)
class Group:
    """The plain nodes of one phase, by what matters here."""

    place: int
    reads: tuple[Value, ...]
    results: tuple[Value, ...]
    bytes: int
    #: Of gradients of maps that live outside: they come as a whole before they leave.
    passing: int = 0


Entry = Piece | Group


@dataclass(frozen=True)
class Part:
    """What a step has in every draft that it is in.

    Attributes:
        reads: the values whose maps it reads.
        makes: the values whose maps it makes.
        trained: the parameters whose gradients it adds to.
        gradients: the bytes of those gradients.
        forward, backward: bytes of the global values that it makes, beside its tiles. In ``backward`` the sums of the
            parameters' own gradients are not contained: they stay for good.
        graphs: bytes of the graphs of plain nodes, which are there from forward to backward.
    """

    reads: tuple[str, ...]
    makes: tuple[str, ...]
    trained: frozenset[str]
    gradients: int
    forward: int = 0
    backward: int = 0
    graphs: int = 0


@dataclass(frozen=True)
class Draft:
    """Stored nodes, the steps between them, and how those stages run that keep their graphs."""

    stored: frozenset[str]
    entries: tuple[Entry, ...]
    kept: dict[Piece, Option] = field(default_factory=dict)

    def keeping(self, piece: Piece, option: Option) -> Draft:
        """The same, with one more stage that keeps its graphs."""
        return replace(self, kept={**self.kept, piece: option})


class Workshop:
    """One graph, and every stage of it that was looked at.

    Args:
        graph: the captured network.
        times: the constants of the device.
        image_tile: pixels of the image that every tile covers; None considers many.
        outside: the nodes whose maps would not live on the device.
        content: what is known of the images: constant parts need fewer tiles, and fewer pages of maps.
    """

    def __init__(
        self,
        graph: Graph,
        times: Times,
        image_tile: Sequence[int] | None = None,
        outside: frozenset[str] = frozenset(),
        content: Content = NOTHING,
    ) -> None:
        self.graph, self.times, self.image_tile, self.content = graph, times, image_tile, content
        self.fixed = frozenset(must_store(graph))
        optional = (candidates(graph) | feeding_statistics(graph)) - self.fixed
        self.optional = tuple(name for name in graph.locals if name in optional)
        steps = build_steps(graph, set(self.fixed | optional))
        #: The order of the forward: names of values that may be stages, and groups of plain nodes.
        self.order: list[str | Group] = [
            Group(k, s.reads, s.results, plain_bytes(s), sum(map_bytes(v) for v in s.reads if v.name in outside))
            if isinstance(s, Globals)
            else s.name
            for k, s in enumerate(steps)
        ]
        self.place = {step: k for k, step in enumerate(self.order) if isinstance(step, str)}
        self.reductions: dict[str, tuple[Reduced, ...]] = {s.name: s.reductions for s in steps if isinstance(s, Stage)}
        whole = {n for n, node in graph.nodes.items() if isinstance(node, Plain) and node.value.spatial}
        self.inputs = frozenset(v.name for v in graph.inputs.values() if v.spatial)
        self.held_always = self.fixed | whole | self.inputs
        self.outputs = {v.name for v in graph.outputs if isinstance(v, Value)}
        #: The share of a node's tiles that run, by their size.
        self.shares = Running(graph, content)
        self.gradients = {
            n: map_bytes(node.value)
            for n, node in graph.nodes.items()
            if isinstance(node, Given) and node.source == "parameter" and n in graph.trained
        }
        self.needs = requiring(graph, set(graph.trained))
        self._parts: dict[Entry, Part] = {}
        self._pieces: dict[str, list[Piece]] = {}
        #: The share of its tiles that run, by node; a map with shared pages has about that share of its bytes.
        self.running = self._running(steps) if content.constants else {}
        #: What a stored map takes of the device, and its gradient as much again.
        self.bytes_of = {
            n: 0 if n in outside - self.running.keys() else int(map_bytes(node.value) * self.running.get(n, 1.0))
            for n, node in graph.nodes.items()
            if node.value.spatial
        }

    def _running(self, steps: Sequence[Stage | Globals]) -> dict[str, float]:
        """What runs of each stage where every map is stored; fewer maps let a little more of a constant part run."""
        stored = self.fixed | frozenset(self.optional)
        for step in steps:
            if isinstance(step, Stage):
                step.tile = self.piece(step.name, stored).fastest.tile
        sharing = share(align(steps, self.image_tile is not None), self.graph.image, self.content)
        return {stage.name: sharing.count(stage) / stage.tiles for stage in sharing.runs}

    # ------------------------------------------------------------------ stages of a draft

    def piece(self, name: str, stored: frozenset[str]) -> Piece:
        """The stage that makes a value, where these nodes are stored."""
        held, keeps_map = stored | self.held_always, name in stored or name in self.fixed
        known = self._pieces.setdefault(name, [])
        for piece in known:
            if piece.stored == keeps_map and piece.reads <= held and not piece.inside & held:
                return piece
        target = self.graph.nodes[name].value
        nodes, frontier = stage_of(self.graph, target, held - {name})
        piece = Piece(
            target,
            nodes,
            frontier,
            self.reductions.get(name, ()),
            keeps_map,
            self.times,
            self.inputs,
            name in self.needs,
            partial(self.shares.share, name),
        )
        if self.image_tile is not None:
            piece.tiles = [tile_of(self.graph, target, self.image_tile)]
        elif self.content.constants:
            sizes = candidate_tiles(target.extents)
            piece.tiles = list(dict.fromkeys(power_of_two(tile, target.extents) for tile in sizes))
        known.append(piece)
        return piece

    def draft(self, stored: frozenset[str]) -> Draft:
        """The draft that stores these nodes."""
        entries = (
            step if isinstance(step, Group) else self.piece(step, stored)
            for step in self.order
            if isinstance(step, Group) or self.makes(step, stored)
        )
        return Draft(stored, tuple(entries))

    def makes(self, name: str, stored: frozenset[str]) -> bool:
        """Whether a value is the target of a stage."""
        return name in stored or name in self.fixed or bool(self.reductions[name])

    def toggled(self, draft: Draft, name: str) -> Draft:
        """The draft that stores one node more, or less; what is far from it stays as it is."""
        drops = name in draft.stored
        stored = draft.stored - {name} if drops else draft.stored | {name}
        entries: list[Entry] = []
        for entry in draft.entries:
            if not isinstance(entry, Piece):
                entries.append(entry)
            elif entry.target.name != name:
                touched = name in (entry.reads if drops else entry.inside)
                entries.append(self.piece(entry.target.name, stored) if touched else entry)
        if self.makes(name, stored):
            entries.append(self.piece(name, stored))
            entries.sort(key=self.position)
        alive = set(entries)
        return Draft(stored, tuple(entries), {p: option for p, option in draft.kept.items() if p in alive})

    def position(self, entry: Entry) -> int:
        """Where a step comes in the forward."""
        return entry.place if isinstance(entry, Group) else self.place[entry.target.name]

    # ------------------------------------------------------------------ what a draft costs

    def outcome(self, draft: Draft, budget: int, least: int) -> Outcome:
        """Seconds and bytes of a draft whose stages each take the fastest tile that fits.

        Args:
            draft: what is stored and kept.
            budget: bytes that a step may take.
            least: bytes that a tile may take even where the maps leave less; the step is over its budget then.
        """
        kept, heights = draft.kept, []
        seconds = 0.0
        options: dict[Piece, Option] = {}
        for entry, ahead, behind in zip(draft.entries, *self._standing(draft), strict=True):
            if isinstance(entry, Group):
                behind += entry.passing
            elif entry in kept:
                option = options[entry] = kept[entry]
                seconds += option.keep
                behind += max(0, option.working - option.saved)
            else:
                option = options[entry] = entry.within(max(budget - behind, least))
                seconds += option.recompute
                ahead, behind = ahead + option.running, behind + option.working
            heights.append(ahead if ahead > behind else behind)
        peak = max(heights, default=0)
        over = sum(height - budget for height in heights if height > budget)
        return Outcome(seconds, over, heights.index(peak) if heights else 0, peak, options)

    def lives(self, entries: Sequence[Entry]) -> dict[str, tuple[int, int]]:
        """By stored map: the position of the step that makes it, and of the last that reads it."""
        made: dict[str, int] = {}
        last: dict[str, int] = {}
        for k, part in enumerate(map(self.part, entries)):
            last.update(dict.fromkeys(part.reads, k))
            for name in part.makes:
                made[name] = last[name] = k
        last.update(dict.fromkeys(self.outputs, len(entries)))
        return {name: (first, last[name]) for name, first in made.items()}

    def _standing(self, draft: Draft) -> tuple[list[int], list[int]]:
        """Per step the bytes beside its tile, in forward and in backward: maps, their gradients, kept graphs."""
        entries, needs = draft.entries, bool(self.needs)
        parts = [self.part(entry) for entry in entries]
        count = len(entries)
        forward = [part.graphs for part in parts] + [0, 0]
        for piece, option in draft.kept.items():
            forward[entries.index(piece)] += option.kept
        backward = forward.copy()
        for name, (first, last) in self.lives(entries).items():
            size = self.bytes_of[name]
            forward[first] += size
            if not needs:
                forward[min(last, count) + 1] -= size
            elif name in self.outputs:
                # The caller holds the result and the gradient given to it until the step is over.
                backward[0] += 2 * size
            else:
                # The map lives from its making to its maker's backward, its gradient from its last reader's backward.
                backward[first] += 2 * size
                backward[last + 1] -= size
        summed: set[str] = set()
        gradients, sums = 0, []
        for part in reversed(parts):
            if summed.isdisjoint(part.trained):
                gradients += part.gradients
            else:
                gradients += sum(self.gradients[name] for name in part.trained - summed)
            summed |= part.trained
            sums.append(gradients)
        return (
            [held + part.forward for held, part in zip(accumulate(forward), parts, strict=False)],
            [
                held + part.backward + own
                for held, part, own in zip(accumulate(backward), parts, reversed(sums), strict=False)
            ],
        )

    def part(self, entry: Entry) -> Part:
        """What a step has in every draft that it is in."""
        part = self._parts.get(entry)
        if part is None:
            part = self._parts[entry] = self._part_of(entry)
        return part

    def _part_of(self, entry: Entry) -> Part:
        values = entry.frontier if isinstance(entry, Piece) else entry.reads
        reads = tuple(value.name for value in values)
        if isinstance(entry, Group):
            trained = self.gradients.keys() & set(reads)
            makes = tuple(value.name for value in entry.results if value.spatial)
            gradients = sum(self.gradients[name] for name in trained)
            return Part(reads, makes, frozenset(trained), gradients, graphs=entry.bytes)
        trained = self.gradients.keys() & {value.name for node in entry.nodes for value in node.rule.side}
        made = {one[0].name: one[0] for node in entry.nodes for one in node.rule.prepared}
        own = {
            value.name: value
            for node in entry.nodes
            if not node.rule.prepared
            for value in node.rule.side
            if value.name in self.needs
        }
        prepared, direct = sum(map(map_bytes, made.values())), sum(map(map_bytes, own.values()))
        return Part(
            reads,
            (entry.target.name,) if entry.stored and entry.nodes else (),
            frozenset(trained),
            sum(self.gradients[name] for name in trained),
            # The values made; in backward the sums of their gradients too, and one tile's gradients beside the sums.
            prepared,
            3 * prepared + direct if self.needs else 0,
        )
