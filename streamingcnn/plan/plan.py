"""A plan: the schedule of one network at one size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..boxes import volume
from ..graph import Graph, Local, requiring
from ..layout import layout_of
from ..ops.rule import Value
from ..signature import NOTHING, Content, Sharing
from .align import align
from .choose import choose_stored, choose_tiles
from .peak import exact_peak
from .place import bring_home, fastest, place_maps, step_seconds
from .saved import SavedPlan
from .search import BudgetError, Steps, search
from .stages import Globals, Stage, build_steps, stage_of
from .times import times_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..distributed.ownership import Layout
    from ..distributed.planning import Ranks


@dataclass(frozen=True, eq=False)
class Plan:
    """Which maps are stored, and in which tiles each stage makes its own.

    ::

        plan = net.plan((1, 3, 8192, 8192))
        print(plan)                              # a table: stage, tile, tiles, overlap, bytes
        plan.draw(image).save("tiles.png")       # tiles and halos over the picture
        plan.save("plan.json")                   # for StreamingModule(module, plan=Plan.load("plan.json"))

    A plan is made of integers and names only and holds no tensor.

    Attributes:
        graph: the captured network.
        steps: its stages, and the global parts between them, in the order of the forward.
        budget: the bytes that it was made for, or None.
        sharing: which of its tiles run, for an image with constant parts (:mod:`streamingcnn.signature`).
        ranks: the ranks that run it together: tiles are those of the one that made the plan, bytes those of the one
            that holds most, seconds those of the slowest.
    """

    graph: Graph
    steps: tuple[Stage | Globals, ...]
    budget: int | None = None
    sharing: Sharing = field(default_factory=Sharing)
    ranks: Ranks | None = None

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The stages that run by tiles, in the order of the forward."""
        return tuple(step for step in self.steps if isinstance(step, Stage))

    @property
    def tiles(self) -> int:
        """How many tiles one forward runs, all stages together; of several ranks, this one."""
        return sum(self._tiles_of(stage) for stage in self.stages)

    def _tiles_of(self, stage: Stage) -> int:
        """How many tiles a stage has; of several ranks, this one's."""
        return stage.tiles if self.ranks is None else self.ranks.tiles(stage)

    @cached_property
    def tiles_run(self) -> int:
        """How many of them run: fewer where the image has constant parts."""
        return self.tiles if self.ranks is not None else self.sharing.statistics(self.steps).run

    @cached_property
    def peak_bytes(self) -> int:
        """The height of a step in bytes: all tensors that it makes, gradients too, beside parameters and inputs.

        Never below what a step on the CPU takes, and within 2 % of it. Where autograd was off when the plan was
        made, it is the height of a forward alone.
        """
        return exact_peak(self.graph, list(self.steps), self.sharing, self.ranks).bytes

    def bytes_sent(self, rank: int) -> int:
        """The bytes of pixels and their gradients that a rank sends in one training step; 0 without a partition.

        Sums over ranks (gradients of parameters, statistics) are not contained.
        """
        if self.ranks is None:
            return 0
        layout = self._layout
        needs = requiring(self.graph, set(self.graph.trained))
        inputs = [v for v in self.graph.inputs.values() if v.name in self.ranks.parts]
        made = [*inputs, *(stage.target for stage in self.stages if stage.stored)]
        total = sum(layout.bytes_sent(value, layout.forward(value.name), rank) for value in made)
        pulled = [v for v in made if v.name in needs]
        return total + sum(layout.bytes_sent(value, layout.backward(value.name), rank) for value in pulled)

    @cached_property
    def seconds(self) -> float:
        """The predicted seconds of a training step, by the constants of its device (:mod:`streamingcnn.plan.times`).

        Of several ranks a stage takes what the slowest takes for its own tiles; what travels is not contained.
        """
        boxes = None if self.ranks is None else self.ranks.boxes
        times = times_of(self.graph.device, layout_of(self.graph))
        return step_seconds(self.graph, self.steps, times, self.sharing, boxes)

    def _map_bytes(self, value: Value) -> int:
        """The bytes that the pages of a map take; of several ranks, this one's part and the seams that it is sent."""
        if self.ranks is None:
            return self.sharing.map_bytes(value)
        return value.depth * volume(self._layout.held[value.name][self.ranks.rank]) * value.dtype.itemsize

    @cached_property
    def _layout(self) -> Layout:
        assert self.ranks is not None
        return self.ranks.layout(self.graph, self.steps)

    @cached_property
    def receptive_field(self) -> tuple[int, ...]:
        """Image pixels per axis that one pixel of the deepest map sees, halos of all its layers together.

        It is cut off where it is wider than the image; statistics and global branches, which see everything, are
        not counted.
        """
        deepest = next(
            (s.target for s in sorted(self.stages, key=lambda s: -self._depth(s.target)) if self._sees_image(s)),
            self.graph.image,
        )
        nodes, _ = stage_of(self.graph, deepest, frozenset({self.graph.image.name}))
        probe = Stage(self.graph, deepest, True, frozenset({self.graph.image.name}), tile=(1,) * self.graph.space)
        middle = tuple((e // 2, e // 2 + 1) for e in deepest.extents)
        reads = [box for value, box in probe.program(middle).reads if value is self.graph.image]
        if not nodes or not reads:
            return (1,) * self.graph.space
        return tuple(
            max(b[axis][1] for b in reads) - min(b[axis][0] for b in reads) for axis in range(self.graph.space)
        )

    def _sees_image(self, stage: Stage) -> bool:
        """Whether a map is made from the image, and not from a target alone."""
        image = frozenset({self.graph.image.name})
        return self.graph.image in stage_of(self.graph, stage.target, image)[1]

    def _depth(self, value: Value) -> int:
        return list(self.graph.nodes).index(value.name)

    def image_overlap(self, stage: Stage) -> tuple[int, ...]:
        """The halo of a stage in pixels of the image."""
        if not stage.frontier or not stage.nodes:
            return (0,) * self.graph.space
        scales = zip(self.graph.image.extents, stage.frontier[0].extents, strict=True)
        return tuple(-(-h * image // own) for h, (image, own) in zip(stage.halo, scales, strict=True))

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON: names and integers only. The file is whole or absent."""
        SavedPlan.of(self).save(path)

    @staticmethod
    def load(path: str | Path) -> SavedPlan:
        """Read a plan that was saved, for ``StreamingModule(module, plan=Plan.load(path))``.

        Raises:
            PlanError: something in it is not as it must be; the message says what, and in which file. That it fits
                the network is checked at the first call, when the network's graph is known.
        """
        return SavedPlan.load(path)

    def __str__(self) -> str:
        from .report import table

        return table(self)

    def draw(self, image: Any, stage: int = 0) -> Image:
        """The tiles and halos of one stage over a picture of the image; see :func:`streamingcnn.plan.report.draw`."""
        from .report import draw

        return draw(self, image, stage)


def tile_sizes(graph: Graph, tile: int | Sequence[int]) -> tuple[int, ...]:
    """One tile size per axis of the image, checked.

    Raises:
        TypeError, ValueError: it is no positive integer, or there is not one per axis.
    """
    given = (tile,) * graph.space if isinstance(tile, int) else tuple(tile)
    if len(given) != graph.space:
        raise ValueError(
            f"tile={tile} has {len(given)} sizes, but the image has {graph.space} spatial axes; "
            f"give one size, or {graph.space}"
        )
    return given


def check_tile(tile: Any) -> None:
    """Raise at construction for a tile that can never be one."""
    sizes = (tile,) if isinstance(tile, int) else tile
    if not isinstance(sizes, (tuple, list)) or not all(isinstance(s, int) and not isinstance(s, bool) for s in sizes):
        raise TypeError(f"tile={tile!r}; needed is an integer, or one per axis, in pixels of the image")
    if not sizes or any(size < 1 for size in sizes):
        raise ValueError(f"tile={tile}; needed is at least 1 pixel per axis, 256 or more is usual in 2-D")


def make_plan(
    graph: Graph,
    tile: int | Sequence[int] | None = None,
    stored: Sequence[str] | None = None,
    keep: Sequence[str] = (),
    memory: int | None = None,
    where: str = "device",
    content: Content = NOTHING,
    ranks: Ranks | None = None,
) -> Plan:
    """Plan a network.

    Args:
        graph: the captured network.
        tile: pixels of the image that a tile covers per axis, halo not counted; None chooses per stage.
        stored: layers (or node names) whose results are stored; None chooses.
        keep: layers (or node names) whose stages keep their autograd graphs.
        memory: the bytes that a training step may take; stored nodes, tiles and ways are then searched for.
        where: the place of the stored maps: device, host or disk; auto puts maps on the host where that is faster.
        content: what is known of the images. Where parts of them are constant, tiles lie on a common grid; within a
            budget what a source has of them counts for what runs and is held, and what a tensor has does not: the
            next one has others.
        ranks: the ranks that run it together, each within ``memory``.
    """
    image_tile = None if tile is None else tile_sizes(graph, tile)
    if memory is not None and ranks is not None:
        from ..distributed.planning import plan_for_ranks

        return Plan(graph, tuple(plan_for_ranks(graph, memory, ranks, image_tile)), memory, ranks=ranks)
    if memory is not None:
        steps = _searched(graph, memory, image_tile, where, content if content.sources else NOTHING)
        if content.constants and not content.sources:
            aligned = align(steps, image_tile is not None)
            steps = aligned if exact_peak(graph, aligned).bytes <= memory else steps
        return Plan(graph, tuple(steps), memory)
    names = choose_stored(graph, image_tile) if stored is None else {resolve(graph, name) for name in stored}
    steps = build_steps(graph, names)
    kept = {resolve(graph, name) for name in keep}
    for step in steps:
        if isinstance(step, Stage):
            step.way = "keep" if step.name in kept else "recompute"
    choose_tiles(graph, [step for step in steps if isinstance(step, Stage)], image_tile)
    place_maps(graph, steps, "device" if where == "auto" else where)
    return Plan(graph, tuple(align(steps, image_tile is not None) if content.constants else steps), ranks=ranks)


def possible(
    graph: Graph, memory: int, image_tile: int | Sequence[int] | None, where: str, content: Content = NOTHING
) -> int:
    """The budget itself where a plan fits in it, else the bytes of the smallest plan."""
    try:
        make_plan(graph, image_tile, memory=memory, where=where, content=content)
    except BudgetError as error:
        return error.smallest
    return memory


def _searched(graph: Graph, memory: int, image_tile: Sequence[int] | None, where: str, content: Content) -> Steps:
    """The fastest plan within a budget; "auto" weighs the device alone against the device and the host."""
    times, plans, smallest = times_of(graph.device, layout_of(graph)), list[Steps](), list[BudgetError]()
    for place in ("device", "host") if where == "auto" else (where,):
        try:
            plans.append(search(graph, memory, times, image_tile, place, content))
        except BudgetError as error:
            smallest.append(error)
    if not plans:
        raise min(smallest, key=lambda error: error.smallest)
    if where == "auto":
        plans = [bring_home(graph, steps, memory, content) for steps in plans]
    return fastest(graph, plans, times, content)


def resolve(graph: Graph, name: str) -> str:
    """The node a user means by the path of a layer, or by the node's own name."""
    if isinstance(graph.nodes.get(name), Local):
        return name
    node = graph.result_of(name)
    if node is None:
        layers = sorted({n.layer for n in graph.locals.values() if n.layer})
        raise ValueError(f"no layer '{name}' to store; the layers that make maps are: {', '.join(layers)}")
    return node.value.name
