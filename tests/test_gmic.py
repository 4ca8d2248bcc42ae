"""GMIC: the published parameters, the forward pass by hand, streamed against plain, losses and bad input."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

from streamingcnn import StreamingModule, stream
from streamingcnn.comparison import compare, run_step
from streamingcnn.models import GLAM, GMIC, GMIC3D, ResNet
from streamingcnn.models.gmic import GLAMLoss, GMICLoss, ResNet22
from streamingcnn.models.gmic.trunk import PreActivated
from streamingcnn.models.resnet import BasicBlock
from streamingcnn.sources import ArraySource

TOLERANCE = 1e-10


def small(**options: Any) -> GMIC:
    """A GMIC of a few channels with crops of 64 pixels, in float64."""
    local = ResNet(BasicBlock, (1, 1), width=4)
    options = {"crop_shape": (64, 64), "crops": 3, "percent_t": 0.1, **options}
    model = GMIC(trunk=ResNet22(options.get("in_channels", 1), width=4), local=local, **options).double()
    with torch.no_grad():  # far from symmetric, so that every term shows
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def test_parameters_and_keys_are_the_published_ones() -> None:
    with torch.device("meta"):
        model = GMIC()
    state = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert sum(p.numel() for p in model.parameters()) == 14_110_322
    assert len(state) == 258
    assert state["ds_net.first_conv.weight"] == (16, 1, 7, 7)
    norms = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    wanted = {"ds_net.first_conv.weight", *(f"ds_net.final_bn.{n}" for n in norms)}
    for s in range(5):
        for b in range(2):
            block = f"ds_net.layer_list.{s}.{b}"
            wide = 16 * 2**s
            into = wide // 2 if s and not b else wide
            assert state[f"{block}.conv1.weight"] == (wide, into, 3, 3)
            assert state[f"{block}.conv2.weight"] == (wide, wide, 3, 3)
            assert state[f"{block}.bn1.weight"] == (into,)
            wanted |= {f"{block}.conv1.weight", f"{block}.conv2.weight"}
            wanted |= {f"{block}.{norm}.{n}" for norm in ("bn1", "bn2") for n in norms}
        assert state[f"ds_net.layer_list.{s}.0.downsample.0.weight"] == (16 * 2**s, max(16, 8 * 2**s), 1, 1)
        wanted.add(f"ds_net.layer_list.{s}.0.downsample.0.weight")
    assert {name for name in state if name.startswith("ds_net.")} == wanted
    assert state["left_postprocess_net.gn_conv_last.weight"] == (2, 256, 1, 1)
    assert state["dn_resnet.conv1.weight"] == (64, 3, 7, 7)
    assert state["dn_resnet.layer4.0.downsample.0.weight"] == (512, 256, 1, 1)
    assert "dn_resnet.layer1.0.downsample.0.weight" not in state
    assert state["mil_attn_V.weight"] == state["mil_attn_U.weight"] == (128, 512)
    assert state["mil_attn_w.weight"] == (1, 128)
    assert state["classifier_linear.weight"] == (2, 512)
    assert (state["fusion_dnn.weight"], state["fusion_dnn.bias"]) == ((2, 768), (2,))


def test_maps_at_the_published_size() -> None:
    with torch.device("meta"):
        trunk = ResNet22(taps=(2, 3)).eval()
        maps = trunk(torch.empty(1, 1, 2944, 1920))
        assert [tuple(each.shape[1:]) for each in maps] == [(64, 184, 120), (128, 92, 60), (256, 46, 30)]


def test_the_first_block_projects_what_it_activated_and_the_second_adds_what_came_in() -> None:
    first, second = ResNet22(width=4).eval().get_submodule("layer_list.1").children()
    assert isinstance(first, PreActivated) and isinstance(second, PreActivated) and first.downsample is not None
    x = torch.randn(1, 4, 8, 8)
    y = torch.relu(first.bn1(x))
    torch.testing.assert_close(
        first(x), first.downsample[0](y) + first.conv2(torch.relu(first.bn2(first.conv1(y)))), rtol=0, atol=0
    )
    x = torch.randn(1, 8, 4, 4)
    y = second.conv2(torch.relu(second.bn2(second.conv1(torch.relu(second.bn1(x))))))
    torch.testing.assert_close(second(x), x + y, rtol=0, atol=0)


def test_every_answer_follows_from_the_saliency_and_the_crops() -> None:
    model = small().eval()
    x = torch.randn(2, 1, 320, 256, dtype=torch.float64)
    with torch.no_grad():
        result = model(x)
        features = model.ds_net(x)
    torch.testing.assert_close(result.saliency, torch.sigmoid(model.left_postprocess_net.gn_conv_last(features)))
    highest = result.saliency.flatten(2).sort(2).values[..., -2:]  # 10 % of 5 x 4 cells
    torch.testing.assert_close(result.y_global, highest.mean(2))
    for n in range(2):
        for k in range(3):
            top, left = result.locations[n, k].tolist()
            assert (top, left) == (64 * int(result.regions.rows[n, k]), 64 * int(result.regions.columns[n, k]))
            assert torch.equal(result.crops[n, k], x[n, :, top : top + 64, left : left + 64])
    assert result.regions.valid.all()
    with torch.no_grad():
        deep = model.dn_resnet(result.crops.flatten(0, 1).repeat(1, 3, 1, 1)).mean((2, 3)).view(2, 3, -1)
        z = (result.attention[..., None] * deep).sum(1)
        # The map's maximum stands in front of the crops' vector.
        fused = torch.cat([features.amax((2, 3)), z], 1) @ model.fusion_dnn.weight.T + model.fusion_dnn.bias
        local = z @ model.classifier_linear.weight.T
    torch.testing.assert_close(result.attention.sum(1), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(result.prediction, torch.sigmoid(fused))
    torch.testing.assert_close(result.y_local, torch.sigmoid(local))


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 161, 207), (2, 1, 192, 135)])
def test_streamed_is_plain(shape: tuple[int, ...], train: bool) -> None:
    plain = small().train(train)
    streamed = deepcopy(plain)
    stream(streamed, "ds_net", tile=64)
    assert isinstance(streamed.ds_net, StreamingModule)
    assert streamed.state_dict().keys() == plain.state_dict().keys()
    rows = compare(plain, streamed, torch.randn(shape, dtype=torch.float64))
    assert max(row.error for row in rows) <= TOLERANCE
    assert {"fusion_dnn.weight", "ds_net.first_conv.weight", "mil_attn_w.weight"} <= {row.name for row in rows}


def test_the_loss_streamed_is_plain() -> None:
    plain = small()
    streamed = stream(deepcopy(plain), "ds_net", memory="64MiB")
    x = torch.randn(2, 1, 191, 130, dtype=torch.float64)
    labels = torch.tensor([[1.0, 0.0], [float("nan"), 1.0]])

    class WithLoss(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model, self.loss = model, GMICLoss(0.1, "mean", auxiliary=0.3, positive_weight=(2.0, 3.0))

        def forward(self, x: torch.Tensor) -> Any:
            return self.loss(self.model(x), labels)

    rows = compare(WithLoss(plain), WithLoss(streamed), x)
    assert max(row.error for row in rows) <= TOLERANCE


def test_a_source_is_its_tensor() -> None:
    model = small().eval()
    x = torch.randn(1, 1, 193, 150, dtype=torch.float64)
    streamed = stream(deepcopy(model), "ds_net", tile=64)
    with torch.no_grad():
        plain, read = model(x), streamed(ArraySource(x[0]))
    torch.testing.assert_close(read.prediction, plain.prediction, rtol=1e-10, atol=1e-12)
    assert torch.equal(read.crops, plain.crops)


def test_weights_of_the_published_names_load_strictly() -> None:
    source, model = GMIC(), GMIC()
    assert model.load_state_dict(source.state_dict(), strict=True).missing_keys == []


def test_any_number_of_classes_and_channels_and_another_trunk() -> None:
    trunk = ResNet(BasicBlock, (1, 1), width=4, in_channels=3)
    model = GMIC(3, 3, crop_shape=(32, 48), crops=2, trunk=trunk, local=ResNet(BasicBlock, (1,), width=4)).eval()
    result = model(torch.randn(2, 3, 100, 90))
    assert result.prediction.shape == (2, 3)
    assert result.crops.shape == (2, 2, 3, 32, 48)


def test_a_constant_image_has_an_answer_and_gradients() -> None:
    model = small()
    model.eval()
    with torch.no_grad():
        model.get_parameter("ds_net.final_bn.weight").zero_()  # the map is constant whatever the image's border does
    result = model(torch.zeros(1, 1, 200, 140, dtype=torch.float64))
    assert not result.regions.valid.any() and not result.attention.any()
    loss = GMICLoss()(result, torch.tensor([[0.0, 1.0]]))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    model.reference_crops = True  # as published: all crops at (0, 0), and counted
    torch.testing.assert_close(model(torch.zeros(1, 1, 200, 140).double()).attention.sum(), torch.ones(()).double())


def test_an_image_smaller_than_a_crop() -> None:
    x = torch.randn(1, 1, 40, 50, dtype=torch.float64)
    result = small(percent_t=1.0).eval()(x)
    assert torch.equal(result.crops[0, 0, 0, :40, :50], x[0, 0])
    assert (result.crops[0, 0, 0, 40:] == x.min()).all()


def test_nan_pixels_give_a_nan_answer_and_no_valid_region() -> None:
    x = torch.randn(1, 1, 160, 128, dtype=torch.float64)
    x[0, 0, 5, 5] = float("nan")
    for image in (x, torch.full_like(x, float("nan"))):  # one pixel is seen by every cell of so small a map
        result = small().eval()(image)
        assert result.prediction.isnan().all() and not result.regions.valid.any()


def test_more_crops_than_the_map_allows() -> None:
    result = small(crops=9, percent_t=0.5).eval()(torch.randn(1, 1, 128, 128, dtype=torch.float64))
    assert result.regions.valid.sum() <= 4
    assert (result.attention[~result.regions.valid] == 0).all()
    torch.testing.assert_close(result.attention.sum(), torch.ones((), dtype=torch.float64))


@pytest.mark.parametrize("make", [GMIC, GMIC3D, GLAM])
def test_under_autocast_saliency_is_float32(make: type[GMIC | GMIC3D | GLAM]) -> None:
    """In bfloat16 a map near one half has steps of 1/256: which cells were highest was chance."""
    side = 32 if make is GLAM else 64  # bfloat16 is slow on a processor without AVX-512, and GLAM's crops most
    model = make(crop_shape=(side, side), crops=1, percent_t=0.5)
    x = torch.randn(1, 1, *((2,) if make is GMIC3D else ()), 128, 96)
    with torch.autocast("cpu", torch.bfloat16):
        result: Any = model(x)
    maps = [result.global_map, result.local_maps] if make is GLAM else [result.saliency]
    assert all(each.dtype == torch.float32 for each in (*maps, result.prediction if make is GLAM else result.y_global))
    loss = GLAMLoss()(result, torch.ones(1, 2)) if make is GLAM else GMICLoss()(result, torch.ones(1, 2))
    loss.backward()
    assert all(p.grad is None or (p.grad.dtype == p.dtype and p.grad.isfinite().all()) for p in model.parameters())


def test_wrong_inputs_say_what_is_needed() -> None:
    model = small()
    with pytest.raises(ValueError, match="3 channels, and this network was made for 1; give in_channels=3"):
        model(torch.zeros(1, 3, 100, 100))
    with pytest.raises(ValueError, match=r"needed is .images, channels, height, width"):
        model(torch.zeros(1, 100, 100))
    with pytest.raises(ValueError, match="4 x 90 pixels"):
        model(torch.zeros(1, 1, 4, 90))
    with pytest.raises(ValueError, match="one number per image and class"):
        GMICLoss()(small().eval()(torch.zeros(1, 1, 130, 130).double()), torch.zeros(2))
    with pytest.raises(ValueError, match="'sum' or 'mean'"):
        GMICLoss(reduction="l1")


def test_the_loss_by_hand() -> None:
    model = small().eval()
    with torch.no_grad():
        result = model(torch.randn(2, 1, 200, 160, dtype=torch.float64))
    labels = torch.tensor([[1.0, 0.0], [0.0, float("nan")]], dtype=torch.float64)

    def bce(p: torch.Tensor) -> torch.Tensor:
        benign = -(p[0, 0].log() + (1 - p[1, 0]).log()) / 2
        return benign - (1 - p[0, 1]).log()  # malignant is known of the first alone

    heads = bce(result.y_local) + bce(result.y_global) + bce(result.prediction)
    cells = result.saliency
    torch.testing.assert_close(GMICLoss(0.01, "sum")(result, labels), heads + 0.01 * cells.sum())
    torch.testing.assert_close(GMICLoss(0.01, "mean")(result, labels), heads + 0.01 * cells.mean())
    for scale in (1.0, 10.0):
        extra = bce(torch.sigmoid(scale * result.saliency_logits.mean((2, 3))))
        loss = GMICLoss(0.0, auxiliary=0.5, mean_scale=scale)
        torch.testing.assert_close(loss(result, labels), heads + 0.5 * extra)
    nothing = torch.full((2, 2), float("nan"), dtype=torch.float64)
    assert GMICLoss(0.0)(result, nothing) == 0


def test_no_gradient_passes_through_the_crops() -> None:
    model = small().eval()
    x = torch.randn(1, 1, 160, 128, dtype=torch.float64, requires_grad=True)
    result = model(x)
    assert not result.crops.requires_grad
    gradient = run_step(model, x)[("input gradient", "")]
    assert gradient is not None and gradient.any()
