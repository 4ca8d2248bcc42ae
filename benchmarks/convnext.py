"""ConvNeXt-T as a plain module: depthwise 7x7 convolutions, and LayerNorm and Linear in channels-last order."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["convnext_tiny"]


class Block(nn.Module):
    """Depthwise 7x7, LayerNorm, four times as wide and back, a scale per channel, a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.wide = nn.Linear(channels, 4 * channels)
        self.narrow = nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), 1e-1))

    def forward(self, x: Tensor) -> Tensor:
        out = self.depthwise(x).permute(0, 2, 3, 1)
        out = self.scale * self.narrow(F.gelu(self.wide(self.norm(out))))
        result: Tensor = x + out.permute(0, 3, 1, 2)
        return result


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def convnext_tiny(in_channels: int = 3) -> nn.Sequential:
    """The trunk of ConvNeXt-T (Liu et al. 2022): 3, 3, 9 and 3 blocks of 96, 192, 384 and 768 channels.

    >>> convnext_tiny()(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 768, 2, 2])
    """
    widths, depths = (96, 192, 384, 768), (3, 3, 9, 3)
    layers: list[nn.Module] = [nn.Conv2d(in_channels, widths[0], 4, 4), ChannelNorm(widths[0], eps=1e-6)]
    layers += [Block(widths[0]) for _ in range(depths[0])]
    for (before, width), depth in zip(pairwise(widths), depths[1:], strict=True):
        layers += [ChannelNorm(before, eps=1e-6), nn.Conv2d(before, width, 2, 2)]
        layers += [Block(width) for _ in range(depth)]
    return nn.Sequential(*layers)
