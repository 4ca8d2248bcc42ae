"""A plan: the schedule of one network at one size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..graph import Graph, Local
from ..ops.rule import Value
from ..signature import Sharing
from .choose import choose_stored, choose_tiles
from .peak import MeasuredTileBytes, peak
from .search import search
from .stages import Globals, Stage, build_steps, stage_of

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, eq=False)
class Plan:
    """Which maps are stored, and in which tiles each stage makes its own.

    ::

        plan = net.plan((1, 3, 8192, 8192))
        print(plan)                              # a table: stage, tile, tiles, overlap, bytes
        plan.draw(image).save("tiles.png")       # tiles and halos over the picture

    A plan is made of integers and names only and holds no tensor.
    """

    graph: Graph
    steps: tuple[Stage | Globals, ...]
    #: Which tiles run, for an image with constant parts; see signature.py.
    sharing: Sharing = field(default_factory=Sharing)

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The stages that run by tiles, in the order of the forward."""
        return tuple(step for step in self.steps if isinstance(step, Stage))

    @property
    def tiles(self) -> int:
        """How many tiles one forward runs, all stages together."""
        return sum(stage.tiles for stage in self.stages)

    @cached_property
    def tiles_run(self) -> int:
        """How many of them run: fewer where the image has constant parts."""
        return self.sharing.statistics(self.steps).run

    @cached_property
    def peak_bytes(self) -> int:
        """The predicted height of a training step in bytes, beside parameters, their gradients and the input."""
        return peak(self.graph, list(self.steps), MeasuredTileBytes(), self.sharing).bytes

    @cached_property
    def receptive_field(self) -> tuple[int, ...]:
        """Image pixels per axis that one pixel of the deepest map sees, halos of all its layers together.

        It is cut off where it is wider than the image; statistics and global branches, which see everything, are
        not counted.
        """
        deepest = max(self.stages, key=lambda s: self._depth(s.target)).target if self.stages else self.graph.image
        nodes, _ = stage_of(self.graph, deepest, frozenset({self.graph.image.name}))
        probe = Stage(self.graph, deepest, True, frozenset({self.graph.image.name}), tile=(1,) * self.graph.space)
        middle = tuple((e // 2, e // 2 + 1) for e in deepest.extents)
        reads = [box for value, box in probe.program(middle).reads if value is self.graph.image]
        if not nodes or not reads:
            return (1,) * self.graph.space
        return tuple(
            max(b[axis][1] for b in reads) - min(b[axis][0] for b in reads) for axis in range(self.graph.space)
        )

    def _depth(self, value: Value) -> int:
        return list(self.graph.nodes).index(value.name)

    def image_overlap(self, stage: Stage) -> tuple[int, ...]:
        """The halo of a stage in pixels of the image."""
        if not stage.frontier or not stage.nodes:
            return (0,) * self.graph.space
        scales = zip(self.graph.image.extents, stage.frontier[0].extents, strict=True)
        return tuple(-(-h * image // own) for h, (image, own) in zip(stage.halo, scales, strict=True))

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
) -> Plan:
    """Plan a network.

    Args:
        graph: the captured network.
        tile: pixels of the image that a tile covers per axis, halo not counted; None chooses per stage.
        stored: layers (or node names) whose results are stored; None chooses.
        keep: layers (or node names) whose stages keep their autograd graphs.
        memory: the bytes that a training step may take; stored nodes, tiles and ways are then searched for.
    """
    image_tile = None if tile is None else tile_sizes(graph, tile)
    if memory is not None:
        return Plan(graph, tuple(search(graph, memory, image_tile)))
    names = choose_stored(graph, image_tile) if stored is None else {resolve(graph, name) for name in stored}
    steps = build_steps(graph, names)
    kept = {resolve(graph, name) for name in keep}
    for step in steps:
        if isinstance(step, Stage):
            step.way = "keep" if step.name in kept else "recompute"
    choose_tiles(graph, [step for step in steps if isinstance(step, Stage)], image_tile)
    return Plan(graph, tuple(steps))


def resolve(graph: Graph, name: str) -> str:
    """The node a user means by the path of a layer, or by the node's own name."""
    if isinstance(graph.nodes.get(name), Local):
        return name
    node = graph.result_of(name)
    if node is None:
        layers = sorted({n.layer for n in graph.locals.values() if n.layer})
        raise ValueError(f"no layer '{name}' to store; the layers that make maps are: {', '.join(layers)}")
    return node.value.name
