"""The building blocks of the table in networks/, written as anyone writes them, with nothing of tiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:

    class Part(nn.Parameter):
        """What a :class:`Net` was given under a name: a parameter, or a module that makes a tensor."""

        def __call__(self, *inputs: Any, **named: Any) -> Tensor: ...


class Net(nn.Module):
    """A network whose forward is a function of its own modules: Net(lambda net, x: net.a(x), a=...)."""

    def __init__(self, compute: Callable[..., Any], **modules: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.compute = compute
        for name, module in modules.items():
            setattr(self, name, module)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Part: ...

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.compute(self, *inputs, **named)


class Residual(nn.Module):
    """ResNet's basic block, its in-place ReLU and in-place addition included."""

    def __init__(self, channels: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += identity
        made: Tensor = self.relu(out)
        return made


class Bottleneck(nn.Module):
    """ResNeXt's bottleneck: 1x1, grouped 3x3, 1x1."""

    def __init__(self, channels: int, width: int, groups: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, groups=groups, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


class Dense(nn.Module):
    """DenseNet's block: every layer sees the results of all before it."""

    def __init__(self, channels: int, growth: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(channels + i * growth, growth, 3, padding=1) for i in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(torch.tanh(layer(torch.cat(features, 1))))
        return torch.cat(features, 1)


class Inception(nn.Module):
    """Four branches of unequal receptive fields, the 1x7 and 7x1 pair and a pool among them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(channels, 2, 1)
        self.three = nn.Sequential(nn.Conv2d(channels, 2, 1), nn.ReLU(), nn.Conv2d(2, 3, 3, padding=1))
        self.seven = nn.Sequential(
            nn.Conv2d(channels, 2, (1, 7), padding=(0, 3)), nn.Conv2d(2, 2, (7, 1), padding=(3, 0))
        )
        self.pool = nn.Sequential(nn.AvgPool2d(3, 1, padding=1), nn.Conv2d(channels, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(torch.cat([self.one(x), self.three(x), self.seven(x), self.pool(x)], 1))


class ConvNeXt(nn.Module):
    """Depthwise 7x7, then LayerNorm and two Linears in channels-last order, a scale, a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.wide = nn.Linear(channels, 4 * channels)
        self.narrow = nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        out = self.depthwise(x).permute(0, 2, 3, 1)
        out = self.scale * self.narrow(F.gelu(self.wide(self.norm(out))))
        made: Tensor = x + out.permute(0, 3, 1, 2)
        return made


class SqueezeExcite(nn.Module):
    """A gate per channel, from the mean over the whole image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.down = nn.Conv2d(channels, 2, 1)
        self.up = nn.Conv2d(2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.silu(self.down(self.pool(x)))))


class InvertedResidual(nn.Module):
    """MobileNet's block with a squeeze-excite inside."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 8, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.Hardswish(),
            nn.Conv2d(8, 8, 5, padding=2, groups=8, bias=False),
            nn.BatchNorm2d(8),
            SqueezeExcite(8),
            nn.Conv2d(8, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = x + self.body(x)
        return made


class EncoderDecoder(nn.Module):
    """A U-Net of two levels in 1-D, 2-D or 3-D; the skips are cropped to fit, as with valid convolutions."""

    def __init__(self, dims: int, channels: int = 1, norm: bool = False, padding: int = 1) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        up = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
        batch_norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]

        def level(inputs: int, outputs: int) -> nn.Module:
            between: nn.Module = batch_norm(outputs) if norm else nn.Identity()
            return nn.Sequential(
                conv(inputs, outputs, 3, padding=padding),
                between,
                nn.LeakyReLU(0.1),
                conv(outputs, outputs, 3, padding=padding),
                nn.LeakyReLU(0.1),
            )

        self.enter, self.deep, self.bottom = level(channels, 3), level(3, 4), level(4, 5)
        self.pool = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[dims - 1](2)
        self.up1, self.merge1 = up(5, 4, 2, 2), level(8, 4)
        self.up0, self.merge0 = up(4, 3, 2, 2), level(6, 3)
        self.out = conv(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip0 = self.enter(x)
        skip1 = self.deep(self.pool(skip0))
        x = self.bottom(self.pool(skip1))
        x = self.merge1(self._join(skip1, self.up1(x)))
        made: Tensor = self.out(self.merge0(self._join(skip0, self.up0(x))))
        return made

    @staticmethod
    def _join(skip: Tensor, x: Tensor) -> Tensor:
        for axis in range(2, x.dim()):
            skip = skip.narrow(axis, (skip.shape[axis] - x.shape[axis]) // 2, x.shape[axis])
        return torch.cat([skip, x], 1)


class AttentionGate(nn.Module):
    """Attention U-Net's gate: a coarse map, resampled, weighs a fine one."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Conv2d(1, 4, 3, padding=1)
        self.coarse = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.weigh = nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = torch.tanh(self.fine(x))
        coarse = F.interpolate(self.coarse(fine), size=fine.shape[2:], mode="bilinear", align_corners=False)
        return fine * torch.sigmoid(self.weigh(F.relu(fine + coarse)))


class ShuffleUnit(nn.Module):
    """ShuffleNet's unit: two halves of the channels, one convolved, then interleaved through a view."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            nn.Conv2d(half, half, 1),
            nn.ReLU(),
            nn.Conv2d(half, half, 3, padding=1, groups=half),
            nn.Conv2d(half, half, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        x = torch.cat([left, self.branch(right)], 1)
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        return x.view(batch, channels, height, width)


class StandardisedConv(nn.Conv2d):
    """A convolution whose weight is standardised in every forward."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        mean = weight.mean((1, 2, 3), keepdim=True)
        weight = (weight - mean) / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class StochasticDepth(nn.Module):
    """A residual branch that is dropped for whole samples, and scaled up where it is kept."""

    def __init__(self, branch: nn.Module, p: float) -> None:
        super().__init__()
        self.branch = branch
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        out = self.branch(x)
        if not self.training or self.p == 0:
            kept: Tensor = x + out
            return kept
        keep = 1 - self.p
        shape = (x.shape[0],) + (1,) * (x.dim() - 1)
        mask = torch.empty(shape, dtype=x.dtype, device=x.device).bernoulli_(keep).div_(keep)
        made: Tensor = x + out * mask
        return made
