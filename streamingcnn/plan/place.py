"""Which stored maps leave the device, and what that costs.

A map outside takes no bytes of the budget, and time: it is written once, read with its halo by each stage that needs
it (again in backward, where tiles are computed again), and its gradient makes the same way back.

    map m, read by stages a and b          moved, in maps
    written by its own stage               1
    read by a and b, halo counted          1.1 + 1.1,   once more in backward where a or b recomputes
    gradient added by a and b              1.1 + 1.1
    gradient read by its own stage         1

On a PCIe bus that is far slower than memory, and it may be faster than computing the map again, which is how a plan
for the device alone meets a small budget. So both plans are made, and :func:`fastest` takes one by the time that
computing and moving take together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ..boxes import Box
from ..graph import Graph, Plain
from ..ops.rule import Value
from ..signature import NOTHING, Content, Sharing, share
from .cost import elements, map_bytes, typical_box
from .options import seconds_of
from .peak import exact_peak
from .stages import Globals, Stage
from .times import Times

Steps = list[Stage | Globals]

#: Where maps may live. A result that is written as it is made is in none of these, but in a "file".
PLACES = ("device", "host", "disk")
#: Bytes per second where nobody has measured: pinned memory over PCIe 4, a solid-state disk.
BANDWIDTH = {"device": float("inf"), "host": 12e9, "disk": 1e9, "file": 1e9}


def movable(graph: Graph, where: str) -> frozenset[str]:
    """The nodes whose maps may live elsewhere, wherever they are stored: all but the results that a caller gets.

    A map that plain nodes read is read as a whole, so beside a GPU a copy of all of it would be there anyway.
    """
    if where == "device":
        return graph.written
    fixed = {v.name for v in graph.outputs if isinstance(v, Value)} - graph.written
    if where == "host":
        fixed |= {v.name for node in graph.nodes.values() if isinstance(node, Plain) for v in node.uses}
    return frozenset(graph.locals) - fixed


def place_maps(graph: Graph, steps: Steps, where: str) -> Steps:
    """Put every map that may be moved to one place, all others on the device; the same steps are returned."""
    names = movable(graph, where)
    for step in steps:
        if isinstance(step, Stage):
            step.place = where if step.stored and step.name in names else "device"
            if step.name in graph.written:
                step.place = "file"
    return steps


def transfer_bytes(stage: Stage, steps: Iterable[Stage | Globals]) -> float:
    """The bytes that a training step moves because the map of a stage lives outside, both ways together."""
    moved = 2.0 * map_bytes(stage.target)  # written; its gradient is read
    for reader in steps:
        if isinstance(reader, Globals):
            moved += 2 * map_bytes(stage.target) * (stage.target in reader.reads)
        elif stage.target in reader.frontier:
            needed = reader.needs(typical_box(reader)).get(stage.name, ())
            tile = sum(elements(stage.target, box) for box in needed) * stage.target.dtype.itemsize
            moved += tile * reader.tiles * (3 if reader.way == "recompute" else 2)
    return moved


def step_seconds(
    graph: Graph,
    steps: Sequence[Stage | Globals],
    times: Times,
    sharing: Sharing | None = None,
    ranks: Callable[[Stage], Iterable[Box]] | None = None,
) -> float:
    """The seconds of a training step where nothing overlaps: computing, and moving maps that are not on the device.

    Of several ``ranks``, which boxes each makes of a stage's target; what travels between them is not contained.
    """
    stages = [step for step in steps if isinstance(step, Stage)]
    paged = sharing.tables if sharing else {}
    outside = [s for s in stages if s.place != "device" and s.name not in paged]
    moving = sum(transfer_bytes(s, steps) / BANDWIDTH[s.place] for s in outside)
    return seconds_of(graph, stages, times, sharing, ranks) + moving


def fastest(graph: Graph, plans: Sequence[Steps], times: Times, content: Content = NOTHING) -> Steps:
    """The plan that takes the least time; the first of equals."""
    if len(plans) == 1:
        return plans[0]
    return min(plans, key=lambda steps: step_seconds(graph, steps, times, share(steps, graph.image, content)))


def bring_home(graph: Graph, steps: Steps, budget: int, content: Content = NOTHING) -> Steps:
    """Of a plan whose maps are all outside, put back on the device what fits, the most moved bytes first."""
    sharing = share(steps, graph.image, content)
    outside = [step for step in steps if isinstance(step, Stage) and step.place not in ("device", "file")]
    for stage in sorted(outside, key=lambda s: transfer_bytes(s, steps) / max(1, map_bytes(s.target)), reverse=True):
        where, stage.place = stage.place, "device"
        if exact_peak(graph, steps, sharing).bytes > budget:
            stage.place = where
    return steps
