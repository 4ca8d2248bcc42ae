"""The trunk that GMIC, 3D-GMIC and GLAM share: a narrow residual network for large images.

Sixteen channels at the first stage, where an image of 2944 x 1920 pixels is largest, and 256 at the last. Its first
pool has no padding, so its grid is not that of other residual networks: a map of h = floor((H' - 3) / 2) + 1 cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ResNet22", "group_norm"]

#: Makes a normalisation layer for a number of channels.
Norm = Callable[[int], nn.Module]


def group_norm(channels: int) -> nn.Module:
    """A group norm of 8 groups, the norm of 3D-GMIC: each slice by itself.

    >>> group_norm(16).num_groups
    8
    """
    return nn.GroupNorm(8, channels)


class PreActivated(nn.Module):
    """Norm, ReLU and 3x3 convolution, twice, and a shortcut; the first block of a stage projects what it activated.

    >>> PreActivated(16, 32, stride=2, first=True)(torch.zeros(1, 16, 9, 9)).shape
    torch.Size([1, 32, 5, 5])
    """

    def __init__(
        self, channels_in: int, channels: int, stride: int = 1, *, first: bool = False, norm: Norm = nn.BatchNorm2d
    ) -> None:
        super().__init__()
        self.bn1 = norm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn2 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.downsample = nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride, bias=False)) if first else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x))
        shortcut = x if self.downsample is None else self.downsample(y)
        y = self.conv2(F.relu(self.bn2(self.conv1(y))))
        out: Tensor = shortcut + y
        return out


class ResNet22(nn.Module):
    """The trunk: an image (N, in_channels, H, W) to a map (N, 16 x width, h, w) with a cell per 64 pixels.

    >>> ResNet22()(torch.zeros(1, 1, 256, 192)).shape
    torch.Size([1, 256, 4, 3])
    >>> [tuple(tap.shape) for tap in ResNet22(taps=(2, 3))(torch.zeros(1, 1, 256, 192))]
    [(1, 64, 16, 12), (1, 128, 8, 6), (1, 256, 4, 3)]

    Args:
        in_channels: of the image.
        width: channels of the first stage; each stage doubles them.
        norm: makes a normalisation layer for a number of channels.
        taps: stages (0 to 4) whose results are given as well, as they are, in front of the last map.
    """

    stages = 5

    def __init__(
        self, in_channels: int = 1, width: int = 16, *, norm: Norm = nn.BatchNorm2d, taps: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.first_conv = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        self.first_pool = nn.MaxPool2d(3, stride=2)
        self.layer_list = nn.ModuleList()
        channels = width
        for stage in range(self.stages):
            wide, stride = width * 2**stage, 1 if stage == 0 else 2
            self.layer_list.append(
                nn.Sequential(
                    PreActivated(channels, wide, stride, first=True, norm=norm), PreActivated(wide, wide, norm=norm)
                )
            )
            channels = wide
        self.final_bn = norm(channels)
        self.taps = tuple(taps)
        self.in_channels, self.out_channels = in_channels, channels
        #: Channels of each tapped map, in order.
        self.tap_channels = tuple(width * 2**stage for stage in self.taps)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The last map, or a tuple that ends with it where there are taps."""
        x = self.first_pool(self.first_conv(x))
        tapped = []
        for number, stage in enumerate(self.layer_list):
            x = stage(x)
            if number in self.taps:
                tapped.append(x)
        x = F.relu(self.final_bn(x))
        return (*tapped, x) if self.taps else x
