"""What ``print(plan)`` and ``plan.draw`` show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count
from math import prod
from typing import TYPE_CHECKING, Any

from ..boxes import Box
from ..memory import format_bytes
from .cost import arithmetic, graph_work, map_bytes, stage_work, tile_bytes, typical_box
from .place import PLACES
from .stages import Globals, Stage

if TYPE_CHECKING:
    from PIL.Image import Image

    from .plan import Plan


def by(sizes: Sequence[int]) -> str:
    """``(3, 4)`` -> ``3x4``."""
    return "x".join(map(str, sizes))


#: A table longer than this ends with its header again: where it scrolls by, its end is what stays on the screen.
LONG = 30
#: Columns of text stand to the left, numbers to the right.
TEXT = {"stored map", "shape", "way"}
COLUMNS = (
    "stage",
    "stored map",
    "shape",
    "way",
    "tile",
    "tiles",
    "run",
    "overlap",
    "FLOPs x",
    "tile bytes",
    "map",
    "kept",
)


def table(plan: Plan) -> str:
    """One row per stage, then the totals; a column in which no row has an entry is left out.

    Stages are numbered from 0, as in ``plan.stages``.
    """
    numbers = count()
    rows = [
        _stage_row(plan, next(numbers), step) if isinstance(step, Stage) else _plain_row(step)
        for step in plan.steps
        if isinstance(step, Stage) or _spatial(step)
    ]
    return "\n".join([*_aligned(rows), "", *totals(plan)])


def totals(plan: Plan) -> list[str]:
    """The lines under the table: the image, the work, the bytes, and the time."""
    graph, stages = plan.graph, plan.stages
    work = sum(stage_work(s, arithmetic, plan.sharing.count(s)) for s in stages) / max(graph_work(graph), 1)
    given = "" if plan.budget is None else f" of {format_bytes(plan.budget)} given"
    held = [f"stored maps {format_bytes(_held(plan, 'device'))}"]
    held += [f"on {place} {format_bytes(_held(plan, place))}" for place in PLACES[1:] if _held(plan, place)]
    kept = sum(_kept(plan, stage) for stage in stages)
    if kept:
        held.append(f"kept tiles {format_bytes(kept)}")
    small = [step for step in plan.steps if isinstance(step, Globals) and not _spatial(step)]
    return [
        *([f"computed once, as they are global: {_layers(small)}"] if small else []),
        f"image {by(graph.image.shape)} ({format_bytes(map_bytes(graph.image))}), "
        f"receptive field {by(plan.receptive_field)} px",
        f"{_count(len(stages), 'stage')}, {_tiles(plan)}, forward work {work:.2f}x of plain",
        ", ".join([*held, f"predicted peak {format_bytes(plan.peak_bytes)}{given}"]),
        f"predicted time {format_seconds(plan.seconds)} for a training step",
        *_ranks(plan),
    ]


def _ranks(plan: Plan) -> list[str]:
    """What is whose in a plan of several ranks."""
    if plan.ranks is None:
        return []
    return [
        f"divided over {len(plan.ranks)} ranks ({by(plan.ranks.division.parts)}): tiles and maps are those of rank "
        f"{plan.ranks.rank}, the peak of the one that holds most, the time of the slowest",
        f"rank {plan.ranks.rank} sends {format_bytes(plan.bytes_sent(plan.ranks.rank))} of pixels and their gradients "
        "in a training step",
    ]


def format_seconds(seconds: float) -> str:
    """Seconds as a person reads them.

    >>> format_seconds(0.0123), format_seconds(0.963), format_seconds(4.56), format_seconds(95), format_seconds(5000)
    ('12 ms', '960 ms', '4.6 s', '1 min 35 s', '1 h 23 min')
    """
    if seconds < 0.995:
        return f"{float(f'{seconds * 1000:.2g}'):g} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    if seconds < 3599.5:
        return f"{round(seconds) // 60} min {round(seconds) % 60} s"
    return f"{round(seconds / 60) // 60} h {round(seconds / 60) % 60} min"


def _aligned(rows: Sequence[dict[str, str]]) -> list[str]:
    columns = [name for name in COLUMNS if any(row.get(name) for row in rows)]
    widths = {name: max(len(name), *(len(row.get(name, "")) for row in rows)) for name in columns}

    def line(cells: dict[str, str]) -> str:
        return "  ".join(
            cells.get(name, "").ljust(widths[name]) if name in TEXT else cells.get(name, "").rjust(widths[name])
            for name in columns
        ).rstrip()

    header, rule = line({name: name for name in columns}), "  ".join("-" * widths[name] for name in columns)
    foot = [rule, header] if len(rows) > LONG else []
    return [header, rule, *map(line, rows), *foot]


def _spatial(step: Globals) -> bool:
    """Whether a global part works on whole maps, and not on statistics, gates and heads alone."""
    return any(value.spatial for value in (*step.reads, *(node.value for node in step.nodes)))


def _plain_row(step: Globals) -> dict[str, str]:
    """Whole maps under plain autograd; what they take is plain PyTorch's."""
    maps = sum(map_bytes(node.value) for node in step.nodes)
    return {"stored map": _layers([step]), "shape": "whole maps", "way": "plain", "map": format_bytes(maps)}


def _layers(steps: Iterable[Globals]) -> str:
    names = list(dict.fromkeys(node.layer or node.op for step in steps for node in step.nodes))
    return ", ".join(names) if len(names) <= 3 else f"{names[0]}, ... {names[-1]} ({len(names)} layers)"


def _stage_row(plan: Plan, number: int, step: Stage) -> dict[str, str]:
    own = sum(node.rule.work * prod(node.value.shape) for node in step.nodes)
    return {
        "stage": str(number),
        "stored map": _named(plan, step),
        "shape": _map_of(plan, step),
        "way": _way(step),
        "tile": by(step.tile),
        "tiles": str(plan._tiles_of(step)),
        "run": str(plan.sharing.count(step)) if step in plan.sharing.runs else "",
        "overlap": by(plan.image_overlap(step)),
        "FLOPs x": f"{stage_work(step, arithmetic) / own:.2f}" if own else "",
        "tile bytes": format_bytes(tile_bytes(step)),
        "map": format_bytes(plan._map_bytes(step.target)) if step.stored else "",
        "kept": format_bytes(_kept(plan, step)) if step.way == "keep" else "",
    }


def _way(stage: Stage) -> str:
    """A kept stage of one tile is plain autograd on the whole map."""
    return "whole" if stage.way == "keep" and stage.tiles == 1 else stage.way


def _kept(plan: Plan, stage: Stage) -> int:
    count = plan._tiles_of(stage) if plan.ranks is not None else plan.sharing.count(stage)
    return tile_bytes(stage) * count if stage.way == "keep" else 0


def _tiles(plan: Plan) -> str:
    if plan.ranks is not None:
        return _count(plan.tiles, "tile")
    run = plan.sharing.statistics(plan.steps)
    return _count(run.tiles, "tile") if run.run == run.tiles else str(run)


def _place(plan: Plan, stage: Stage) -> str:
    """Where a stage's map lives; one with shared pages is on the device."""
    return "device" if stage.name in plan.sharing.tables else stage.place


def _held(plan: Plan, place: str) -> int:
    stages = [stage for stage in plan.stages if stage.stored and _place(plan, stage) == place]
    return sum(plan._map_bytes(stage.target) for stage in stages)


def _map_of(plan: Plan, stage: Stage) -> str:
    """The shape of a stage's map, and where it lives if that is not the device."""
    if not stage.stored:
        return "summed only"
    place = _place(plan, stage)
    return by(stage.target.shape) + ("" if place == "device" else f" on {place}")


def _named(plan: Plan, stage: Stage) -> str:
    """The layer that makes the map; a layer that is called twice needs the name of the call as well."""
    again = sum(other.layer == stage.layer for other in plan.stages) > 1
    return f"{stage.layer} ({stage.name})" if again and stage.layer != stage.name else stage.layer


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def draw(plan: Plan, image: Any, stage: int = 0, longest: int = 1024) -> Image:
    """Draw the tile grid of a stage over the image, and one tile with its halo.

    Args:
        plan: the plan of a 2-D network.
        image: (H, W, 3) uint8 array, (3, H, W) or (1, 3, H, W) tensor, or a PIL image; any size, it is scaled.
        stage: the index of the stage in ``plan.stages``.
        longest: the longer side of the picture.

    Returns:
        A PIL image: tile borders in white, the middle tile in green, all that it reads in yellow.
    """
    from PIL import ImageDraw

    if plan.graph.space != 2:
        raise ValueError(f"plan.draw shows 2-D plans; this one has {plan.graph.space} spatial axes")
    if not 0 <= stage < len(plan.stages):
        raise ValueError(f"stage={stage}; this plan has stages 0 to {len(plan.stages) - 1}")
    picture = _picture(image).convert("RGB")
    scale = longest / max(picture.size)
    picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    shown = plan.stages[stage]
    pen = ImageDraw.Draw(picture)
    target = shown.target.extents

    def rectangle(box: Box, extents: Sequence[int]) -> tuple[float, float, float, float]:
        (top, bottom), (left, right) = box
        y, x = picture.height / extents[0], picture.width / extents[1]
        return left * x, top * y, right * x - 1, bottom * y - 1

    for box in shown.boxes():
        pen.rectangle(rectangle(box, target), outline=(255, 255, 255), width=1)
    middle = typical_box(shown)
    for value, box in shown.program(middle).reads:
        pen.rectangle(rectangle(box, value.extents), outline=(255, 215, 0), width=3)
    pen.rectangle(rectangle(middle, target), outline=(0, 190, 70), width=3)
    return picture


def _picture(image: Any) -> Image:
    import numpy as np
    from PIL import Image

    if isinstance(image, Image.Image):
        return image
    array = np.asarray(image.detach().cpu() if hasattr(image, "detach") else image)
    array = array[0] if array.ndim == 4 else array
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[-1] not in (1, 3):
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] != 3):
        raise ValueError(f"an image of shape {array.shape} cannot be shown; needed is (H, W), (H, W, 3) or (3, H, W)")
    if array.dtype != np.uint8:
        low, high = float(array.min()), float(array.max())
        array = ((array - low) / max(high - low, 1e-12) * 255).astype(np.uint8)
    return Image.fromarray(array)
