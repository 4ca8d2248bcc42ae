"""The ways that are compared: what each trains, how it answers, and where it says a lesion is.

GMIC            full resolution, its trunk streamed; and the same on images of a part of the resolution
CAM             the trunk cut off at stride 16, a linear layer, the mean of the highest cells
GLAM            three scales of the trunk; then crops of them through a local network with a decoder
U-Net           learns from masks, not from labels: an upper bound
ResNet-18, -34  on the full image, and on images of a part of the resolution
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamingcnn import stream
from streamingcnn.models import GLAM, GMIC
from streamingcnn.models.gmic import GLAMLoss, GMICLoss, PyramidLocal, ResNet22
from streamingcnn.models.gmic.pooling import count_of, top_mean
from streamingcnn.models.resnet import BasicBlock, ResNet

Settings = dict[str, Any]
#: Blocks of each stage of a ResNet, by its number of layers.
DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


@dataclass(frozen=True)
class Phase:
    """So many epochs with a loss and a rate, while a part of the network stays as it is."""

    epochs: int
    lr: float
    loss: Callable[[Any, Tensor], Tensor]
    still: nn.Module | None = None


@dataclass(frozen=True)
class Way:
    """A network, how it is trained, its answer (N, 2) as probabilities, and its maps by name, (N, 2, h, w), 0 to 1."""

    net: nn.Module
    phases: list[Phase]
    answer: Callable[[Any], Tensor]
    maps: Callable[[Any], dict[str, Tensor]]


def warmed(settings: Settings, loss: Callable[[float, float], Callable[[Any, Tensor], Tensor]]) -> list[Phase]:
    """First with the auxiliary loss on the mean of all cells, which finds what to look for, then without it.

    The mean of a map tells every cell from the first step on, and is content with a map that is high everywhere; the
    highest cells alone, with a map that is asked to be small, narrow it down. ``loss`` makes one of ``beta`` and
    ``auxiliary``.
    """
    return [
        Phase(settings["warm_epochs"], settings["lr"], loss(0.0, settings["auxiliary"])),
        Phase(settings["epochs"], settings["lr"] / 2, loss(settings["beta"], 0.0)),
    ]


def gmic(settings: Settings, memory: str, *, factor: int = 1) -> Way:
    """GMIC with its trunk streamed; ``factor`` is how many times smaller the images are, and with them the crops."""
    side = settings["crop"] // factor
    net = GMIC(
        crop_shape=(side, side),
        crops=settings["crops"],
        percent_t=settings["percent_t"],
        local=ResNet(BasicBlock, DEPTHS[18], width=settings["local_width"]),
    )
    if memory:
        stream(net, "ds_net", memory=memory)

    def loss(beta: float, auxiliary: float) -> GMICLoss:
        return GMICLoss(beta, "mean", auxiliary, mean_scale=settings["mean_scale"])

    phases = warmed(settings, loss)
    return Way(net, phases, lambda found: found.prediction, lambda found: {"GMIC's map": found.saliency})


class HighestCells(nn.Module):
    """A logit per class and cell, and the mean of the highest ones: (N, C, h, w) to both."""

    def __init__(self, channels: int, share: float) -> None:
        super().__init__()
        self.logits, self.share = nn.Conv2d(channels, 2, 1), share

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.logits(features)
        return logits, top_mean(logits, count_of(logits[0, 0].numel(), self.share))


def cam(settings: Settings, memory: str) -> Way:
    """Class activation maps at stride 16 of the same trunk."""
    whole = ResNet22()
    channels = 64
    trunk = nn.Sequential(
        whole.first_conv, whole.first_pool, *whole.layer_list[:3], nn.BatchNorm2d(channels), nn.ReLU()
    )
    net = nn.Sequential(trunk, HighestCells(channels, settings["percent_t"]))
    if memory:
        stream(net, "0", memory=memory)

    def loss(beta: float, auxiliary: float) -> Callable[[tuple[Tensor, Tensor], Tensor], Tensor]:
        def of(found: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
            cells, answer = found
            mean = settings["mean_scale"] * cells.flatten(2).mean(2)
            return (
                2 * F.binary_cross_entropy_with_logits(answer, labels)
                + 2 * auxiliary * F.binary_cross_entropy_with_logits(mean, labels)
                + beta * torch.sigmoid(cells).mean()
            )

        return of

    phases = warmed(settings, loss)
    return Way(net, phases, lambda found: torch.sigmoid(found[1]), lambda found: {"CAM": torch.sigmoid(found[0])})


def glam(settings: Settings, memory: str, *, local: str = "pyramid") -> Way:
    """GLAM with its trunk streamed, and a local network of the same encoder: a pyramid, or stride 4 throughout."""
    width, depths = settings["local_width"], settings["local_depths"]
    if local == "pyramid":
        chosen: nn.Module = PyramidLocal(ResNet(BasicBlock, depths, width=width), channels=2 * width)
    else:
        chosen = ResNet(BasicBlock, depths, width=width, strides=[1] * len(depths))
    net = GLAM(
        crop_shape=(settings["crop"], settings["crop"]),
        crops=settings["crops"],
        percent_t=settings["percent_t"],
        local_t=settings["local_t"],
        trunk=ResNet22(taps=(2, 3)),
        local=chosen,
    )
    if memory:
        stream(net, "global_network.downsampling_branch", memory=memory)

    def loss(beta: float, auxiliary: float) -> GLAMLoss:
        return GLAMLoss(beta, "mean", auxiliary, mean_scale=settings["mean_scale"])

    # First the scales of the trunk, then the local network on crops that the trunk chose, with the trunk as it is.
    scales = [replace(phase, still=net.detection_network) for phase in warmed(settings, loss)]
    crops = [replace(phase, still=net.global_network) for phase in warmed({**settings, **settings["local"]}, loss)]
    return Way(
        net,
        [*scales, *crops],
        lambda found: found.prediction,
        lambda found: {"GLAM global": found.global_map, "GLAM": net.segmentation(found)},
    )


class FromMasks(nn.Module):
    """A network that is trained with masks: they come as further channels, so that they are turned with the image."""

    def __init__(self, width: int) -> None:
        super().__init__()
        encoder = ResNet(BasicBlock, DEPTHS[18], width=width, in_channels=1)
        self.net = nn.Sequential(PyramidLocal(encoder, channels=2 * width), nn.Conv2d(2 * width, 2, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and masks at stride 4."""
        logits = self.net(x[:, :1])
        return logits, F.adaptive_avg_pool2d(x[:, 1:], logits.shape[2:])


def unet(settings: Settings) -> Way:
    """A U-Net: a ResNet-18 encoder, a decoder to stride 4, trained by cross-entropy and soft Dice of each class."""

    def loss(found: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
        logits, masks = found
        sure = torch.sigmoid(logits)
        both = 2 * (sure * masks).sum((0, 2, 3)) + 1
        overlap = both / ((sure + masks).sum((0, 2, 3)) + 1)
        return F.binary_cross_entropy_with_logits(logits, masks) + (1 - overlap).mean()

    return Way(
        FromMasks(settings["width"]),
        [Phase(settings["epochs"], settings["lr"], loss)],
        lambda found: torch.sigmoid(found[0].amax((2, 3))),
        lambda found: {"U-Net": torch.sigmoid(found[0])},
    )


def resnet(settings: Settings, *, layers: int) -> Way:
    """A ResNet-18 or -34 on the whole image."""
    net = ResNet(BasicBlock, DEPTHS[layers], width=settings["width"], in_channels=1, num_classes=2)
    return Way(
        net,
        [
            Phase(
                settings["epochs"],
                settings["lr"],
                lambda found, labels: F.binary_cross_entropy_with_logits(found, labels),
            )
        ],
        torch.sigmoid,
        lambda found: {},
    )
