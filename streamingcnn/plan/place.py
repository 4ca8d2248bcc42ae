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
arithmetic and moving take together.
"""

from __future__ import annotations

from ..graph import Graph
from ..ops.rule import Value
from .cost import elements, map_bytes, stage_work, typical_box
from .peak import TileBytes, peak
from .stages import Globals, Stage

Steps = list[Stage | Globals]

#: Bytes per second where nobody has measured: pinned memory over PCIe 4, a solid-state disk.
BANDWIDTH = {"device": float("inf"), "host": 12e9, "disk": 1e9}
#: Multiply-adds per second of a device that maps are moved to and from, where nobody has measured.
RATE = 1e13


def movable(graph: Graph, steps: Steps, where: str) -> list[Stage]:
    """The stages whose maps may live elsewhere: all that store one, but for the network's results.

    A map that plain nodes read is read as a whole, so beside a GPU a copy of all of it would be there anyway.
    """
    fixed = {v.name for v in graph.outputs if isinstance(v, Value)}
    if where == "host":
        fixed |= {v.name for step in steps if isinstance(step, Globals) for v in step.reads}
    return [s for s in steps if isinstance(s, Stage) and s.stored and s.name not in fixed]


def place_maps(graph: Graph, steps: Steps, where: str) -> Steps:
    """Put every map that may be moved to one place; the same steps are returned."""
    for stage in movable(graph, steps, where):
        stage.place = where
    return steps


def transfer_bytes(stage: Stage, steps: Steps) -> float:
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


def seconds(steps: Steps, rate: float = RATE, bandwidth: dict[str, float] = BANDWIDTH) -> float:
    """What a training step takes, where nothing overlaps: its arithmetic, and moving its maps."""
    stages = [step for step in steps if isinstance(step, Stage)]
    work = sum(stage_work(stage) * (4 if stage.way == "recompute" else 3) for stage in stages)
    moving = sum(transfer_bytes(s, steps) / bandwidth[s.place] for s in stages if s.place != "device")
    return work / rate + moving


def fastest(plans: list[Steps], rate: float = RATE, bandwidth: dict[str, float] = BANDWIDTH) -> Steps:
    """The plan that takes the least time; the first of equals."""
    return min(plans, key=lambda steps: seconds(steps, rate, bandwidth))


def bring_home(graph: Graph, steps: Steps, budget: int, tiles: TileBytes) -> Steps:
    """Of a plan whose maps are all outside, put back on the device what fits, the most moved bytes first."""
    outside = [step for step in steps if isinstance(step, Stage) and step.place != "device"]
    for stage in sorted(outside, key=lambda s: transfer_bytes(s, steps) / max(1, map_bytes(s.target)), reverse=True):
        where, stage.place = stage.place, "device"
        if peak(graph, steps, tiles).bytes > budget:
            stage.place = where
    return steps
