"""Noise: dropout of pixels, of channels, of whole branches."""

from __future__ import annotations

from torch import nn

from streamingcnn.models import UNet3D
from tests.blocks import StochasticDepth

from .network import VOLUME, Network, between, rows

ROWS = [
    # Noise.
    Network(
        "stochastic_depth",
        lambda: rows(
            nn.Conv2d(3, 4, 3, padding=1),
            StochasticDepth(nn.Conv2d(4, 4, 3, padding=1), 0.4),
            nn.Conv2d(4, 2, 3),
        ),
    ),
    Network(
        "dropout",
        between(lambda: rows(nn.Dropout(0.3), nn.Softplus(), nn.Dropout(0.6, inplace=True))),
    ),
    Network(
        "dropout_3d",
        lambda: rows(nn.Conv3d(2, 3, 3, padding=1), nn.Dropout(0.5), nn.Conv3d(3, 2, 3)),
        VOLUME,
    ),
    Network(
        "unet3d_dropout",
        lambda: UNet3D(2, 3, levels=2, filters=2, norm="batch", dropout=0.5),
        (2, 16, 18, 12),
    ),
    Network("channel_dropout", between(lambda: nn.Dropout2d(0.4))),
    Network("dropout_eval", between(lambda: nn.Dropout(0.5)), train=False),
]
