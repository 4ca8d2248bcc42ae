"""Small and middling networks on which two libraries are asked for a gradient; one case to a process.

    python -m benchmarks.peers.cases NAME WAY DTYPE      prints a line of JSON

Errors are those of `streamingcnn.comparison`, against plain PyTorch in float64 with the same numbers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.peers.wrapped import lightstream
from streamingcnn import StreamingModule
from streamingcnn.comparison import relative_errors
from streamingcnn.models import UNet3D, resnet18

__all__ = ["CASES", "EXACTNESS", "REFUSALS", "Case", "answer"]


@dataclass(frozen=True)
class Case:
    """A network, the shape of its input, and the tile that both libraries are given."""

    what: str
    network: Callable[[], nn.Module]
    shape: tuple[int, ...]
    tile: int


def _convolutions(*extra: nn.Module, channels: int = 3, stride: int = 1, bias: bool = False) -> nn.Module:
    first, second = nn.Conv2d(channels, 8, 3, stride, 1, bias=bias), nn.Conv2d(8, 8, 3, stride, 1, bias=bias)
    return nn.Sequential(first, *extra, nn.ReLU(), second, nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1, bias=bias))


class _Gated(nn.Module):
    """A squeeze-excite gate: every channel times what the mean of the whole map says."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x * self.gate(x)
        return y


#: What both stream: how exact are they?
EXACTNESS = {
    "resnet18": Case("ResNet-18 trunk, frozen batch norm", lambda: resnet18().eval(), (1, 3, 1568, 1568), 1280),
    "biases": Case("3 convolutions with biases", lambda: _convolutions(bias=True), (1, 3, 320, 320), 128),
    "batch": Case("the same, a batch of 2", lambda: _convolutions(bias=True), (2, 3, 320, 320), 128),
}
#: What one of them may not: an error, a wrong number or the right one?
REFUSALS = {
    "odd": Case("a size that the stride of 4 does not divide", lambda: _convolutions(stride=2), (1, 3, 331, 277), 128),
    "off the tile": Case("ResNet-18, image 1280, tile 960", lambda: resnet18().eval(), (1, 3, 1280, 1280), 960),
    "small": Case("an image smaller than the tile", lambda: _convolutions(), (1, 3, 96, 96), 128),
    "channels": Case("an image of one channel", lambda: _convolutions(channels=1), (1, 1, 320, 320), 128),
    "dilated": Case(
        "dilated convolution", lambda: _convolutions(nn.Conv2d(8, 8, 3, padding=2, dilation=2)), (1, 3, 320, 320), 128
    ),
    "kernel": Case(
        "a kernel of 3 x 5", lambda: _convolutions(nn.Conv2d(8, 8, (3, 5), padding=(1, 2))), (1, 3, 320, 320), 128
    ),
    "train": Case("batch norm in training", lambda: _convolutions(nn.BatchNorm2d(8)), (1, 3, 320, 320), 128),
    "group": Case("group norm", lambda: _convolutions(nn.GroupNorm(2, 8)), (1, 3, 320, 320), 128),
    "instance": Case("instance norm", lambda: _convolutions(nn.InstanceNorm2d(8)), (1, 3, 320, 320), 128),
    "gate": Case("squeeze-excite gate", lambda: _convolutions(_Gated()), (1, 3, 320, 320), 128),
    "up": Case(
        "transposed convolution", lambda: _convolutions(nn.ConvTranspose2d(8, 8, 2, 2)), (1, 3, 320, 320), 128
    ),
    "reflect": Case(
        "padding by reflection",
        lambda: _convolutions(nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")),
        (1, 3, 320, 320),
        128,
    ),
    "3-D": Case("a volume (3-D U-Net)", lambda: UNet3D(1, 2, levels=2, filters=4).eval(), (1, 1, 48, 48, 48), 32),
}  # fmt: skip
CASES = EXACTNESS | REFUSALS


def answer(name: str, way: str, dtype: torch.dtype) -> dict[str, float] | str:
    """The largest error by kind of tensor, of a case run by "streamed", "lightstream" or "plain"; or what it raised."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    case = CASES[name]
    net = case.network()
    with torch.no_grad():  # norms that scale and shift by nothing would hide a wrong gradient
        for norm in net.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_(0, 0.1)
                norm.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
                norm.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    reference = deepcopy(net).double()
    x = torch.randn(case.shape)
    try:
        parameters, run = _ways(net.to(dtype), way, case.tile)
        y = run(x.to(dtype))
        weights = torch.randn(y.shape)
        y.backward(weights.to(dtype))
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    gradients = {key: p.grad for key, p in parameters.named_parameters()}
    plain = reference(x.double())
    if plain.shape != y.shape:
        return f"a result of {tuple(y.shape[2:])} pixels in place of {tuple(plain.shape[2:])}"
    plain.backward(weights.double())
    right = {key: p.grad for key, p in reference.named_parameters()}
    kinds = {id(p): _kind(m, key) for m in reference.modules() for key, p in m.named_parameters(recurse=False)}
    worst = {"result": relative_errors({"": y.detach()}, {"": plain.detach()})[""]}
    errors = relative_errors(gradients, right)
    for key, p in reference.named_parameters():
        worst[kinds[id(p)]] = max(worst.get(kinds[id(p)], 0.0), errors[key])
    return worst


def _ways(net: nn.Module, way: str, tile: int) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    if way == "lightstream":
        return lightstream(net, tile)
    return net, StreamingModule(net, tile=tile) if way == "streamed" else net


def _kind(module: nn.Module, name: str) -> str:
    return f"{'norm' if 'Norm' in type(module).__name__ else 'convolution'}: {name}"


if __name__ == "__main__":
    print(json.dumps(answer(sys.argv[1], sys.argv[2], getattr(torch, sys.argv[3]))))
