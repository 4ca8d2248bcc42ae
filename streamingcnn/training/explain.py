"""Where a network's answer comes from, as a heatmap over the slide.

| way        | a cell shows                                                              | for                       |
|------------|---------------------------------------------------------------------------|---------------------------|
| activation | what the head says of this place alone (class activation map)             | mean and top-t heads      |
| attention  | how much this place counts in the answer                                  | attention heads           |
| saliency   | how much the answer moves with the pixels here: the sum of |gradient|     | every network             |

All are computed by streaming, and exactly those of the whole image. Activation and attention take a forward; saliency
takes a forward and a backward, in which the gradient is summed into cells as it arrives (`input_gradient.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from streamingcnn.boxes import Box
from streamingcnn.input_gradient import input_gradient
from streamingcnn.module import StreamingModule
from streamingcnn.slides.heatmaps import Heatmap, scaled_to_one
from streamingcnn.slides.level0 import level_0
from streamingcnn.sources.source import Source

__all__ = ["WAYS", "explain"]

WAYS = ("auto", "activation", "attention", "saliency")
#: Pixels that the network reads, along the side of a cell of saliency; a divisor of the blocks that arrive.
CELL = 16


def explain(
    net: StreamingModule,
    seen: Source,
    image: Source,
    way: str = "auto",
    *,
    kind: str = "binary",
    classes: Sequence[str] = (),
    target: int | None = None,
) -> Heatmap:
    """A heatmap of one image, in the coordinates of its level 0.

    Example::

        image = open_image("slide.svs", mpp=0.5)
        heatmap = explain(net, ScaledSource(mask.over(image)), image, kind="binary")
        write_heatmap(heatmap, "slide.svs", Path("heatmaps/slide"))

    Args:
        net: the streamed network, in eval mode: a trunk with a head of this package behind it, or for saliency any.
        seen: the image as the network takes it.
        image: the image as it was opened: its ``downsample`` and ``mpp`` say where cells lie.
        way: activation, attention, saliency; auto takes the head's own map, and saliency where there is none.
        kind: what the answer is: binary, multiclass, ordinal or regression.
        classes: their names, for the description.
        target: the class that is explained; None: the second of two, else the one that is answered.

    Raises:
        ValueError: there is no such way, or the network has no such map; the ways that it has are named.
    """
    where, own = _map_of(net)
    if way not in WAYS:
        raise ValueError(f"there is no way '{way}' to explain a network; there are {', '.join(WAYS)}")
    way = (own or "saliency") if way == "auto" else way
    if way not in (own, "saliency"):
        raise ValueError(
            f"'{way}' is not to be had of this network: "
            + (f"its head has {own}" if own else "it has no head of this package")
            + f"; ask for {own + ' or ' if own else ''}saliency"
        )
    strides: tuple[float, float]
    if way == "saliency":
        heat, strides = _saliency(net, seen, kind, classes, target), (CELL, CELL)
    else:
        assert where is not None
        with torch.no_grad():
            maps = where(seen)[0].float().cpu()
        heat = _heat_of(maps, way, kind, classes, target)
        strides = _stride(seen.shape[-2:], maps.shape[-2:])
    values, said = heat
    whole = level_0(image)
    scale = (strides[0] * whole.per_pixel[0], strides[1] * whole.per_pixel[1])
    return Heatmap(values, scale, whole.size, whole.mpp, said)


def _map_of(net: StreamingModule) -> tuple[StreamingModule | None, str]:
    """The streamed trunk with the head's own map behind it, and what that map is called."""
    module = net.module
    trunk, head = getattr(module, "trunk", None), getattr(module, "head", None)
    make = getattr(head, "where", None)
    if not isinstance(trunk, nn.Module) or make is None:
        return None, ""
    inner = make()
    own = "attention" if type(head).__name__.startswith("Attention") else "activation"
    whole = nn.Sequential(trunk, inner).train(net.training)
    return StreamingModule(whole, tile=net.tile, memory=net.memory), own


def _heat_of(
    maps: Tensor, way: str, kind: str, classes: Sequence[str], target: int | None
) -> tuple[NDArray[np.float32], str]:
    if way == "attention":
        return scaled_to_one(maps[0].numpy()), "attention, 1 at its 99.5 % quantile"
    if kind == "binary":
        shown = 1 if target is None else target
        probability = torch.sigmoid(maps[0] if shown == 1 else -maps[0])
        return probability.numpy(), f"probability of {_name(classes, shown)} at each place by itself"
    if kind == "multiclass":
        shown = int(maps.flatten(1).mean(1).argmax()) if target is None else target
        return maps.softmax(0)[shown].numpy(), f"probability of {_name(classes, shown)} at each place by itself"
    low, high = (float(q) for q in torch.quantile(maps[0].flatten()[:: max(1, maps[0].numel() // 10**6)], _SPREAD))
    scaled = ((maps[0] - low) / max(high - low, 1e-12)).clamp(0, 1)
    return scaled.numpy(), f"the answer at each place by itself, 0 at {low:.4g} and 1 at {high:.4g}"


_SPREAD = torch.tensor([0.005, 0.995])


def _saliency(
    net: StreamingModule, seen: Source, kind: str, classes: Sequence[str], target: int | None
) -> tuple[NDArray[np.float32], str]:
    rows, columns = (-(-extent // CELL) for extent in seen.shape[-2:])
    cells = torch.zeros(rows, columns)
    shown: list[int] = []

    def score(result: Any) -> Tensor:
        if not isinstance(result, Tensor) or len(result.shape) != 2:
            raise ValueError("saliency needs a network that gives a row of outputs per image, (N, outputs)")
        if kind != "multiclass":
            return result.sum()
        shown.append(int(result[0].argmax()) if target is None else target)
        return result[0, shown[0]]

    def take(box: Box, gradient: Tensor) -> None:
        size = gradient.abs().sum(1, keepdim=True).float()
        pooled = torch.nn.functional.avg_pool2d(size, CELL, ceil_mode=True, count_include_pad=False)[0, 0].cpu()
        (top, bottom), (left, right) = box
        cells[top // CELL : -(-bottom // CELL), left // CELL : -(-right // CELL)] = pooled

    input_gradient(net, seen, score, take)
    of = f"the score of {_name(classes, shown[0])}" if shown else "the answer"
    return scaled_to_one(cells.numpy()), f"saliency: mean |gradient| of {of} in cells of {CELL} px, 1 at 99.5 %"


def _name(classes: Sequence[str], number: int) -> str:
    return f"'{classes[number]}'" if number < len(classes) else f"class {number}"


def _stride(extents: Sequence[int], cells: Sequence[int]) -> tuple[float, float]:
    """Pixels to a cell along both axes: the power of two that explains the sizes, else their ratio."""
    for stride in (2**k for k in range(12)):
        if all(-(-extent // stride) == count for extent, count in zip(extents, cells, strict=True)):
            return float(stride), float(stride)
    return extents[0] / cells[0], extents[1] / cells[1]
