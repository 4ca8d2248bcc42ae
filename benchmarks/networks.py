"""The networks that are measured, and the three ways to run each: plain, checkpointed, streamed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.convnext import convnext_tiny
from benchmarks.peers.wrapped import TILE, lightstream
from streamingcnn import StreamingModule
from streamingcnn.models import GMIC3D, ResNet, UNet3D, resnet18, resnet34, resnet50
from streamingcnn.models.gmic.depth import by_slices

__all__ = ["NETWORKS", "PEERS", "WAYS", "prepare"]


def _monai(name: str, *args: Any, **options: Any) -> Callable[[], nn.Module]:
    """A network of MONAI's; the library is there for the tests and takes seconds to import."""

    def build() -> nn.Module:
        import monai.networks.nets

        return cast(nn.Module, getattr(monai.networks.nets, name)(*args, **options)).eval()

    return build


class Slices(nn.Module):
    """A 2-D trunk on every slice of a volume (N, C, D, H, W); plainly it holds the activations of all of them."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, volume: Tensor) -> Tensor:
        return by_slices(self.trunk, volume, at_once=None)


#: Every normalisation is frozen (`eval`), so that all ways compute the same function, unless the name says "train"
#: or it knows no such state (instance and group norm).
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: resnet18().eval(),
    "resnet34": lambda: resnet34().eval(),
    "resnet50": lambda: resnet50().eval(),
    "resnet18 train": lambda: resnet18().train(),
    "resnet34 mean": lambda: nn.Sequential(resnet34().eval(), nn.AdaptiveAvgPool2d(1)),
    "convnext-t": lambda: convnext_tiny().eval(),
    "densenet121": _monai("DenseNet121", spatial_dims=2, in_channels=3, out_channels=2),
    "dynunet": _monai(
        "DynUNet", 3, 1, 3, kernel_size=[3] * 4, strides=[1, 2, 2, 2], upsample_kernel_size=[2] * 3,
        filters=[16, 32, 64, 128],
    ),
    "segresnet": _monai("SegResNet", spatial_dims=3, init_filters=8, in_channels=1, out_channels=3),
    "unet2d": _monai("BasicUNet", 2, 3, 2, features=(16, 32, 64, 128, 256, 16), norm="batch"),
    "unet3d": lambda: UNet3D(1, 2, levels=4, filters=16).eval(),
    "gmic3d trunk": lambda: Slices(GMIC3D().ds_net),
    # The first layer of ResNet alone, whose weight gradient is slow on large channels_last images.
    "conv7x7": lambda: nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False),
}  # fmt: skip
WAYS = ("plain", "checkpoint", "streamed")
#: Other libraries' ways; each must be installed (benchmarks/peers/README.md).
PEERS = ("lightstream",)


def prepare(
    network: str, way: str, tile: int | None = None, memory: str | None = None
) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """A network with seeded weights, and the function that runs it in one of the `WAYS` or `PEERS`."""
    torch.manual_seed(0)
    net = NETWORKS[network]()
    if isinstance(net, Slices) and way != "plain":
        trunk = StreamingModule(net.trunk, tile=tile, memory=memory) if way == "streamed" else net.trunk
        return net, partial(by_slices, trunk, at_once=1)
    if way == "streamed":
        return net, StreamingModule(net, tile=tile, memory=memory)
    if way == "lightstream":
        return lightstream(net, tile or TILE)
    if way == "checkpoint":
        return net, _checkpointed(net)
    return net, net


def _checkpointed(net: nn.Module) -> Callable[[Tensor], Tensor]:
    """Keeps the inputs of the blocks only, as one would write it by hand with `torch.utils.checkpoint`."""

    def kept(block: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return cast(Tensor, checkpoint(block, x, use_reentrant=False))

    if isinstance(net, ResNet):
        blocks = [block for name in net._stages for block in cast(nn.Sequential, net.get_submodule(name))]

        def run_resnet(x: Tensor) -> Tensor:
            x = kept(lambda x: net.maxpool(net.relu(net.bn1(net.conv1(x)))), x)
            for block in blocks:
                x = kept(block, x)
            return x

        return run_resnet

    if isinstance(net, UNet3D):

        def decode(level: int, skip: Tensor, x: Tensor) -> Tensor:
            return cast(Tensor, net.decoder[level](torch.cat([skip, net.up[level](x)], 1)))

        def run_unet(x: Tensor) -> Tensor:
            skips: list[Tensor] = []
            for level, block in enumerate(net.encoder):
                x = kept(block, net.pool[level - 1](x) if level else x)
                skips.append(x)
            for level in reversed(range(len(net.decoder))):
                x = kept(partial(decode, level, skips[level]), x)
            return cast(Tensor, net.head(x))

        return run_unet

    return lambda x: kept(net, x)
