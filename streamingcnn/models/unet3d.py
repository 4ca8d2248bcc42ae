"""A 3-D U-Net of the plain kind: what most volumes are segmented with, and what runs out of memory first.

             x                                  logits
             |                                    ^
level 0   encoder.0 --------- skip ---------> decoder.0       2 convolutions 3x3x3 each
             | max-pool 2            up.0 (x2)   ^
level 1   encoder.1 --------- skip ---------> decoder.1
             | pool.1                up.1 (x2)   ^
level 2   encoder.2 -----------------------------+
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["DiceCrossEntropy", "UNet3D"]

_NORMS = ("none", "batch", "instance", "group")


class UNet3D(nn.Module):
    """Encoder and decoder over a volume with skips between them: one logit map per output channel.

    >>> net = UNet3D(in_channels=1, out_channels=2, levels=3, filters=4)
    >>> net(torch.zeros(1, 1, 16, 20, 24)).shape
    torch.Size([1, 2, 16, 20, 24])

    With a target (N, D, H, W) of classes it gives the `loss` between logits and target in place of the logits;
    streamed, these then never exist as a whole:

    >>> net = UNet3D(1, 3, levels=2, filters=4, loss=DiceCrossEntropy(dice=0.2))
    >>> net(torch.zeros(1, 1, 8, 8, 8), torch.zeros(1, 8, 8, 8, dtype=torch.long)).shape
    torch.Size([])

    `levels` counts the resolutions (3 levels: full, half, quarter), `filters` the channels of the first,
    doubled at each next, or one number for each. Every level has two 3x3x3 convolutions, each followed by the
    normalisation that `norm` names ("none", "batch", "instance", or "group" with 8 channels to a group),
    LeakyReLU(0.1), and `dropout` of that share of the values where it is given; never of the first convolution's.
    The network of Hou et al. (2019, Mesh-TensorFlow) is ``UNet3D(1, 3, norm="batch", dropout=0.5,
    loss=DiceCrossEntropy([1, 8, 16]))``.
    Input: (N, in_channels, D, H, W), each extent a multiple of 2^(levels - 1); a ValueError says otherwise
    what to pad to.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        *,
        levels: int = 4,
        filters: int | Sequence[int] = 32,
        norm: str = "none",
        dropout: float = 0.0,
        loss: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if levels < 1:
            raise ValueError(f"levels={levels}: a U-Net has at least one level")
        if norm not in _NORMS:
            raise ValueError(f"norm={norm!r}: must be one of {', '.join(map(repr, _NORMS))}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout}: a share of the values, from 0 to below 1")
        widths = [filters * 2**level for level in range(levels)] if isinstance(filters, int) else list(filters)
        if len(widths) != levels:
            raise ValueError(f"filters={filters}: {levels} levels need {levels} numbers, or one for the first level")
        self.encoder = nn.ModuleList(
            _double_conv(before, width, norm, (dropout if level else 0.0, dropout))
            for level, (before, width) in enumerate(pairwise([in_channels, *widths]))
        )
        self.pool = nn.ModuleList(nn.MaxPool3d(2) for _ in widths[1:])
        self.up = nn.ModuleList(nn.ConvTranspose3d(below, width, 2, stride=2) for width, below in pairwise(widths))
        self.drop = nn.Dropout(dropout) if dropout else nn.Identity()
        self.decoder = nn.ModuleList(_double_conv(2 * width, width, norm, (dropout, dropout)) for width in widths[:-1])
        self.head = nn.Conv3d(widths[0], out_channels, 1)
        self.loss = loss

    def forward(self, x: Tensor, target: Tensor | None = None) -> Tensor:
        if target is not None and self.loss is None:
            raise ValueError("a target was given, but this UNet3D has no loss; make it with loss=DiceCrossEntropy()")
        step = 2 ** (len(self.encoder) - 1)
        if any(extent % step for extent in x.shape[2:]):
            given, needed = tuple(x.shape[2:]), tuple(-(-extent // step) * step for extent in x.shape[2:])
            raise ValueError(
                f"UNet3D with {len(self.encoder)} levels needs extents that are multiples of {step}; "
                f"got {given}; pad the volume to {needed}"
            )
        skips = []
        for level, block in enumerate(self.encoder):
            x = block(self.pool[level - 1](x) if level else x)
            skips.append(x)
        for level in reversed(range(len(self.decoder))):
            x = torch.cat([skips[level], self.drop(self.up[level](x))], dim=1)
            x = self.decoder[level](x)
        result: Tensor = self.head(x)
        if target is not None and self.loss is not None:
            result = self.loss(result, target)
        return result


class DiceCrossEntropy(nn.Module):
    """Soft Dice and cross-entropy of classes, weighted: what volumes with small structures are trained with.

    >>> loss = DiceCrossEntropy(weight=[1.0, 4.0], dice=0.2)
    >>> loss(torch.zeros(1, 2, 4, 4, 4), torch.zeros(1, 4, 4, 4, dtype=torch.long)).shape
    torch.Size([])

    The result is ``dice x (1 - mean Dice of the classes) + (1 - dice) x cross-entropy``; Dice sums over space and
    batch, and `weight` (one number per class) is the cross-entropy's. Input: logits (N, C, *space), target
    (N, *space) of class indices.
    """

    weight: Tensor | None

    def __init__(self, weight: Sequence[float] | None = None, *, dice: float = 0.2, smooth: float = 1e-5) -> None:
        super().__init__()
        if not 0 <= dice <= 1:
            raise ValueError(f"dice={dice}: a share, from 0 (cross-entropy alone) to 1 (Dice alone)")
        self.dice, self.smooth = dice, smooth
        self.register_buffer("weight", None if weight is None else torch.tensor([float(w) for w in weight]))

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        p = logits.softmax(1)
        g = nn.functional.one_hot(target, logits.shape[1]).movedim(-1, 1).to(p.dtype)
        over = [0, *range(2, p.dim())]
        overlap = (2 * (p * g).sum(over) + self.smooth) / (p.sum(over) + g.sum(over) + self.smooth)
        entropy = nn.functional.cross_entropy(logits, target, self.weight)
        return self.dice * (1 - overlap.mean()) + (1 - self.dice) * entropy


def _double_conv(channels_in: int, channels_out: int, norm: str, dropout: tuple[float, float]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels, dropped in zip((channels_in, channels_out), dropout, strict=True):
        layers.append(nn.Conv3d(channels, channels_out, 3, padding=1))
        layers.extend(_norm(norm, channels_out))
        layers.append(nn.LeakyReLU(0.1, inplace=True))
        layers.extend([nn.Dropout(dropped)] if dropped else [])
    return nn.Sequential(*layers)


def _norm(name: str, channels: int) -> list[nn.Module]:
    if name == "batch":
        return [nn.BatchNorm3d(channels)]
    if name == "instance":
        return [nn.InstanceNorm3d(channels, affine=True)]
    if name == "group":
        return [nn.GroupNorm(max(1, channels // 8), channels)]
    return []
