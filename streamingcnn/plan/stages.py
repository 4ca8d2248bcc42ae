"""Stages: what is computed between stored nodes, and the program of one tile.

A stage makes one target by tiles. Its nodes are found by walking from the target back to stored nodes, its
*frontier*; a node that two stages need is computed in both. A tile's program says, from integers alone, which
box of every node a box of the target needs:

    stored x  --conv 3x3-->  a  --relu-->  b  --conv 3x3, stride 2-->  target

    box of target          [2, 4)
    needs of b     [3, 8)            the window of stride 2
    needs of a     [3, 8)
    needs of x  [2, 9)               read from the stored map: the tile's halo
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from torch import Tensor

from ..boxes import Box, Region, boxes_of, contains, grid, merge, tiles_in
from ..graph import Given, Graph, Local, Node, Plain, Reduced
from ..ops.rule import Prepared, Read, Tile, Value
from .reuse import overwriting


@dataclass(frozen=True)
class Cut:
    """A box of a tensor that the tile holds: its place, and (dimension, start, length) of each dimension cut."""

    place: int
    crops: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Joined:
    """Pieces side by side along a dimension, as at a circular border."""

    dim: int
    parts: tuple[Cut | Joined, ...]


@dataclass(frozen=True)
class Step:
    """One operation on one box of a tile."""

    node: Local
    box: Box
    regions: tuple[Region, ...]
    #: Per read, where its tensor comes from (None: nothing is needed).
    inputs: tuple[Cut | Joined | None, ...]
    #: The rule's function, or the one that writes over an input.
    compute: Callable[[Tile], Tensor]


@dataclass(frozen=True)
class Program:
    """All that a tile does: what it reads, its steps in order, what may be dropped after each step.

    The tensors that a tile holds are numbered: first what it reads, then the results of its steps.
    """

    box: Box
    reads: tuple[tuple[Value, Box], ...]
    steps: tuple[Step, ...]
    dead: tuple[tuple[int, ...], ...]


@dataclass(eq=False)
class Stage:
    """One target, made by tiles.

    Attributes:
        target: the value whose boxes are the tiles.
        stored: whether its map is kept; False for a stage that only reduces.
        reductions: what is summed over its tiles.
        tile: the tile grid's steps, in pixels of the target.
        way: ``recompute`` (a tile is computed again for its gradient) or ``keep`` (its autograd graph is kept).
        place: where its map and that map's gradient live: ``device``, ``host`` or ``disk``.
    """

    graph: Graph
    target: Value
    stored: bool
    held: frozenset[str]
    reductions: tuple[Reduced, ...] = ()
    tile: tuple[int, ...] = ()
    way: str = "recompute"
    place: str = "device"
    frontier: tuple[Value, ...] = field(init=False)
    nodes: tuple[Local, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.nodes, self.frontier = stage_of(self.graph, self.target, self.held)
        self.program = lru_cache(maxsize=4096)(self._program)

    @property
    def name(self) -> str:
        return self.target.name

    @cached_property
    def layer(self) -> str:
        """The module that made the target, or the target's own name."""
        node = self.graph.nodes[self.target.name]
        return getattr(node, "layer", "") or self.target.name

    @cached_property
    def side(self) -> tuple[Value, ...]:
        """The global values its tiles use."""
        return tuple(dict.fromkeys(value for node in self.nodes for value in node.rule.side))

    @cached_property
    def prepared(self) -> tuple[Prepared, ...]:
        """What its tiles use that depends on global values alone, made once per stage."""
        return tuple(prepared for node in self.nodes for prepared in node.rule.prepared)

    @cached_property
    def over(self) -> dict[str, int]:
        """By name the nodes that write over one of their inputs, and which."""
        return overwriting(self.nodes)

    @property
    def tiles(self) -> int:
        return tiles_in(self.target.extents, self.tile)

    def boxes(self) -> Iterator[Box]:
        return grid(self.target.extents, self.tile)

    @cached_property
    def halo(self) -> tuple[int, ...]:
        """Per axis, how many pixels of the frontier a tile needs beyond its own share; the widest of its reads."""
        return halo_of(self)

    def needs(self, box: Box) -> dict[str, tuple[Box, ...]]:
        """By value name the boxes that a tile makes or reads."""
        wanted: dict[str, list[Box]] = {self.target.name: [box]}
        needed: dict[str, tuple[Box, ...]] = {}
        for node in reversed(self.nodes):
            boxes = merge(wanted.get(node.value.name, ()))
            needed[node.value.name] = boxes
            for part in boxes:
                for read in node.rule.reads:
                    wanted.setdefault(read.value.name, []).extend(read.needed_boxes(part))
        for value in self.frontier:
            needed[value.name] = merge(wanted.get(value.name, ()))
        return needed

    def _program(self, box: Box) -> Program:
        needed = self.needs(box)
        reads = tuple((value, part) for value in self.frontier for part in needed[value.name])
        places = {(value.name, part): place for place, (value, part) in enumerate(reads)}
        steps = []
        for node in self.nodes:
            for part in needed[node.value.name]:
                steps.append(_step(node, part, needed, places, self.over.get(node.value.name)))
                places[node.value.name, part] = len(places)
        return Program(box, reads, tuple(steps), _last_uses(steps, len(reads)))


def _step(
    node: Local,
    box: Box,
    computed: dict[str, tuple[Box, ...]],
    places: dict[tuple[str, Box], int],
    over: int | None,
) -> Step:
    regions = tuple(read.need(box) for read in node.rule.reads)
    inputs = tuple(
        _input(read, region, computed, places) for read, region in zip(node.rule.reads, regions, strict=True)
    )
    compute = node.rule.compute if over is None else node.rule.over[over]
    assert compute is not None
    return Step(node, box, regions, inputs, compute)


def _input(
    read: Read, region: Region, computed: dict[str, tuple[Box, ...]], places: dict[tuple[str, Box], int]
) -> Cut | Joined | None:
    """Where the tensor of a region comes from, among the boxes that the tile holds of its value."""
    if not boxes_of(region):
        return None
    axes, name = read.value.axes or (), read.value.name

    def pieces(chosen: Box) -> Cut | Joined:
        axis = len(chosen)
        if axis < len(region):
            parts = tuple(pieces((*chosen, interval)) for interval in region[axis])
            return parts[0] if len(parts) == 1 else Joined(axes[axis], parts)
        held = next(box for box in computed[name] if contains(box, chosen))
        cuts = zip(axes, chosen, held, strict=True)
        return Cut(places[name, held], tuple((dim, c[0] - h[0], c[1] - c[0]) for dim, c, h in cuts if c != h))

    return pieces(())


def _places(given: Cut | Joined | None) -> Iterator[int]:
    """The places that an input is cut from."""
    if isinstance(given, Cut):
        yield given.place
    elif given is not None:
        for part in given.parts:
            yield from _places(part)


def _last_uses(steps: Sequence[Step], first: int) -> tuple[tuple[int, ...], ...]:
    """After each step, the places that no later step reads; the last result stays. Results start at ``first``."""
    seen = {first + len(steps) - 1}
    dead = []
    for step in reversed(steps):
        used = {place for given in step.inputs for place in _places(given)}
        dead.append(tuple(used - seen))
        seen |= used
    return tuple(reversed(dead))


def stage_of(graph: Graph, target: Value, held: frozenset[str]) -> tuple[tuple[Local, ...], tuple[Value, ...]]:
    """The local nodes between a target and what is held, in graph order, and the frontier."""
    inside: set[str] = set()
    frontier: dict[str, Value] = {}
    node = graph.nodes[target.name]
    if not isinstance(node, Local):
        return (), (target,)
    todo = [node]
    while todo:
        node = todo.pop()
        if node.value.name in inside:
            continue
        inside.add(node.value.name)
        for read in node.rule.reads:
            name = read.value.name
            before = graph.nodes[name]
            if name in held or not isinstance(before, Local):
                frontier[name] = read.value
            else:
                todo.append(before)
    nodes = tuple(n for name, n in graph.locals.items() if name in inside)
    return nodes, tuple(frontier.values())


def halo_of(stage: Stage) -> tuple[int, ...]:
    """How far a tile in the middle of the map reaches beyond its share of the frontier, in frontier pixels."""
    extents = stage.target.extents
    middle = []
    for extent, step in zip(extents, stage.tile, strict=True):
        low = (extent // step // 2) * step
        middle.append((low, min(low + step, extent)))
    program = stage.program(tuple(middle))
    widest = [0] * len(extents)
    for value, box in program.reads:
        for axis, ((low, high), (t_low, t_high)) in enumerate(zip(box, middle, strict=True)):
            share = (t_high - t_low) * value.extents[axis] / extents[axis]
            widest[axis] = max(widest[axis], -(-int((high - low) - share) // 2))
    return tuple(max(0, w) for w in widest)


@dataclass(frozen=True, eq=False)
class Globals:
    """Plain nodes that run together, under one small autograd graph of their own."""

    nodes: tuple[Plain, ...]
    #: Values from outside the group that it reads.
    reads: tuple[Value, ...]
    #: Values that others read.
    results: tuple[Value, ...]


def must_store(graph: Graph) -> set[str]:
    """Local values that have to be stored in any plan: results, and what plain nodes read whole."""
    names = {v.name for v in graph.outputs if isinstance(v, Value) and v.name in graph.locals}
    for node in graph.nodes.values():
        if isinstance(node, Plain):
            names |= {v.name for v in node.uses if v.name in graph.locals}
    return names


def phases(graph: Graph) -> dict[str, int]:
    """When a value can be ready: plain nodes of phase p run before the stages of phase p.

    A plain node that reads what tiles of phase p give belongs to phase p + 1.
    """
    phase: dict[str, int] = {}
    for name, node in graph.nodes.items():
        if isinstance(node, Given):
            phase[name] = 0
        elif isinstance(node, Local):
            phase[name] = max(
                [0, *(phase[v.value.name] for v in node.rule.reads), *(phase[v.name] for v in node.rule.side)]
            )
        elif isinstance(node, Reduced):
            phase[name] = phase[node.reduction.value.name]
        else:
            phase[name] = max([0, *(phase[v.name] + _waits(graph.nodes[v.name]) for v in node.uses)])
    return phase


def _waits(node: Node) -> int:
    """Whether a plain node that reads this must wait for the stages of its phase."""
    return int(isinstance(node, (Local, Reduced)))


def build_steps(graph: Graph, stored: set[str]) -> list[Stage | Globals]:
    """The steps of a plan, in the order of the forward."""
    phase = phases(graph)
    stored = stored | must_store(graph)
    whole = {n for n, node in graph.nodes.items() if isinstance(node, Plain) and node.value.spatial}
    inputs = {value.name for value in graph.inputs.values() if value.spatial}
    held = frozenset(stored | whole | inputs)
    reductions: dict[str, list[Reduced]] = {}
    for node in graph.nodes.values():
        if isinstance(node, Reduced):
            reductions.setdefault(node.reduction.value.name, []).append(node)
    steps: list[Stage | Globals] = []
    for p in range(max(phase.values(), default=0) + 1):
        plain = tuple(n for n in graph.nodes.values() if isinstance(n, Plain) and phase[n.value.name] == p)
        if plain:
            steps.append(_group(graph, plain))
        for name, node in graph.nodes.items():
            if phase[name] != p:
                continue
            sums = tuple(reductions.get(name, ()))
            if isinstance(node, Local) and (name in stored or sums):
                steps.append(Stage(graph, node.value, name in stored, held - {name}, sums))
            elif sums:
                steps.append(Stage(graph, node.value, False, held, sums))
    return steps


def _group(graph: Graph, nodes: tuple[Plain, ...]) -> Globals:
    inside = {node.value.name for node in nodes}
    reads = dict.fromkeys(v for node in nodes for v in node.uses if v.name not in inside)
    wanted = {v.name for v in graph.outputs if isinstance(v, Value)} | {v.name for _, v in graph.mutations}
    results = tuple(
        node.value
        for node in nodes
        if node.value.name in wanted
        or node.value.spatial
        or any(reader not in nodes for reader in graph.readers[node.value.name])
    )
    return Globals(nodes, tuple(reads), results)
