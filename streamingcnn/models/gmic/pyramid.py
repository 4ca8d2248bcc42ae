"""A local network for GLAM that ends at stride 4 like the published one, at a small part of its cost.

The published one keeps all four stages of a ResNet-34 at stride 4. Here they halve the map as usual, and a decoder of
few channels comes back up:

    stage  1/4   1/8   1/16  1/32          each stage: 1x1 convolution to 64 channels,
             |     |     |     |           sum with the coarser one, doubled; at 1/4 one 3x3 convolution
    map    1/4 <- + <--- + <-- +
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from streamingcnn.models.resnet import ResNet, resnet34

__all__ = ["PyramidLocal"]


class PyramidLocal(nn.Module):
    """A residual network with a decoder: crops (N, 3, H, W) to a map (N, channels, H / 4, W / 4).

    >>> PyramidLocal()(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 64, 16, 16])

    Take it with ``GLAM(local=PyramidLocal())``.
    """

    def __init__(self, encoder: ResNet | None = None, channels: int = 64) -> None:
        super().__init__()
        self.encoder = encoder or resnet34()
        wide = self.encoder.stage_channels
        self.lateral = nn.ModuleList(nn.Conv2d(each, channels, 1) for each in wide)
        self.smooth = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.out_channels = channels

    def forward(self, x: Tensor) -> Tensor:
        maps = self.encoder.stage_maps(x)
        made = self.lateral[-1](maps[-1])
        for lateral, each in zip(reversed(self.lateral[:-1]), reversed(maps[:-1]), strict=True):
            made = lateral(each) + F.interpolate(made, size=each.shape[2:], mode="nearest")
        return F.relu(self.norm(self.smooth(made)), inplace=True)
