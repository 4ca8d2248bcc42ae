"""Pixel by pixel: activations, arithmetic, channels, and crops, which leave pixels out."""

from __future__ import annotations

import torch
from torch import nn

from tests.blocks import Net, ShuffleUnit

from .network import Network, between, rows

ROWS = [
    # Pointwise: activations with and without parameters, in place and not; over channels; arithmetic.
    Network(
        "activations",
        lambda: rows(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.SiLU(inplace=True),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.ELU(inplace=True),
            nn.Hardswish(),
            nn.Softplus(),
            nn.Mish(),
            nn.LeakyReLU(0.2, inplace=True),
            nn.ReLU6(),
            nn.Conv2d(4, 2, 1),
            nn.Sigmoid(),
        ),
    ),
    Network("prelu", between(lambda: rows(nn.PReLU(4), nn.Conv2d(4, 4, 3), nn.PReLU()))),
    Network("glu", between(lambda: nn.GLU(1), channels=2)),
    Network("softmax_of_channels", between(lambda: nn.Softmax(1))),
    Network("log_softmax_of_channels", between(lambda: nn.LogSoftmax(1))),
    Network(
        "channel_arithmetic",
        between(lambda: Net(lambda net, x: x / (1 + x.square().sum(1, keepdim=True).sqrt()) - x.clamp(-1, 0.5))),
    ),
    Network(
        "where_and_maximum",
        between(lambda: Net(lambda net, x: torch.where(x > 0, x.sin(), torch.maximum(x, -x * 0.3)) ** 2)),
    ),
    Network("casts", between(lambda: Net(lambda net, x: x.double() + x.detach().float().to(x.dtype)))),
    # Channels: split, joined, moved, maxed.
    Network(
        "chunk_split_cat",
        between(
            lambda: Net(lambda net, x: torch.cat([*x.split([1, 3], 1)[::-1], x.chunk(2, 1)[1], x[:, 1:2]], 1)),
            channels=7,
        ),
    ),
    Network("maxout", between(lambda: Net(lambda net, x: x.unflatten(1, (2, 2)).amax(2)), channels=2)),
    Network("channel_shuffle", lambda: rows(nn.Conv2d(3, 6, 3, padding=1), ShuffleUnit(6), nn.Conv2d(6, 2, 3))),
    Network(
        "linear_of_channels",
        between(lambda: Net(lambda net, x: net.fc(x.movedim(1, -1)).movedim(-1, 1), fc=nn.Linear(4, 4))),
    ),
    # Centre crops and slices of space.
    Network("crop", between(lambda: Net(lambda net, x: x[:, :, 3:-2, 5:30]))),
    Network("two_crops_added", between(lambda: Net(lambda net, x: x[..., 1:, :-1] - x[..., :-1, 1:]))),
]
