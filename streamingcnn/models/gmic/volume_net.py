"""A local network for crops of several slices; what the published 3D-GMIC, whose crops are flat, does not have."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["VolumeNet"]


class VolumeNet(nn.Module):
    """A small residual network in 3-D: a crop (N, in_channels, S, H, W) to a map (N, 8 x width, S, H / 32, W / 32).

    >>> VolumeNet(width=8)(torch.zeros(2, 3, 5, 64, 64)).shape
    torch.Size([2, 64, 5, 2, 2])

    It halves height and width only: a crop is a few slices thick. Take it with
    ``GMIC3D(crop_slices=5, local=VolumeNet())``.
    """

    def __init__(self, in_channels: int = 3, width: int = 32) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, width, (3, 7, 7), (1, 2, 2), padding=(1, 3, 3), bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), padding=(0, 1, 1))
        stages, channels = [], width
        for stage in range(4):
            stages.append(_Block(channels, width * 2**stage, stride=1 if stage == 0 else 2))
            channels = width * 2**stage
        self.layers = nn.Sequential(*stages)
        self.out_channels = channels
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.layers(self.maxpool(self.relu(self.bn1(self.conv1(x)))))
        return made


class _Block(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        step = (1, stride, stride)
        self.conv1 = nn.Conv3d(channels_in, channels, 3, step, padding=1, bias=False)
        self.bn1 = nn.BatchNorm3d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm3d(channels)
        same = stride == 1 and channels_in == channels
        self.downsample = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv3d(channels_in, channels, 1, step, bias=False), nn.BatchNorm3d(channels))
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out: Tensor = self.relu(y + self.downsample(x))
        return out
