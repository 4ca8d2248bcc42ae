"""Windows: convolutions of every kind, padding, pools, and what goes the other way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch.nn.functional as F
from torch import nn

from tests.blocks import Net

from .network import LINE, VOLUME, Network, between, rows


def conv_relu(channels: int, out: int, kernel: int, **options: Any) -> nn.Module:
    return rows(nn.Conv2d(channels, out, kernel, **options), nn.ReLU())


def conv_padded(mode: Literal["reflect", "replicate", "circular"]) -> Callable[[], nn.Module]:
    return lambda: rows(
        nn.Conv2d(3, 4, 5, padding=(2, 1), padding_mode=mode),
        nn.Tanh(),
        nn.Conv2d(4, 2, 3, stride=2, padding=3, padding_mode=mode),
    )


def padded(*amounts: int, **how: Any) -> Callable[[], nn.Module]:
    return between(lambda: Net(lambda net, x: F.pad(x, amounts, **how)))


ROWS = [
    # Plain: the sizes only shrink or stay.
    Network(
        "plain_1d",
        lambda: rows(nn.Conv1d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv1d(4, 4, 5, padding=2), nn.GELU()),
        LINE,
        tiles=(1, 5, 24),
    ),
    Network(
        "plain_2d",
        lambda: rows(conv_relu(3, 5, 3, padding=1), conv_relu(5, 5, 5, padding=2), nn.Conv2d(5, 2, 1)),
    ),
    Network(
        "plain_3d",
        lambda: rows(nn.Conv3d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 2, (1, 3, 5), padding=(0, 1, 2))),
        VOLUME,
    ),
    Network("valid", lambda: rows(conv_relu(3, 4, 3), conv_relu(4, 4, 5), nn.Conv2d(4, 2, 3))),
    Network("wide_padding", lambda: rows(nn.Conv2d(3, 4, 3, padding=9), nn.Tanh(), nn.Conv2d(4, 2, 3, 2, 6))),
    # Strided: a tile of the input is a fraction of a pixel further on.
    Network(
        "strided",
        lambda: rows(*(conv_relu(i, 4, 3, stride=2, padding=1) for i in (3, 4)), nn.Conv2d(4, 2, 3)),
    ),
    Network(
        "stride_beyond_kernel",
        lambda: rows(nn.Conv2d(3, 4, 2, stride=3), nn.Tanh(), nn.Conv2d(4, 4, 1, stride=2, padding=1)),
    ),
    Network(
        "asymmetric",
        lambda: rows(
            nn.Conv2d(3, 4, (5, 3), stride=(2, 1), padding=(0, 2)),
            nn.Tanh(),
            nn.Conv2d(4, 4, (1, 7), padding=(0, 3)),
            nn.Tanh(),
            nn.Conv2d(4, 2, (4, 1), stride=(1, 3), padding=(1, 0)),
        ),
    ),
    Network(
        "stem",
        lambda: rows(nn.Conv2d(3, 4, 7, 2, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
        train=False,
    ),
    # Dilated, grouped, even kernels, 'same': other windows, one formula.
    Network(
        "dilated",
        lambda: rows(
            nn.Conv2d(3, 4, 3, padding=2, dilation=2),
            nn.Tanh(),
            nn.Conv2d(4, 4, 3, padding=(1, 4), dilation=(3, 4)),
            nn.Tanh(),
            nn.Conv2d(4, 2, 3, stride=2, dilation=2, padding=1),
        ),
    ),
    Network(
        "grouped",
        lambda: rows(
            nn.Conv2d(3, 6, 3, padding=1, groups=3),
            nn.Tanh(),
            nn.Conv2d(6, 4, 3, stride=2, padding=1, groups=2),
            nn.Conv2d(4, 4, 5, padding=2, groups=4),
        ),
    ),
    Network(
        "even_kernels",
        lambda: rows(
            nn.Conv2d(3, 4, 4, stride=2, padding=1),
            nn.Tanh(),
            nn.Conv2d(4, 4, 2),
            nn.Tanh(),
            nn.Conv2d(4, 2, 6, padding=3),
        ),
    ),
    Network(
        "same",
        lambda: rows(
            nn.Conv2d(3, 4, (4, 3), padding="same"),
            nn.Tanh(),
            nn.Conv2d(4, 4, (3, 2), padding="same", dilation=(2, 3)),
            nn.Tanh(),
            nn.Conv2d(4, 2, 3, padding="valid"),
        ),
    ),
    # Padding modes of convolutions, and pads as layers; a tile at the border looks back into the image.
    Network("conv_reflect", conv_padded("reflect")),
    Network("conv_replicate", conv_padded("replicate")),
    Network("conv_circular", conv_padded("circular")),
    Network(
        "conv_circular_1d_same",
        lambda: rows(nn.Conv1d(3, 4, 4, padding="same", padding_mode="circular"), nn.Tanh(), nn.Conv1d(4, 2, 3)),
        LINE,
    ),
    Network(
        "conv_reflect_3d",
        lambda: rows(nn.Conv3d(2, 3, 3, padding=1, padding_mode="reflect"), nn.Tanh(), nn.Conv3d(3, 2, 3)),
        VOLUME,
    ),
    Network("pad_reflect", padded(3, 1, 0, 2, mode="reflect")),
    Network("pad_replicate", padded(4, 2, 1, 0, mode="replicate")),
    Network("pad_circular", padded(2, 5, 3, 1, mode="circular")),
    Network("pad_constant", padded(1, 4, 0, 11, value=1.5)),
    Network("pad_negative", padded(-2, 1, 3, -4)),
    Network(
        "pad_zero_then_pool",
        lambda: rows(nn.ZeroPad2d((0, 1, 1, 0)), nn.Conv2d(3, 4, 3), nn.ReflectionPad2d(2), nn.AvgPool2d(3, 2)),
    ),
    # Pools, with every option.
    Network("max_pool", between(lambda: nn.MaxPool2d(3, stride=2, padding=1))),
    Network("max_pool_ceil", between(lambda: nn.MaxPool2d((3, 2), stride=(2, 3), ceil_mode=True))),
    Network("max_pool_dilated", between(lambda: nn.MaxPool2d(3, stride=2, padding=1, dilation=3, ceil_mode=True))),
    Network("avg_pool", between(lambda: nn.AvgPool2d(3, stride=2, padding=1))),
    Network("avg_pool_ceil", between(lambda: nn.AvgPool2d(4, stride=3, padding=2, ceil_mode=True))),
    Network(
        "avg_pool_true_count",
        between(lambda: nn.AvgPool2d((3, 5), stride=(2, 3), padding=(1, 2), count_include_pad=False)),
    ),
    Network(
        "avg_pool_true_count_ceil",
        between(lambda: nn.AvgPool2d(3, stride=2, padding=1, ceil_mode=True, count_include_pad=False)),
    ),
    Network("avg_pool_divisor", between(lambda: nn.AvgPool2d(3, stride=1, divisor_override=4))),
    Network(
        "pools_1d",
        lambda: rows(nn.Conv1d(3, 4, 3), nn.MaxPool1d(3, 2, ceil_mode=True), nn.Conv1d(4, 4, 3), nn.AvgPool1d(2, 1, 1)),
        LINE,
    ),
    Network(
        "pools_3d",
        lambda: rows(
            nn.Conv3d(2, 3, 3, padding=1),
            nn.MaxPool3d((1, 2, 3), stride=(1, 2, 1), padding=(0, 1, 1)),
            nn.Conv3d(3, 3, 3, padding=1),
            nn.AvgPool3d(2, ceil_mode=True, count_include_pad=False),
        ),
        VOLUME,
    ),
    # Transposed convolutions.
    Network(
        "transposed",
        lambda: rows(
            nn.Conv2d(3, 4, 3, 2, 1),
            nn.Tanh(),
            nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, output_padding=1),
            nn.Tanh(),
            nn.ConvTranspose2d(4, 2, (4, 2), stride=(3, 2), padding=(1, 0), output_padding=(2, 1)),
        ),
    ),
    Network(
        "transposed_grouped_dilated",
        lambda: rows(
            nn.Conv2d(3, 4, 3),
            nn.ConvTranspose2d(4, 6, 3, groups=2, dilation=2, stride=2, padding=3, bias=False),
            nn.Tanh(),
            nn.ConvTranspose2d(6, 2, 1, stride=2),
        ),
    ),
    Network(
        "transposed_1d",
        lambda: rows(nn.Conv1d(3, 4, 3, 2), nn.Tanh(), nn.ConvTranspose1d(4, 2, 5, 3, 2, output_padding=1)),
        LINE,
    ),
    Network(
        "transposed_3d",
        lambda: rows(nn.Conv3d(2, 3, 3, 2, 1), nn.Tanh(), nn.ConvTranspose3d(3, 2, 3, 2, 1, output_padding=1)),
        VOLUME,
    ),
]
