"""The models: torchvision's names, the shapes they promise, and errors that say what to do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from streamingcnn.models import DiceCrossEntropy, ResNet, UNet3D, resnet18, resnet34, resnet50
from streamingcnn.models.resnet import BasicBlock

# Parameters of torchvision's models with their heads of 1000 classes, and of the trunks without.
RESNETS: list[tuple[Callable[..., ResNet], int, int]] = [
    (resnet18, 11_689_512, 512),
    (resnet34, 21_797_672, 512),
    (resnet50, 25_557_032, 2048),
]


@pytest.mark.parametrize(("make", "parameters", "channels"), RESNETS)
def test_resnet_has_the_parameters_of_torchvision(make: Callable[..., ResNet], parameters: int, channels: int) -> None:
    with torch.device("meta"):
        net, trunk = make(num_classes=1000), make()
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert trunk.out_channels == channels
    head = channels * 1000 + 1000
    assert sum(p.numel() for p in trunk.parameters()) == parameters - head
    assert set(net.state_dict()) - set(trunk.state_dict()) == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize(
    "key",
    [
        "conv1.weight",
        "bn1.running_mean",
        "layer1.0.conv2.weight",
        "layer2.0.downsample.0.weight",
        "layer2.0.downsample.1.num_batches_tracked",
        "layer4.1.bn2.bias",
        "fc.bias",
    ],
)
def test_resnet_keys_are_those_of_torchvision(key: str) -> None:
    with torch.device("meta"):
        assert key in resnet18(num_classes=10).state_dict()


def test_a_trunk_takes_the_weights_of_a_whole_network() -> None:
    whole, trunk = resnet18(num_classes=7).eval(), resnet18().eval()
    result = trunk.load_state_dict(whole.state_dict(), strict=False)
    assert result.missing_keys == []
    assert sorted(result.unexpected_keys) == ["fc.bias", "fc.weight"]
    x = torch.randn(2, 3, 67, 45)
    with torch.no_grad():
        features = trunk(x)
        assert features.shape == (2, 512, 3, 2)
        assert whole.fc is not None
        torch.testing.assert_close(whole.fc(features.mean((2, 3))), whole(x))


def test_resnet_sizes_are_rounded_up() -> None:
    net = ResNet(BasicBlock, (1, 1, 1), width=4, in_channels=1).eval()
    for size in (33, 64, 65):
        with torch.no_grad():
            assert net(torch.zeros(1, 1, size, size)).shape[2] == -(-size // 16)


def test_resnet_with_another_norm() -> None:
    net = ResNet(BasicBlock, (1, 1), width=8, norm=lambda channels: nn.GroupNorm(4, channels))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    net(torch.randn(1, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("norm", ["none", "batch", "instance", "group"])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_unet3d_keeps_the_shape_and_reaches_every_parameter(levels: int, norm: str) -> None:
    net = UNet3D(2, 3, levels=levels, filters=4, norm=norm)
    logits = net(torch.randn(2, 2, 8, 12, 16))
    assert logits.shape == (2, 3, 8, 12, 16)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_unet3d_is_as_large_as_its_filters_say() -> None:
    with torch.device("meta"):
        net = UNet3D(1, 2, levels=4, filters=16)

    def double(before: int, width: int) -> int:
        return 27 * before * width + width + 27 * width * width + width

    encoder = double(1, 16) + double(16, 32) + double(32, 64) + double(64, 128)
    up = sum(8 * 2 * width * width + width for width in (16, 32, 64))
    decoder = sum(double(2 * width, width) for width in (16, 32, 64))
    assert sum(p.numel() for p in net.parameters()) == encoder + up + decoder + 16 * 2 + 2


def test_unet3d_is_by_default_that_of_the_paper() -> None:
    """Hou et al.: 4 levels of 32 to 256 filters, 5.60 million weights; 0.2 Dice and 0.8 weighted cross-entropy."""
    loss = DiceCrossEntropy([1, 8, 16])
    with torch.device("meta"):
        net = UNet3D(1, 3, norm="batch", dropout=0.5, loss=loss)
    weights = sum(p.numel() for name, p in net.named_parameters() if p.dim() > 1)
    assert 5.55e6 < weights < 5.65e6
    # Dropped are the results of all convolutions but the first and the last, and of the transposed ones.
    drops = [module for module in net.modules() if isinstance(module, nn.Dropout)]
    assert len(drops) == 13 + 1 and all(drop.p == 0.5 for drop in drops)
    logits, target = torch.randn(1, 3, 4, 4, 4), torch.randint(3, (1, 4, 4, 4))
    entropy = nn.functional.cross_entropy(logits, target, torch.tensor([1.0, 8, 16]))
    p, g = logits.softmax(1), nn.functional.one_hot(target, 3).movedim(-1, 1)
    overlap = 2 * (p * g).sum((0, 2, 3, 4)) / (p.sum((0, 2, 3, 4)) + g.sum((0, 2, 3, 4)))
    assert float(loss(logits, target)) == pytest.approx(float(0.2 * (1 - overlap.mean()) + 0.8 * entropy), rel=1e-5)


def test_unet3d_says_what_to_pad_to() -> None:
    with pytest.raises(ValueError, match=r"multiples of 4; got \(8, 9, 15\); pad the volume to \(8, 12, 16\)"):
        UNet3D(levels=3, filters=2)(torch.zeros(1, 1, 8, 9, 15))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"levels": 0}, "levels=0"), ({"norm": "layer"}, "'layer'"), ({"dropout": 1.0}, "dropout=1.0")],
)
def test_unet3d_refuses_what_it_is_not(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNet3D(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "make",
    [
        lambda: ResNet(BasicBlock, (1, 1), width=4, num_classes=3),
        lambda: resnet18(),
        lambda: UNet3D(3, filters=4),
    ],
)
def test_they_export_for_the_engine_to_read(make: Callable[[], nn.Module]) -> None:
    net = make().eval()
    spatial = (32, 32, 32) if isinstance(net, UNet3D) else (64, 64)
    program = torch.export.export(net, (torch.zeros(1, 3, *spatial),), strict=False)
    assert len(program.graph.nodes) > 10
