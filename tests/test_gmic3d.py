"""3D-GMIC: published parameters, a volume by hand, slices one after another, streamed against plain."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch

from streamingcnn import StreamingModule, stream
from streamingcnn.comparison import compare
from streamingcnn.memory import LiveBytes
from streamingcnn.models import GMIC, GMIC3D, ResNet
from streamingcnn.models.gmic import GMICLoss, ResNet22, VolumeNet
from streamingcnn.models.gmic.depth import by_slices
from streamingcnn.models.gmic.trunk import group_norm
from streamingcnn.models.resnet import BasicBlock
from streamingcnn.sources import ArraySource

TOLERANCE = 1e-10


def small(**options: Any) -> GMIC3D:
    options = {"crop_shape": (64, 64), "crops": 3, "percent_t": 0.5, "apart": 1, **options}
    local = options.pop("local", None) or ResNet(BasicBlock, (1, 1), width=4)
    model = GMIC3D(trunk=ResNet22(width=8, norm=group_norm), local=local, **options).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def test_parameters_and_keys_are_the_published_ones() -> None:
    with torch.device("meta"):
        model, flat = GMIC3D(), GMIC()
    assert sum(p.numel() for p in model.parameters()) == 14_108_784
    assert len(model.state_dict()) == 193
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    wanted = {
        name
        for name in flat.state_dict()
        if not name.startswith("fusion_dnn") and not (name.startswith("ds_net") and name.endswith(buffers))
    }
    assert set(model.state_dict()) == wanted


def test_the_answers_follow_from_the_whole_volume() -> None:
    model = small().eval()
    x = torch.randn(1, 1, 4, 256, 192, dtype=torch.float64)
    with torch.no_grad():
        result = model(x)
        maps = [model.left_postprocess_net.gn_conv_last(model.ds_net(x[:, :, d])) for d in range(4)]
    saliency = torch.stack(maps, 2).tanh().clamp(min=0)
    torch.testing.assert_close(result.saliency, saliency)
    highest = saliency.flatten(2).sort(2).values[..., -6:]  # half of ONE slice of 4 x 3 cells
    torch.testing.assert_close(result.y_global, highest.mean(2))
    torch.testing.assert_close(result.prediction, (result.y_global + result.y_local) / 2)
    for k in range(3):
        top, left = result.locations[0, k].tolist()
        z = int(result.crop_slices[0, k])
        assert torch.equal(result.crops[0, k], x[0, :, z, top : top + 64, left : left + 64])


def test_training_draws_the_slice_near_the_window() -> None:
    model = small(apart=2).train()
    x = torch.randn(1, 1, 9, 192, 128, dtype=torch.float64)
    seen = set()
    for _ in range(12):
        result = model(x)
        away = (result.crop_slices - result.regions.slices).abs()
        assert (away <= 2).all() and (result.crop_slices >= 0).all() and (result.crop_slices < 9).all()
        seen |= set(away.flatten().tolist())
    assert seen == {0, 1, 2}


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 2, 139, 131), (2, 1, 2, 130, 135)])
def test_streamed_is_plain(shape: tuple[int, ...], train: bool) -> None:
    plain = small(slices_at_once=None).train(train)
    streamed = small(slices_at_once=1).train(train)
    streamed.load_state_dict(plain.state_dict())
    stream(streamed, "ds_net", tile=128)
    rows = compare(plain, streamed, torch.randn(shape, dtype=torch.float64))
    assert max(row.error for row in rows) <= TOLERANCE
    assert any(row.kind == "input gradient" and row.norm > 0 for row in rows)


@pytest.mark.parametrize("train", [False, True])
def test_crops_of_several_slices_and_a_learned_fusion_streamed_are_plain(train: bool) -> None:
    options = {"crop_slices": 3, "fusion": "learned"}
    plain = small(slices_at_once=None, local=VolumeNet(width=4), **options).train(train)
    streamed = small(local=VolumeNet(width=4), **options).train(train)
    streamed.load_state_dict(plain.state_dict())
    stream(streamed, "ds_net", tile=128)
    rows = compare(plain, streamed, torch.randn(2, 1, 3, 139, 131, dtype=torch.float64))
    assert max(row.error for row in rows) <= TOLERANCE
    assert "fusion_dnn.bias" in {row.name for row in rows if row.norm > 0}


def test_batch_norms_that_train_look_at_all_streamed_slices() -> None:
    trunk = ResNet(BasicBlock, (1,), width=4, in_channels=1)
    plain = GMIC3D(crop_shape=(16, 16), crops=1, percent_t=0.5, trunk=trunk, local=ResNet(BasicBlock, (1,), width=4))
    plain = plain.double().train()
    streamed = stream(deepcopy(plain), "ds_net", stored=[], tile=(16, 24))
    rows = compare(plain, streamed, torch.randn(2, 1, 3, 33, 40, dtype=torch.float64))
    assert max(row.error for row in rows) <= TOLERANCE
    assert "ds_net.bn1.running_var" in {row.name for row in rows if row.kind == "buffer"}


def test_slices_one_after_another_are_all_at_once() -> None:
    plain, chunks = small(slices_at_once=None), small(slices_at_once=2)
    chunks.load_state_dict(plain.state_dict())
    rows = compare(plain, chunks, torch.randn(2, 1, 3, 140, 130, dtype=torch.float64))
    assert max(row.error for row in rows) <= TOLERANCE


def test_more_slices_take_no_more_memory_but_their_maps() -> None:
    trunk = ResNet22(width=8, norm=group_norm).to("meta")

    def peak(depth: int, at_once: int | None) -> int:
        x = torch.empty(1, 1, depth, 256, 192, device="meta")
        with LiveBytes(fake=True) as live:
            by_slices(trunk, x, at_once).sum().backward()
        return live.peak

    peak(1, 1)  # gradients are there from now on
    two, eight, a_map = peak(2, 1), peak(8, 1), 128 * 4 * 3 * 4  # of 128 channels and 4 x 3 cells
    assert eight - two <= 4 * 6 * a_map
    assert peak(8, None) - peak(2, None) > 100 * (eight - two)


def test_more_streamed_slices_take_no_more_memory_but_their_maps() -> None:
    trunk: Any = StreamingModule(ResNet22(width=8, norm=group_norm), tile=64)

    def peak(depth: int) -> int:
        x = torch.randn(1, 1, depth, 128, 112)
        with LiveBytes() as live:
            by_slices(trunk, x, 1).sum().backward()
        return live.peak

    peak(1)  # the plan is made, and gradients
    assert peak(6) - peak(2) <= 4 * 4 * 128 * 2 * 1 * 4


def test_a_source_is_read_slice_by_slice() -> None:
    model = small().eval()
    x = torch.randn(1, 1, 3, 161, 140, dtype=torch.float64)
    streamed = stream(deepcopy(model), "ds_net", tile=64)
    read = streamed(ArraySource(x[0]))
    with torch.no_grad():
        plain = model(x)
    torch.testing.assert_close(read.prediction, plain.prediction, rtol=1e-10, atol=1e-12)
    assert torch.equal(read.crops, plain.crops)
    read.prediction.sum().backward()
    first = streamed.get_parameter("ds_net.first_conv.weight").grad
    assert first is not None and first.any()


def test_crops_of_several_slices_and_a_learned_fusion() -> None:
    model = small(crop_slices=3, local=VolumeNet(width=4), fusion="learned").eval()
    x = torch.randn(2, 1, 5, 192, 140, dtype=torch.float64)
    result = model(x)
    assert result.crops.shape == (2, 3, 1, 3, 64, 64)
    top, left = result.locations[1, 0].tolist()
    z = int(result.crop_slices[1, 0])
    beside = [min(max(z + k, 0), 4) for k in (-1, 0, 1)]
    assert torch.equal(result.crops[1, 0, 0, :, 0, 0], x[1, 0, beside, top, left])
    GMICLoss(0.1, "mean")(result, torch.tensor([[0.0, 1.0], [1.0, 0.0]])).backward()
    assert model.fusion_dnn.weight.grad is not None


@pytest.mark.parametrize("fusion", ["mean", "learned"])
def test_a_constant_volume_and_more_crops_than_it_allows(fusion: str) -> None:
    model = small(crops=9, apart=0, fusion=fusion).eval()
    labels = torch.tensor([[0.0, 1.0]])
    some = model(torch.randn(1, 1, 2, 128, 128, dtype=torch.float64))
    assert 0 < some.regions.valid.sum() <= 8 and (some.attention[~some.regions.valid] == 0).all()
    with torch.no_grad():
        model.get_parameter("left_postprocess_net.gn_conv_last.weight").zero_()
    result = model(torch.zeros(1, 1, 2, 128, 128, dtype=torch.float64))
    assert not result.regions.valid.any() and not result.attention.any()
    GMICLoss()(result, labels).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_slices_smaller_than_a_crop_are_filled_up_with_their_own_lowest_value() -> None:
    x = torch.randn(1, 1, 3, 40, 50, dtype=torch.float64)
    result = small(percent_t=1.0).eval()(x)
    z = int(result.crop_slices[0, 0])
    assert torch.equal(result.crops[0, 0, 0, :40, :50], x[0, 0, z])
    assert (result.crops[0, 0, 0, 40:] == x[0, 0, z].min()).all()


def test_nan_pixels_give_a_nan_answer_and_loss() -> None:
    x = torch.randn(1, 1, 2, 160, 128, dtype=torch.float64)
    x[0, 0, 1, 5, 5] = float("nan")
    result = small(activation="sigmoid").eval()(x)
    assert result.prediction.isnan().all() and not result.regions.valid.any()
    assert GMICLoss()(result, torch.tensor([[0.0, 1.0]])).isnan()
    with pytest.raises(ValueError, match="3 channels, and this network was made for 1; give in_channels=3"):
        small()(torch.zeros(1, 3, 2, 100, 100))


def test_wrong_settings_say_what_is_needed() -> None:
    with pytest.raises(ValueError, match="odd number"):
        GMIC3D(crop_slices=2)
    with pytest.raises(ValueError, match="VolumeNet"):
        GMIC3D(crop_slices=3)
    with pytest.raises(ValueError, match="'tanh' or 'sigmoid'"):
        GMIC3D(activation="relu")
    with pytest.raises(ValueError, match="12 highest cells of a map of 2 x 2 x 2"):
        small(percent_t=3.0)(torch.zeros(1, 1, 2, 130, 100).double())
    with pytest.raises(ValueError, match="slices, height, width"):
        small()(torch.zeros(1, 1, 100, 100))
