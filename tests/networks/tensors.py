"""Inputs and results that are more than one tensor."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.blocks import Net

from .network import Network


def mask_weighted(net: Net, x: Tensor, *, gate: Tensor, mask: Tensor) -> Tensor:
    """One side input without space (a gate per channel), and one with the image's own axes."""
    return net.b(torch.tanh(net.a(x) * gate[:, :, None, None]) * mask)


def pyramid(net: Net, x: Tensor) -> dict[str, Any]:
    """Results at three scales, in nested containers."""
    fine = torch.tanh(net.a(x))
    middle = torch.tanh(net.b(fine))
    coarse = net.c(middle)
    return {"maps": [fine, (middle, coarse)], "score": coarse.mean((2, 3))}


ROWS = [
    # Inputs and results that are more than one tensor.
    Network(
        "pyramid",
        lambda: Net(pyramid, a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(4, 5, 3, 2), c=nn.Conv2d(5, 2, 3, 2, 1)),
    ),
    Network(
        "side_inputs",
        lambda: Net(mask_weighted, a=nn.Conv2d(3, 4, 3, padding=1), b=nn.Conv2d(4, 2, 3)),
        more=lambda batch: {
            "gate": torch.randn(batch, 4, dtype=torch.float64),
            "mask": torch.rand(batch, 1, 37, 45, dtype=torch.float64),
        },
    ),
    Network(
        "labels_too",
        lambda: Net(lambda net, x: (lambda y: (y, y.argmax(1), y > 0, y.max(1)))(net.a(x)), a=nn.Conv2d(3, 4, 3)),
    ),
    Network("same_result_twice", lambda: Net(lambda net, x: (lambda y: (y, [y]))(net.a(x)), a=nn.Conv2d(3, 4, 3))),
    Network("input_returned", lambda: Net(lambda net, x: (net.a(x), x), a=nn.Conv2d(3, 4, 3))),
    Network(
        "coarse_side_input",
        lambda: Net(
            lambda net, x, *, context: net.a(x) + F.interpolate(net.b(context), size=x.shape[2:]),
            a=nn.Conv2d(3, 4, 3, padding=1),
            b=nn.Conv2d(2, 4, 3, padding=1),
        ),
        more=lambda batch: {"context": torch.randn(batch, 2, 9, 11, dtype=torch.float64)},
    ),
]
