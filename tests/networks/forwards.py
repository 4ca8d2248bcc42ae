"""Code in forward that a capture could burn in or lose."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.blocks import Net

from .network import Network, between


def coordinates(net: Net, x: Tensor) -> Tensor:
    """CoordConv: two channels that say where a pixel is."""
    ys = torch.linspace(-1, 1, x.shape[2], dtype=x.dtype, device=x.device)
    xs = torch.linspace(0, 1, x.shape[3], dtype=x.dtype, device=x.device)
    grid = torch.stack(torch.meshgrid(ys, xs, indexing="ij"))
    return net.conv(torch.cat([x, grid.expand(x.shape[0], -1, -1, -1)], 1))


def positions(net: Net, x: Tensor) -> Tensor:
    """Pixel numbers made with arange, multiplied into the map."""
    columns = torch.arange(x.shape[-1], dtype=x.dtype, device=x.device)
    return net.conv(x) * torch.cos(columns / 7)


def no_grad_branch(net: Net, x: Tensor) -> Tensor:
    """A weight map that takes no gradient, computed from the features."""
    features = net.a(x)
    with torch.no_grad():
        weight = torch.sigmoid(net.b(features))
    return net.c(features * weight)


def own_autocast(net: Net, x: Tensor) -> Tensor:
    """A block that switches autocast off around itself."""
    with torch.autocast("cpu", enabled=False):
        x = net.a(x)
    return net.b(torch.tanh(x))


ROWS = [
    # Code in forward that a capture could burn in or lose.
    Network("coordinates", lambda: Net(coordinates, conv=nn.Conv2d(5, 4, 3, padding=1))),
    Network("positions", lambda: Net(positions, conv=nn.Conv2d(3, 4, 3, padding=1))),
    Network(
        "no_grad_branch",
        lambda: Net(no_grad_branch, a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(4, 1, 3, padding=1), c=nn.Conv2d(4, 2, 3)),
    ),
    Network("detached", between(lambda: Net(lambda net, x: x * x.detach().sigmoid()))),
    Network("own_autocast", lambda: Net(own_autocast, a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(4, 2, 3, 2))),
]
