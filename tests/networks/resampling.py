"""Maps of another size: interpolation, and space moved into channels and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import nn

from tests.blocks import Net

from .network import LINE, VOLUME, Network, between, rows


def resized(**how: Any) -> Callable[[], nn.Module]:
    return between(lambda: Net(lambda net, x: F.interpolate(x, **how)))


ROWS = [
    # Interpolation: ATen's own arithmetic, at scales that are no whole numbers too.
    Network("nearest", resized(scale_factor=2)),
    Network("nearest_fraction", resized(scale_factor=(1.7, 0.6))),
    Network("nearest_size", resized(size=(53, 31))),
    Network("nearest_exact", resized(size=(50, 22), mode="nearest-exact")),
    Network("nearest_exact_fraction", resized(scale_factor=1.3, mode="nearest-exact")),
    Network("bilinear", resized(scale_factor=2, mode="bilinear")),
    Network("bilinear_fraction", resized(scale_factor=(1.7, 0.6), mode="bilinear")),
    Network("bilinear_recomputed", resized(scale_factor=1.37, mode="bilinear", recompute_scale_factor=True)),
    Network("bilinear_size", resized(size=(64, 20), mode="bilinear")),
    Network("bilinear_corners", resized(scale_factor=1.5, mode="bilinear", align_corners=True)),
    Network("bilinear_corners_size", resized(size=(19, 71), mode="bilinear", align_corners=True)),
    Network("bicubic", resized(scale_factor=1.6, mode="bicubic")),
    Network("bicubic_corners", resized(size=(51, 30), mode="bicubic", align_corners=True)),
    Network(
        "linear_1d",
        lambda: rows(nn.Conv1d(3, 4, 3), nn.Upsample(scale_factor=2.5, mode="linear"), nn.Conv1d(4, 2, 3)),
        LINE,
    ),
    Network(
        "trilinear",
        lambda: rows(
            nn.Conv3d(2, 3, 3, 2, 1),
            nn.Upsample(scale_factor=(2, 1.5, 3), mode="trilinear"),
            nn.Conv3d(3, 2, 3, padding=1),
            nn.Upsample(size=(9, 14, 11), mode="trilinear", align_corners=True),
        ),
        VOLUME,
    ),
    Network(
        "nearest_3d",
        lambda: rows(nn.Conv3d(2, 3, 3, 2), nn.Upsample(scale_factor=2), nn.Conv3d(3, 2, 3)),
        VOLUME,
    ),
    # Space into channels and back.
    Network("pixel_shuffle", between(lambda: rows(nn.Conv2d(4, 27, 1), nn.PixelShuffle(3)), channels=3)),
    Network("pixel_unshuffle", between(lambda: nn.PixelUnshuffle(2), channels=16), (3, 38, 46)),
]
