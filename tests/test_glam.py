"""GLAM: published parameters, three scales and the pasted map by hand, streamed against plain."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from streamingcnn import stream
from streamingcnn.comparison import compare
from streamingcnn.models import GLAM, ResNet
from streamingcnn.models.gmic import GLAMLoss, PyramidLocal, ResNet22
from streamingcnn.models.resnet import BasicBlock

TOLERANCE = 1e-10
TRUNK = "global_network.downsampling_branch"


def small(**options: Any) -> GLAM:
    options = {"crop_shape": (64, 64), "crops": 2, **options}
    local = ResNet(BasicBlock, (1, 1), width=4, strides=(1, 1))
    model = GLAM(trunk=ResNet22(width=4, taps=(2, 3)), local=local, **options).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def test_parameters_and_keys_are_the_published_ones() -> None:
    with torch.device("meta"):
        model = GLAM()
    state = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert sum(p.numel() for p in model.parameters()) == 24_086_140
    assert len(state) == 352
    maps = "global_network.postprocess_module"
    assert state[f"{maps}.gn_conv_1.weight"] == (2, 64, 1, 1)
    assert state[f"{maps}.gn_conv_2.weight"] == (2, 128, 1, 1)
    assert state[f"{maps}.gn_conv_last.weight"] == (2, 256, 1, 1)
    assert state[f"{maps}.combine.weight"] == (2, 6, 1, 1)
    assert state["detection_network.gn_conv_last.weight"] == (2, 512, 1, 1)
    assert f"{TRUNK}.layer_list.4.1.conv2.weight" in state
    blocks = {
        name.split(".")[2:4][0] + "." + name.split(".")[3] for name in state if ".layer" in name and "dn_" in name
    }
    assert len(blocks) == 3 + 4 + 6 + 3
    projections = sorted(n for n in state if n.startswith("detection") and n.endswith("downsample.0.weight"))
    assert projections == [f"detection_network.dn_resnet.layer{k}.0.downsample.0.weight" for k in (2, 3, 4)]


def test_three_scales_by_hand() -> None:
    model = small().eval()
    x = torch.randn(2, 1, 320, 256, dtype=torch.float64)
    with torch.no_grad():
        result = model(x)
        fine, middle, coarse = model.global_network.downsampling_branch(x)
        heads = model.global_network.postprocess_module
        one = torch.sigmoid(heads.gn_conv_1(fine))
        two = torch.sigmoid(heads.gn_conv_2(middle)).repeat_interleave(2, 2).repeat_interleave(2, 3)
        three = torch.sigmoid(heads.gn_conv_last(coarse)).repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(result.global_map, 0.2 * one + 0.6 * two + 0.2 * three)
    highest = [each.flatten(2).sort(2).values[..., -10:].mean(2) for each in (one, two, three)]  # 3 % of 320 cells
    torch.testing.assert_close(result.prediction, sum(highest) / 3)
    mean = ((one + two + three) / 3).flatten(2).sort(2).values[..., -10:].mean(2)
    torch.testing.assert_close(result.y_mean, mean)
    together = result.local_maps.transpose(1, 2).flatten(2).sort(2).values[..., -154:]  # 30 % of 2 x 16 x 16
    torch.testing.assert_close(result.y_local, together.mean(2))


@pytest.mark.parametrize("overlap", ["max", "mean", "last"])
def test_segmentation_pastes_the_crops_over_half_the_global_map(overlap: str) -> None:
    model = small(overlap=overlap).eval()
    with torch.no_grad():
        result = model(torch.randn(1, 1, 320, 256, dtype=torch.float64))
    result = result._replace(locations=torch.tensor([[[0, 0], [32, 288 - 64]]]))
    made = model.segmentation(result)
    whole = result.global_map.repeat_interleave(16, 2).repeat_interleave(16, 3)
    local = result.local_maps.repeat_interleave(4, 3).repeat_interleave(4, 4)
    torch.testing.assert_close(made[..., 200:, :], whole[..., 200:, :] / 2)
    torch.testing.assert_close(made[..., :64, :64], (whole[..., :64, :64] + local[:, 0]) / 2)
    # The second crop hangs over the right border: what is there is dropped.
    torch.testing.assert_close(made[..., 32:96, 224:], (whole[..., 32:96, 224:] + local[:, 1][..., :32]) / 2)
    result = result._replace(locations=torch.tensor([[[0, 0], [0, 0]]]))
    both = {"max": local[:, 0].maximum(local[:, 1]), "mean": (local[:, 0] + local[:, 1]) / 2, "last": local[:, 1]}
    torch.testing.assert_close(model.segmentation(result)[..., :64, :64], (whole[..., :64, :64] + both[overlap]) / 2)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 161, 207), (2, 1, 192, 135)])
def test_streamed_is_plain(shape: tuple[int, ...], train: bool) -> None:
    plain = small().train(train)
    streamed = stream(deepcopy(plain), TRUNK, tile=64)
    rows = compare(plain, streamed, torch.randn(shape, dtype=torch.float64))
    assert max(row.error for row in rows) <= TOLERANCE


def test_the_pyramid_has_the_published_stride_for_less_than_a_quarter_of_the_work() -> None:
    work = []
    with torch.device("meta"):
        for model in (GLAM(), GLAM(local=PyramidLocal())):
            crop = torch.empty(1, 3, 512, 512)
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                made = model.eval().detection_network(crop)
            assert made.shape == (1, 2, 128, 128)
            work.append(counter.get_total_flops() / 2)
    assert work[0] == pytest.approx(348.9e9, rel=0.001)
    assert work[1] < work[0] / 4


def test_losses_of_all_maps() -> None:
    model = small(local_t=0.5)
    result = model(torch.randn(2, 1, 200, 140, dtype=torch.float64))
    labels = torch.tensor([[1.0, -1.0], [0.0, -1.0]], dtype=torch.float64)  # the second class is not known
    heads = [*result.y_scales.unbind(1), result.y_local]
    expected = sum(-(p[0, 0].log() + (1 - p[1, 0]).log()) / 2 for p in heads)
    torch.testing.assert_close(GLAMLoss(0.0)(result, labels), expected)
    sizes = sum(each.mean() for each in (*result.scales, result.local_maps))
    torch.testing.assert_close(GLAMLoss(0.5)(result, labels), expected + 0.5 * sizes)
    GLAMLoss(auxiliary=1.0)(result, labels).backward()
    combine = model.global_network.postprocess_module.combine.weight
    assert combine.grad is None  # in the published weights, and used by nothing
    first = model.get_parameter("global_network.downsampling_branch.first_conv.weight").grad
    assert first is not None and first.any()


def test_wrong_overlap_says_what_is_needed() -> None:
    with pytest.raises(ValueError, match="'max', 'mean' or 'last'"):
        GLAM(overlap="first")


@pytest.mark.parametrize("train", [False, True])
def test_a_constant_image_and_more_crops_than_the_map_allows(train: bool) -> None:
    model = small(crops=9, percent_t=0.5).train(train)
    with torch.no_grad():
        for each in model.global_network.postprocess_module.children():
            each.get_parameter("weight").zero_()  # the maps are constant whatever the image's border does
    result = model(torch.zeros(1, 1, 200, 140, dtype=torch.float64))
    assert not result.regions.valid.any()
    # No crop is pasted, so the local part is 0 everywhere.
    torch.testing.assert_close(model.segmentation(result), torch.full((1, 2, 200, 140), 0.25, dtype=torch.float64))
    GLAMLoss(auxiliary=1.0)(result, torch.tensor([[0.0, 1.0]])).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_an_image_smaller_than_a_crop_is_segmented_at_its_own_size() -> None:
    x = torch.randn(1, 1, 48, 60, dtype=torch.float64)
    model = small(percent_t=1.0).eval()
    result = model(x)
    assert torch.equal(result.crops[0, 0, 0, :48, :60], x[0, 0])
    assert model.segmentation(result).shape == (1, 2, 48, 60)


def test_nan_pixels_give_nan_and_another_number_of_channels_an_error() -> None:
    model = small().eval()
    x = torch.randn(1, 1, 160, 128, dtype=torch.float64)
    x[0, 0, 5, 5] = float("nan")
    result = model(x)
    assert result.prediction.isnan().all() and not result.regions.valid.any()
    assert GLAMLoss()(result, torch.tensor([[0.0, 1.0]])).isnan()
    with pytest.raises(ValueError, match="3 channels, and this network was made for 1; give in_channels=3"):
        model(torch.zeros(1, 3, 100, 100))
