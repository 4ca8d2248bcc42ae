"""What ``print(plan)`` and ``plan.draw`` show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..boxes import Box
from ..memory import format_bytes
from .cost import arithmetic, graph_work, map_bytes, stage_work, tile_bytes, typical_box
from .stages import Globals, Stage

if TYPE_CHECKING:
    from PIL.Image import Image

    from .plan import Plan


def by(sizes: Sequence[int]) -> str:
    """``(3, 4)`` -> ``3x4``."""
    return "x".join(map(str, sizes))


def table(plan: Plan) -> str:
    """One row per stage, then the totals."""
    rows: list[tuple[str, ...]] = [
        ("stage", "makes", "map", "way", "tile", "tiles", "overlap px", "work x", "tile bytes", "map bytes")
    ]
    plain_work = graph_work(plan.graph)
    for number, step in enumerate(plan.steps, start=1):
        if isinstance(step, Globals):
            names = dict.fromkeys(node.layer or node.op for node in step.nodes)
            rows.append((str(number), _shortened(list(names)), "global", "whole", "", "", "", "", "", ""))
        else:
            rows.append(_stage_row(plan, number, step))
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    work = sum(stage_work(stage, arithmetic, plan.sharing.count(stage)) for stage in plan.stages)
    held = sum(plan.sharing.map_bytes(stage.target) for stage in plan.stages if stage.stored)
    lines.append("")
    lines.append(f"image {by(plan.graph.image.shape)}, receptive field {by(plan.receptive_field)} px, {_tiles(plan)}")
    lines.append(
        f"stored maps {format_bytes(held)}, image {format_bytes(map_bytes(plan.graph.image))}, "
        f"forward work {work / max(plain_work, 1):.2f}x of plain, predicted peak {format_bytes(plan.peak_bytes)}"
    )
    return "\n".join(lines)


def _tiles(plan: Plan) -> str:
    run = plan.sharing.statistics(plan.steps)
    return f"{run.tiles} tiles" if run.run == run.tiles else str(run)


def _stage_row(plan: Plan, number: int, stage: Stage) -> tuple[str, ...]:
    own = sum(node.rule.work * _elements(node.value.shape) for node in stage.nodes)
    return (
        str(number),
        _named(plan, stage),
        by(stage.target.shape) if stage.stored else "summed only",
        stage.way,
        by(stage.tile),
        str(stage.tiles),
        by(plan.image_overlap(stage)),
        f"{stage_work(stage, arithmetic) / own:.2f}" if own else "",
        format_bytes(tile_bytes(stage)),
        format_bytes(map_bytes(stage.target)) if stage.stored else "",
    )


def _named(plan: Plan, stage: Stage) -> str:
    """The layer that makes the map; a layer that is called twice needs the name of the call as well."""
    again = sum(other.layer == stage.layer for other in plan.stages) > 1
    return f"{stage.layer} ({stage.name})" if again and stage.layer != stage.name else stage.layer


def _elements(shape: Sequence[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _shortened(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]}, ... {names[-1]} ({len(names)} layers)"


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
