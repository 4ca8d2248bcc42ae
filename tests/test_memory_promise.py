"""The promise about memory: the stored maps, the image, and a tile. Counted to the byte (see memory.py)."""

from __future__ import annotations

import gc

import torch
from torch import Tensor, nn

from streamingcnn import StreamingModule
from streamingcnn.check import plain_bytes
from streamingcnn.memory import LiveBytes
from streamingcnn.models import resnet18

TILE = 256
#: A fixed plan: what lies between ResNet's blocks is stored.
STORED = ("maxpool", *(f"layer{layer}.{block}" for layer in (1, 2, 3, 4) for block in (0, 1)))


def streamed() -> StreamingModule:
    return StreamingModule(resnet18().eval(), tile=TILE, stored=STORED)


def peak(net: nn.Module, size: int) -> int:
    """Count the live bytes at the peak of one forward and backward, beside parameters and image.

    Python's collector is off: a tensor in a reference cycle would outlive its use, and must show.
    """
    x = torch.rand(1, 3, size, size)
    net.zero_grad(set_to_none=True)
    gc.collect()
    gc.disable()
    try:
        live = LiveBytes()
        with live:
            net(x).mean().backward()
    finally:
        gc.enable()
    return live.peak


def stored_bytes(size: int) -> int:
    """Work out the bytes of the stored maps and of the image, in float32.

    maxpool    64 x (size / 4)^2          layer2.0, layer2.1    128 x (size / 8)^2     ...
    layer1.0, layer1.1: the same          layer4.0, layer4.1    512 x (size / 32)^2
    """
    pixels = 3 * size**2 + 64 * (size // 4) ** 2
    pixels += sum(2 * (64 << level) * (size // (4 << level)) ** 2 for level in range(4))
    return 4 * pixels


def test_peak_grows_no_faster_than_stored_maps_and_image() -> None:
    net = streamed()
    small, large = peak(net, 512), peak(net, 1024)
    assert large - small <= stored_bytes(1024) - stored_bytes(512)


def test_peak_is_below_two_fifths_of_plain() -> None:
    net = streamed()
    assert peak(net, 1536) < 0.40 * plain_bytes(net.module, (1, 3, 1536, 1536))


def test_plain_bytes_are_those_of_a_real_run() -> None:
    """What the fraction above is of: worked out from shapes alone, and equal to a run, to the byte."""
    module = resnet18().eval()
    x = torch.rand(1, 3, 256, 256)
    live = LiveBytes()
    with live:
        y = module(x.requires_grad_())
        wanted = [x, *module.parameters()]
        torch.autograd.grad(y, wanted, torch.randn_like(y))
    assert abs(plain_bytes(module, x) - live.peak) <= 0.01 * live.peak


def test_peak_is_the_same_in_every_step() -> None:
    net = streamed()
    assert peak(net, 512) == peak(net, 512)


def test_forward_without_gradient_frees_each_map_at_its_last_reader() -> None:
    net = streamed()
    x = torch.rand(1, 3, 1024, 1024)
    live = LiveBytes()
    with live, torch.no_grad():
        net(x)
    assert live.peak < 0.6 * stored_bytes(1024)


def test_nothing_lives_on_after_a_step() -> None:
    """When result and gradients are gone, so is every byte of the step."""

    def step(net: nn.Module, x: Tensor) -> None:
        net(x).square().mean().backward()
        net.zero_grad(set_to_none=True)

    net = StreamingModule(resnet18(), tile=64, stored=STORED)
    x = torch.rand(1, 3, 128, 128)
    step(net, x)  # what is made once and remembered
    live = LiveBytes()
    with live:
        step(net, x)
    gc.collect()
    assert live.current == 0


def test_a_result_that_is_dropped_frees_its_maps() -> None:
    net = StreamingModule(resnet18(), tile=64, stored=STORED)
    x = torch.rand(1, 3, 128, 128)
    live = LiveBytes()
    with live:
        y = net(x)
        assert live.current > 100_000
        del y
        gc.collect()
        assert live.current < 100_000
