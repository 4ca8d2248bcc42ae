"""Each rule's needed boxes, and its result on them, against an independent brute force.

What a box of a result needs is found without any formula: an operation runs under autograd in float64, and the
gradient of one result pixel says which input pixels it saw. Where a weight may be zero by chance (interpolation
weights), the rule may ask for more, never for less.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamingcnn.boxes import Region, boxes_of
from streamingcnn.capture import capture
from streamingcnn.graph import Graph

Op = Callable[[Tensor], Tensor]


def conv(kernel: int, **options: Any) -> nn.Module:
    layer = nn.Conv1d(1, 1, kernel, **options).double()
    nn.init.uniform_(layer.weight, 0.5, 1.0)
    return layer


def transposed(kernel: int, **options: Any) -> nn.Module:
    layer = nn.ConvTranspose1d(1, 1, kernel, **options).double()
    nn.init.uniform_(layer.weight, 0.5, 1.0)
    return layer


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Op) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


# (name, operation on one axis, whether the needed hull is exact)
OPERATIONS = [
    # convolutions
    ("conv 3", conv(3), True),
    ("conv 3 pad 1", conv(3, padding=1), True),
    ("conv 4 stride 2 pad 1", conv(4, stride=2, padding=1), True),
    ("conv 3 dilation 3 pad 3", conv(3, dilation=3, padding=3), True),
    ("conv 2 stride 3", conv(2, stride=3), True),
    ("conv 1 stride 2", conv(1, stride=2), True),
    ("conv 5 pad 4: wider than the map needs", conv(5, padding=4), True),
    ("conv same, even kernel", conv(4, padding="same"), True),
    ("conv reflect", conv(3, padding=2, padding_mode="reflect"), True),
    ("conv replicate", conv(3, padding=2, padding_mode="replicate"), True),
    ("conv circular", conv(3, padding=2, padding_mode="circular"), True),
    # transposed convolutions
    ("transposed 2/2", transposed(2, stride=2), True),
    ("transposed 3/2 pad 1 output 1", transposed(3, stride=2, padding=1, output_padding=1), True),
    ("transposed 2/3: gaps", transposed(2, stride=3), True),
    ("transposed 4/2 dilation 2", transposed(4, stride=2, dilation=2, padding=1), True),
    # pooling
    ("max 3/2 pad 1", Apply(lambda x: -F.max_pool1d(-x, 3, 2, 1) + 0 * F.avg_pool1d(x, 3, 2, 1)), True),
    ("avg 3/2 pad 1", Apply(lambda x: F.avg_pool1d(x, 3, 2, 1)), True),
    ("avg 3/2 ceil", Apply(lambda x: F.avg_pool1d(x, 3, 2, ceil_mode=True)), True),
    ("avg 2/3", Apply(lambda x: F.avg_pool1d(x, 2, 3)), True),
    # resampling
    ("nearest x2", Apply(lambda x: F.interpolate(x, scale_factor=2)), True),
    ("nearest x1.7", Apply(lambda x: F.interpolate(x, scale_factor=1.7)), True),
    ("nearest to 7", Apply(lambda x: F.interpolate(x, size=7)), True),
    ("nearest-exact to 11", Apply(lambda x: F.interpolate(x, size=11, mode="nearest-exact")), True),
    ("linear x2", Apply(lambda x: F.interpolate(x, scale_factor=2, mode="linear")), False),
    ("linear to 9, corners", Apply(lambda x: F.interpolate(x, size=9, mode="linear", align_corners=True)), False),
    # layout
    ("pad 2, 3", Apply(lambda x: F.pad(x, (2, 3))), True),
    ("pad -2, 1", Apply(lambda x: F.pad(x, (-2, 1))), True),
    ("pad reflect", Apply(lambda x: F.pad(x, (3, 2), mode="reflect")), True),
    ("pad circular", Apply(lambda x: F.pad(x, (3, 2), mode="circular")), True),
    ("slice 2:-3:2", Apply(lambda x: x[:, :, 2:-3:2]), True),
    ("cat with itself", Apply(lambda x: torch.cat([x[:, :, 3:], x], 2)), True),
]


def pixels_of(region: Region) -> set[int]:
    return {pixel for box in boxes_of(region) for pixel in range(*box[0])}


def needed_of(graph: Graph, low: int, high: int) -> set[int]:
    """The image pixels that a box of the result needs, walking the graph's rules without any stage."""
    wanted: dict[str, set[int]] = {graph.outputs[0].name: set(range(low, high))}
    for node in reversed(graph.locals.values()):
        for pixel in wanted.get(node.value.name, ()):
            for read in node.rule.reads:
                wanted.setdefault(read.value.name, set()).update(pixels_of(read.need(((pixel, pixel + 1),))))
    return wanted.get(graph.image.name, set())


@pytest.mark.parametrize("extent", [13, 16])
@pytest.mark.parametrize(("name", "module", "exact"), OPERATIONS, ids=[name for name, *_ in OPERATIONS])
def test_a_pixel_needs_what_its_gradient_sees(name: str, module: nn.Module, exact: bool, extent: int) -> None:
    torch.manual_seed(0)
    x = torch.rand(1, 1, extent, dtype=torch.float64).requires_grad_()
    graph = capture(module, (x,), {})
    y = module(x)
    for pixel in range(y.shape[2]):
        (gradient,) = torch.autograd.grad(y[0, 0, pixel], x, retain_graph=True)
        seen = set(torch.nonzero(gradient[0, 0])[:, 0].tolist())
        needed = needed_of(graph, pixel, pixel + 1)
        if "max" in name:
            assert needed >= seen
        elif exact:
            hull = set(range(min(seen), max(seen) + 1)) if seen else set()
            assert needed in (seen, hull)
        else:
            assert needed >= seen


@pytest.mark.parametrize("extent", [13, 16])
@pytest.mark.parametrize(("name", "module", "exact"), OPERATIONS, ids=[name for name, *_ in OPERATIONS])
def test_a_box_needs_the_hull_of_its_pixels(name: str, module: nn.Module, exact: bool, extent: int) -> None:
    """The formula for intervals against the union over single pixels, for every box of the result."""
    graph = capture(module, (torch.rand(1, 1, extent, dtype=torch.float64),), {})
    for node in graph.locals.values():
        size = node.value.extents[0]
        for low in range(size):
            for high in range(low + 1, size + 1):
                for read in node.rule.reads:
                    asked = pixels_of(read.need(((low, high),)))
                    union = set().union(*(pixels_of(read.need(((p, p + 1),))) for p in range(low, high)))
                    assert asked >= union
                    assert asked <= set(range(read.value.extents[0]))
                    intervals = read.need(((low, high),))[0]
                    if union and len(intervals) == 1:
                        assert (min(asked), max(asked)) == (min(union), max(union)) or node.op == "pad"
