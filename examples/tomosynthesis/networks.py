"""The three networks that are compared; each looks at a volume (N, 1, D, H, W) and gives a probability per class.

gmic3d      3D-GMIC: slices through the trunk, windows and highest cells over the whole volume
maximum     GMIC with the same trunk and local network, on the maximum over the slices: the volume as one image
slices      a ResNet on every slice, trained and judged by the slice with the highest answer
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamingcnn import stream
from streamingcnn.models import GMIC, GMIC3D, ResNet
from streamingcnn.models.gmic import GMICLoss
from streamingcnn.models.resnet import BasicBlock

NAMES = ("gmic3d", "maximum", "slices")
TITLES = {"gmic3d": "3D-GMIC", "maximum": "GMIC on the maximum projection", "slices": "ResNet per slice"}


def trunk(width: int) -> ResNet:
    """A trunk with a cell per 16 pixels."""
    return ResNet(BasicBlock, (1, 1, 1), width=width, in_channels=1)


def make(name: str, settings: dict[str, Any]) -> nn.Module:
    """A network by its name, of the settings of the configuration; channels last, which one thread is faster in."""
    net = _made(name, settings)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net


def _made(name: str, settings: dict[str, Any]) -> nn.Module:
    width, side = settings["width"], settings["crop"]
    options = {"crop_shape": (side, side), "crops": settings["crops"]}
    if name == "slices":
        return PerSlice(ResNet(BasicBlock, (1, 1, 1, 1), width=width, in_channels=1, num_classes=2))
    local = ResNet(BasicBlock, (1, 1, 1), width=width)
    if name == "maximum":
        return OfMaximum(_even(GMIC(percent_t=settings["share_2d"], trunk=trunk(width), local=local, **options)))
    model = GMIC3D(
        percent_t=settings["share_3d"],
        activation="sigmoid",
        apart=settings["apart"],
        slices_at_once=settings["slices_at_once"],
        trunk=trunk(width),
        local=local,
        **options,
    )
    # With a budget, slices and their tiles are streamed; the batch norms then look at all of them all the same.
    return stream(_even(model), "ds_net", memory=settings["memory"]) if settings["memory"] else _even(model)


def _even(model: nn.Module) -> nn.Module:
    """A saliency map of one half everywhere, to begin with: which cells are highest is not chance."""
    nn.init.zeros_(model.get_parameter("left_postprocess_net.gn_conv_last.weight"))
    return model


def loss_of(name: str, settings: dict[str, Any], *, last: bool = False) -> Callable[[Any, Tensor], Tensor]:
    """What a network is trained with: GMIC's loss, or a cross-entropy per class of the highest slice.

    The auxiliary term, the cross-entropy of the mean of all cells, finds what to look for, and is content with a map
    that is high everywhere: in the ``last`` epochs it is left out, and the map is asked to be small instead.
    """
    if name == "slices":
        return lambda logits, labels: 2 * F.binary_cross_entropy_with_logits(logits, labels)
    beta, auxiliary = (settings["beta"], 0.0) if last else (0.0, settings["auxiliary"])
    return GMICLoss(beta, "mean", auxiliary, mean_scale=settings["mean_scale"])


def probabilities(result: Any) -> Tensor:
    """(N, classes), of what a network gave."""
    return torch.sigmoid(result) if isinstance(result, Tensor) else result.prediction


class OfMaximum(nn.Module):
    """A network for images, given the maximum over the slices of a volume."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, volume: Tensor) -> Any:
        return self.net(volume.amax(2))


class PerSlice(nn.Module):
    """A network for images on each slice; the volume has the highest answer of each class."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, volume: Tensor) -> Tensor:
        slices = volume.transpose(1, 2).flatten(0, 1)
        made: Tensor = self.net(slices).unflatten(0, (len(volume), -1)).amax(1)
        return made
