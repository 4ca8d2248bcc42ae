"""Heatmaps: what they show, exactly; the files that are made of them, where viewers look for them."""

import numpy as np
import pytest
import torch
from torch import nn

from streamingcnn import StreamingModule
from streamingcnn.input_gradient import input_gradient
from streamingcnn.models import resnet18
from streamingcnn.sources import ArraySource, MaskedSource, ScaledSource

DOUBLE = torch.float64


def double(source):
    return ScaledSource(source, 1 / 255, dtype=DOUBLE)


def pixels(height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


class Forked(nn.Module):
    """The image is read by two stages: it goes into the end once more, at full size."""

    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 4, 5, 2, 2), nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv2d(4, 4, 3, 2, 1))
        self.end = nn.Conv2d(7, 2, 3, padding=1)

    def forward(self, x):
        deep = nn.functional.interpolate(self.down(x), size=x.shape[2:], mode="nearest")
        return self.end(torch.cat([x, deep], 1)).mean((2, 3))


NETS = {
    "convolutions": lambda: nn.Sequential(nn.Conv2d(3, 4, 7, 2, 3), nn.ELU(), nn.Conv2d(4, 2, 3, 2)),
    "resnet18": lambda: resnet18(num_classes=2),
    "forked": Forked,
    "statistics": lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.InstanceNorm2d(4), nn.Sigmoid(), nn.Conv2d(4, 1, 3)),
}


@pytest.mark.parametrize("name, block", [*((name, 32) for name in NETS), ("forked", 100), ("convolutions", 512)])
def test_the_gradient_of_every_pixel_is_plain_pytorchs(name, block):
    net = NETS[name]().to(DOUBLE).eval()
    raw = pixels(117, 150)
    source = double(ArraySource(raw))
    x = source.read(((0, 117), (0, 150)))[None].requires_grad_()
    weight = torch.randn(net(x).shape, dtype=DOUBLE)
    expected_result = net(x)
    (expected,) = torch.autograd.grad((expected_result * weight).sum(), x)
    gathered = torch.full_like(x, torch.nan)
    boxes = []

    def take(box, gradient):
        boxes.append(box)
        gathered[(..., *(slice(*interval) for interval in box))] = gradient

    result = input_gradient(StreamingModule(net, tile=32), source, lambda y: (y * weight).sum(), take, block)
    torch.testing.assert_close(result, expected_result.detach(), rtol=0, atol=1e-10)
    assert (gathered - expected).abs().max() <= 1e-10 * expected.abs().max()
    assert len(boxes) == len(set(boxes)) == -(-117 // block) * -(-150 // block)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_inside_a_mask_it_is_exact_too_and_tiles_of_background_run_once():
    net = nn.Sequential(nn.Conv2d(3, 4, 5, 2, 2), nn.Tanh(), nn.Conv2d(4, 4, 3, 2, 1), nn.Tanh()).to(DOUBLE)
    mask = np.zeros((16, 16), bool)
    mask[4:7, 9:12] = True
    masked = MaskedSource(double(ArraySource(pixels(512, 512))), mask, fill=0.9)
    x = masked.read(((0, 512), (0, 512)))[None].requires_grad_()
    (expected,) = torch.autograd.grad((net(x) ** 2).mean(), x)
    heat = torch.zeros(512, 512, dtype=DOUBLE)

    def take(box, gradient):
        heat[tuple(slice(*interval) for interval in box)] = gradient[0].abs().sum(0)

    streamed = StreamingModule(net, tile=64)
    input_gradient(streamed, masked, lambda y: (y**2).mean(), take, 64)
    inside = torch.from_numpy(np.kron(mask, np.ones((32, 32), bool)))
    wanted = expected[0].abs().sum(0)[inside]
    assert wanted.min() > 0
    torch.testing.assert_close(heat[inside], wanted, rtol=1e-9, atol=0)


def test_only_some_rows_of_the_gradient_exist_at_a_time():
    net = nn.Sequential(nn.Conv2d(3, 2, 7, 2, 3), nn.ReLU(), nn.Conv2d(2, 1, 3, 2, 1))
    source = ScaledSource(ArraySource(pixels(1024, 512)))
    seen = []

    class Blocks(dict):
        def __setitem__(self, key, value):
            super().__setitem__(key, value)
            seen.append(len(self))

    import streamingcnn.input_gradient as module

    init = module._Blocks.__init__

    def watched(self, *args):
        init(self, *args)
        self.begun = Blocks()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module._Blocks, "__init__", watched)
        input_gradient(StreamingModule(net, tile=128), source, lambda y: y.sum(), lambda *_: None, 64)
    assert max(seen) <= 4 * 512 // 64  # of 128 blocks at most four rows of eight


def test_whole_numbers_have_no_gradient():
    with pytest.raises(ValueError, match="wrap it in ScaledSource"):
        input_gradient(StreamingModule(nn.Conv2d(3, 1, 3)), ArraySource(pixels(64, 64)), torch.sum, print)
