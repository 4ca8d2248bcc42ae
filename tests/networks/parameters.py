"""Parameters that are computed, tied, frozen, unused, or bare."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from tests.blocks import Net, StandardisedConv

from .network import Network, rows


def tied() -> nn.Module:
    first, second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
    second.weight = first.weight
    return rows(first, nn.Tanh(), second)


def frozen() -> nn.Module:
    module = rows(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 3))
    module[0].requires_grad_(False)
    module[1].requires_grad_(False).eval()
    module.get_parameter("3.bias").requires_grad_(False)
    return module


COMPUTED = [
    # Weights that are computed: once per forward, and the gradient goes through the computation.
    Network(
        "weight_norm",
        lambda: rows(weight_norm(nn.Conv2d(3, 4, 3)), nn.Tanh(), weight_norm(nn.ConvTranspose2d(4, 2, 2, 2), dim=1)),
    ),
    Network(
        "spectral_norm",
        lambda: rows(spectral_norm(nn.Conv2d(3, 4, 3)), nn.Tanh(), spectral_norm(nn.Conv2d(4, 2, 3))),
    ),
    Network("spectral_norm_eval", lambda: rows(spectral_norm(nn.Conv2d(3, 4, 3)), nn.Tanh()), train=False),
    Network(
        "standardised_weights",
        lambda: rows(StandardisedConv(3, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), StandardisedConv(4, 2, 3)),
    ),
]


UNUSUAL = [
    # Parameters and modules in unusual places.
    Network("tied_weights", tied),
    Network(
        "one_module_twice",
        lambda: Net(lambda net, x: net.conv(torch.tanh(net.conv(x))), conv=nn.Conv2d(3, 3, 3, padding=1)),
    ),
    Network(
        "recurrent",
        lambda: Net(
            lambda net, x: net.step(torch.tanh(net.step(torch.tanh(net.step(x) + x)) + x)),
            step=nn.Conv2d(3, 3, 3, padding=1),
        ),
    ),
    Network("frozen", frozen),
    Network(
        "unused_parameter",
        lambda: Net(lambda net, x: net.a(x), a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(3, 4, 3)),
    ),
    Network(
        "bare_parameters",
        lambda: Net(
            lambda net, x: net.conv(x * net.gain) + net.shift,
            conv=nn.Conv2d(3, 4, 3),
            gain=nn.Parameter(torch.randn(3, 1, 1)),
            shift=nn.Parameter(torch.randn(1, 4, 1, 1)),
        ),
    ),
]
