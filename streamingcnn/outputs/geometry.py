"""Where the pixels of a result lie in the image.

    image    0   1   2   3   4   5   6   7            a convolution of 3 with stride 2 and padding 1:
    result   0       1       2       3                pixel k lies over pixel 2 k, so scale 2, offset 0

A pixel lies in the middle of what it sees. Over a whole number of periods (of a transposed convolution, say) the
middles go up evenly; their slope is the scale, which is not the ratio of the sizes where borders are cut or a size is
odd.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..graph import Graph
from ..ops.rule import Value
from ..plan.stages import Stage

__all__ = ["Geometry", "geometry"]

#: Pixels over which the slope is taken: a multiple of the scales that networks have.
_PERIOD = 16


@dataclass(frozen=True)
class Geometry:
    """Per spatial axis: pixels of the image per pixel of the result, and the image's pixel that pixel 0 lies over."""

    scale: tuple[float, ...]
    offset: tuple[float, ...]


def geometry(graph: Graph, value: Value) -> Geometry:
    """Where the pixels of a map lie in the image; by the ratio of the sizes where every pixel sees all of it.

    Example::

        plan = net.plan((1, 3, 512, 512))
        geometry(plan.graph, plan.stages[-1].target).scale       # (32.0, 32.0)
    """
    image = graph.image
    probe = Stage(graph, value, True, frozenset({image.name}), tile=(1,) * graph.space)
    found = [_along(probe, axis) for axis in range(graph.space)]
    return Geometry(tuple(scale for scale, _ in found), tuple(offset for _, offset in found))


def _along(probe: Stage, axis: int) -> tuple[float, float]:
    image, own = probe.graph.image.extents[axis], probe.target.extents[axis]
    period = min(_PERIOD, 1 << max(0, (own // 3).bit_length() - 1))
    first = own // 2 // period * period
    ratio = image / own, (image / own - 1) / 2
    if first + period >= own or probe.graph.image not in probe.frontier:
        return ratio
    middles = []
    for place in range(first, first + period + 1):
        box = [(extent // 2, extent // 2 + 1) for extent in probe.target.extents]
        box[axis] = (place, place + 1)
        reads = [part[axis] for value, part in probe.program(tuple(box)).reads if value is probe.graph.image]
        if not reads or min(low for low, _ in reads) <= 0 or max(high for _, high in reads) >= image:
            return ratio
        middles.append((min(low for low, _ in reads) + max(high for _, high in reads) - 1) / 2)
    scale = (middles[-1] - middles[0]) / period
    offset = sum(middle - scale * (first + k) for k, middle in enumerate(middles[:-1])) / period
    return scale, offset
