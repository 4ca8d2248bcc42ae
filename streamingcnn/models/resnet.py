"""ResNet trunks, with or without their head, under torchvision's parameter names.

A streamed network is mostly used as a trunk: its feature map feeds a head of the user's own. So the trunk is
the default here and the classifier is asked for. Names of parameters and buffers are torchvision's, and a
`state_dict` from there loads (into a trunk with `strict=False`, which leaves `fc` aside).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

__all__ = ["BasicBlock", "Bottleneck", "ResNet", "resnet18", "resnet34", "resnet50"]

#: Makes a normalisation layer for a number of channels.
Norm = Callable[[int], nn.Module]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; the block of ResNet-18 and ResNet-34.

    >>> BasicBlock(16, 32, stride=2)(torch.zeros(1, 16, 8, 8)).shape
    torch.Size([1, 32, 4, 4])
    """

    expansion = 1

    def __init__(self, channels_in: int, width: int, stride: int = 1, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, width, 3, stride, padding=1, bias=False)
        self.bn1 = norm(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = norm(width)
        self.downsample = _shortcut(channels_in, width, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(y)
        return out


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolutions and a shortcut; the block of ResNet-50.

    >>> Bottleneck(64, 64)(torch.zeros(1, 64, 8, 8)).shape
    torch.Size([1, 256, 8, 8])
    """

    expansion = 4

    def __init__(self, channels_in: int, width: int, stride: int = 1, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        channels_out = width * self.expansion
        self.conv1 = nn.Conv2d(channels_in, width, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, channels_out, 1, bias=False)
        self.bn3 = norm(channels_out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(channels_in, channels_out, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(y)
        return out


class ResNet(nn.Module):
    """A residual network: the last feature map, or class scores where `num_classes` is given.

    >>> trunk = ResNet(BasicBlock, depths=(2, 2, 2, 2))
    >>> trunk(torch.zeros(1, 3, 128, 96)).shape
    torch.Size([1, 512, 4, 3])
    >>> ResNet(BasicBlock, depths=(1, 1), width=8, num_classes=5)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 5])

    `depths` are the blocks of each stage; every stage after the first halves the map (or what `strides`, one number
    per stage, says) and doubles the channels, which start at `width`. Input: (N, in_channels, H, W), any H and W. The
    trunk's result has 1 / 2^(stages + 1) of the input's size, rounded up. `norm` makes a normalisation layer for a
    number of channels.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        *,
        in_channels: int = 3,
        width: int = 64,
        num_classes: int | None = None,
        norm: Norm = nn.BatchNorm2d,
        strides: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self._stages = [f"layer{number}" for number in range(1, len(depths) + 1)]
        channels = width
        strides = strides or [1] + [2] * (len(depths) - 1)
        stage_channels = []
        for index, (name, depth, first) in enumerate(zip(self._stages, depths, strides, strict=True)):
            blocks = []
            for number in range(depth):
                stride = first if number == 0 else 1
                blocks.append(block(channels, width * 2**index, stride, norm))
                channels = width * 2**index * block.expansion
            self.add_module(name, nn.Sequential(*blocks))
            stage_channels.append(channels)
        self.out_channels = channels
        #: Channels of the map that each stage gives.
        self.stage_channels = tuple(stage_channels)
        self.avgpool = nn.AdaptiveAvgPool2d(1) if num_classes is not None else None
        self.fc = nn.Linear(channels, num_classes) if num_classes is not None else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stage_maps(self, x: Tensor) -> list[Tensor]:
        """The map of every stage, the finest first; what a decoder reads."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        maps = []
        for name in self._stages:
            x = self.get_submodule(name)(x)
            maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for name in self._stages:
            x = self.get_submodule(name)(x)
        if self.avgpool is None or self.fc is None:
            return x
        scores: Tensor = self.fc(self.avgpool(x).flatten(1))
        return scores


def resnet18(*, in_channels: int = 3, num_classes: int | None = None, norm: Norm = nn.BatchNorm2d) -> ResNet:
    """ResNet-18, a trunk unless `num_classes` is given; see `ResNet`.

    >>> resnet18()(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 512, 2, 2])
    """
    return ResNet(BasicBlock, (2, 2, 2, 2), in_channels=in_channels, num_classes=num_classes, norm=norm)


def resnet34(*, in_channels: int = 3, num_classes: int | None = None, norm: Norm = nn.BatchNorm2d) -> ResNet:
    """ResNet-34, a trunk unless `num_classes` is given; see `ResNet`.

    >>> resnet34(num_classes=2)(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 2])
    """
    return ResNet(BasicBlock, (3, 4, 6, 3), in_channels=in_channels, num_classes=num_classes, norm=norm)


def resnet50(*, in_channels: int = 3, num_classes: int | None = None, norm: Norm = nn.BatchNorm2d) -> ResNet:
    """ResNet-50 with the stride in its 3x3 convolutions, a trunk unless `num_classes` is given; see `ResNet`.

    >>> resnet50(in_channels=1)(torch.zeros(1, 1, 64, 64)).shape
    torch.Size([1, 2048, 2, 2])
    """
    return ResNet(Bottleneck, (3, 4, 6, 3), in_channels=in_channels, num_classes=num_classes, norm=norm)


def _shortcut(channels_in: int, channels_out: int, stride: int, norm: Norm) -> nn.Sequential | None:
    if stride == 1 and channels_in == channels_out:
        return None
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 1, stride, bias=False),
        norm(channels_out),
    )
