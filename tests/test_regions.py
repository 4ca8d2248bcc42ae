"""Where to look closer: pooling, windows and crops against numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from streamingcnn.models.gmic.attention import attend
from streamingcnn.models.gmic.crops import crop, crop_source, lowest
from streamingcnn.models.gmic.pooling import count_of, top_mean
from streamingcnn.models.gmic.regions import find_regions, score_of, to_pixels, window_of
from streamingcnn.sources import ArraySource


def test_the_published_shares_are_28_41_69_and_138_cells() -> None:
    assert [count_of(46 * 30, share) for share in (0.02, 0.03, 0.05, 0.10)] == [28, 41, 69, 138]
    assert [count_of(33 * 21, share) for share in (1.511, 2.058, 1.134, 1.565, 2.294)] == [1047, 1426, 786, 1085, 1590]
    assert count_of(184 * 120, 0.03) == 662
    assert count_of(128 * 128, 0.3) == 4915
    assert count_of(5, 0.5) == 2  # 2.5, half to even


def test_top_mean_averages_the_highest_of_each_class() -> None:
    maps = torch.tensor([[[[0.1, 0.9], [0.4, 0.3]], [[0.0, 0.0], [0.0, 1.0]]]])
    torch.testing.assert_close(top_mean(maps, 2), torch.tensor([[0.65, 0.5]]))
    with pytest.raises(ValueError, match="5 highest cells of a map of 2 x 2"):
        top_mean(maps, 5)
    with pytest.raises(ValueError, match="above 0"):
        count_of(10, 0.0)


def test_a_crop_of_256_pixels_is_four_cells_at_the_published_sizes() -> None:
    assert window_of((256, 256), (46, 30), (2944, 1920)) == (4, 4)
    assert window_of((256, 256), (33, 21), (2116, 1339)) == (4, 4)
    assert window_of((512, 512), (184, 120), (2944, 1920)) == (32, 32)
    assert window_of((256, 256), (2, 1), (100, 60)) == (2, 1)  # an image smaller than a crop


def test_classes_are_stretched_one_by_one_and_summed() -> None:
    saliency = torch.tensor([[[[0.2, 0.4], [0.3, 0.2]], [[0.0, 0.0], [0.5, 1.0]]]])
    torch.testing.assert_close(score_of(saliency), torch.tensor([[[0.0, 1.0], [1.0, 1.0]]]))


def test_windows_come_in_the_order_of_their_sum_and_the_first_of_equal_ones() -> None:
    score = torch.zeros(1, 6, 6)
    score[0, 0, 5] = 1.0
    score[0, 5, 0] = 1.0  # the same sum further down
    score[0, 3, 3] = 2.0
    found = find_regions(score, (2, 2), 4)
    # Around (3, 3) the windows at (2, 2), (2, 3), (3, 2), (3, 3) are equal: the first in reading order.
    assert found.rows.tolist() == [[2, 0, 4, 0]]
    assert found.columns.tolist() == [[2, 4, 0, 0]]
    assert found.valid.tolist() == [[True, True, True, False]]


def test_later_windows_may_overlap_but_the_score_inside_is_gone() -> None:
    score = torch.zeros(1, 1, 6)
    score[0, 0] = torch.tensor([0.0, 3.0, 4.0, 3.5, 0.0, 0.0])
    found = find_regions(score, (1, 2), 3)
    # 4 + 3.5 first; then 3 alone, whose first window (0, 1) does not touch the second (2, 3).
    assert found.columns.tolist() == [[2, 0, 0]]
    assert found.valid.tolist() == [[True, True, False]]


def test_every_image_of_a_batch_has_its_own_windows() -> None:
    torch.manual_seed(3)
    score = torch.rand(4, 9, 7, dtype=torch.float64)
    together = find_regions(score, (3, 2), 5)
    for n in range(4):
        alone = find_regions(score[n : n + 1], (3, 2), 5)
        assert all(torch.equal(a[n : n + 1], b) for a, b in zip(together, alone, strict=True))


def test_a_constant_map_has_no_valid_window() -> None:
    found = find_regions(score_of(torch.full((2, 2, 6, 6), 0.7)), (2, 2), 3)
    assert not found.valid.any()
    assert not found.rows.any() and not found.columns.any()


def test_more_windows_than_the_map_allows_are_not_valid() -> None:
    found = find_regions(torch.ones(1, 4, 4), (2, 2), 6)
    assert found.valid.tolist() == [[True] * 4 + [False] * 2]
    assert found.rows.tolist() == [[0, 0, 2, 2, 0, 0]]


def test_a_map_of_nan_has_no_valid_window() -> None:
    found = find_regions(score_of(torch.full((1, 2, 4, 4), math.nan)), (2, 2), 2)
    assert not found.valid.any()
    assert found.rows.tolist() == [[0, 0]]


def test_a_window_takes_its_cells_in_ten_slices_on_either_side() -> None:
    score = torch.zeros(1, 30, 4, 4)
    score[0, :, 1, 1] = torch.linspace(1.0, 2.0, 30)
    score[0, 12, 1, 1] = 9.0
    found = find_regions(score, (2, 2), 4)
    # Slice 12 takes 2 to 22; then the highest that is left is 29 (takes 19 to 29), then 1, then nothing.
    assert found.slices.tolist() == [[12, 29, 1, 0]]
    assert found.valid.tolist() == [[True, True, True, False]]


def test_a_thick_window_is_the_mean_of_its_slices() -> None:
    score = torch.zeros(1, 7, 2, 2)
    score[0, 1, 0, 0] = 2.0
    score[0, 4:7, 1, 1] = 1.2
    assert find_regions(score, (1, 1), 1).slices.tolist() == [[1]]
    assert find_regions(score, (1, 1), 1, thickness=3).slices.tolist() == [[5]]


def test_the_last_column_of_a_tomosynthesis_slice_hangs_over_by_one_pixel() -> None:
    left = to_pixels(torch.tensor([17]), 21, 1339)
    assert left.tolist() == [1084]
    assert left.item() + 256 == 1340
    assert to_pixels(torch.tensor([42]), 46, 2944).tolist() == [2688]  # exactly 64 pixels a cell: 2688 + 256 = 2944


@pytest.mark.parametrize("reference", [False, True])
def test_a_crop_over_the_corner(reference: bool) -> None:
    image = torch.arange(1.0, 17.0).view(1, 1, 1, 4, 4)
    at = torch.tensor([[2]])
    slices = torch.tensor([[[0]]])
    behind = torch.tensor([[11.0, 12.0, 1.0], [15.0, 16.0, 1.0], [1.0, 1.0, 1.0]])
    shifted = torch.tensor([[1.0, 1.0, 1.0], [1.0, 11.0, 12.0], [1.0, 15.0, 16.0]])
    cut = crop(image, at, at, (3, 3), slices, reference=reference)[0, 0, 0, 0]
    assert torch.equal(cut, shifted if reference else behind)


@pytest.mark.parametrize("reference", [False, True])
def test_crops_of_a_source_are_those_of_a_tensor(reference: bool) -> None:
    volume = torch.rand(1, 2, 5, 20, 17)
    rows, columns = torch.tensor([[0, 15, 3]]), torch.tensor([[12, 2, 4]])
    slices = torch.tensor([[[0, 1], [3, 4], [2, 2]]])
    source = ArraySource(volume[0])
    cut = crop(volume, rows, columns, (8, 8), slices, reference=reference)
    read = crop_source(source, rows, columns, (8, 8), slices, dtype=torch.float32, reference=reference)
    assert torch.equal(cut, read)
    assert cut.shape == (1, 3, 2, 2, 8, 8)


def test_the_filling_of_a_volume_is_the_lowest_of_its_slice() -> None:
    volume = torch.rand(1, 1, 3, 600, 9)
    cut = crop(volume, torch.tensor([[599]]), torch.tensor([[0]]), (4, 4), torch.tensor([[[1]]]))
    assert cut[0, 0, 0, 0, 3, 0] == volume[0, 0, 1].min()
    assert lowest(ArraySource(volume[0]), 1).item() == pytest.approx(volume[0, 0, 1].min().item())


def test_nothing_is_copied_to_the_host() -> None:
    """On tensors without numbers: whoever asks for a number there has an error."""
    score = score_of(torch.empty(2, 2, 5, 9, 7, device="meta"))
    found = find_regions(score, (2, 2), 3, thickness=3, apart=1)
    rows, columns = to_pixels(found.rows, 9, 100), to_pixels(found.columns, 7, 90)
    for reference in (False, True):
        image = torch.empty(2, 1, 5, 100, 90, device="meta")
        cut = crop(image, rows, columns, (32, 32), found.slices[..., None], reference=reference)
        assert cut.shape == (2, 3, 1, 1, 32, 32)


def test_attention_by_hand() -> None:
    one = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        one.weight.fill_(1.0)
    features = torch.tensor([[[0.0], [1.0], [5.0]]])
    mean, weights = attend(features, one, one, one, torch.tensor([[True, True, False]]))
    score = math.tanh(1.0) / (1 + math.exp(-1.0))
    expected = math.exp(score) / (1 + math.exp(score))
    torch.testing.assert_close(weights, torch.tensor([[1 - expected, expected, 0.0]]))
    torch.testing.assert_close(mean, torch.tensor([[expected]]))
    mean, weights = attend(features, one, one, one, torch.tensor([[False, False, False]]))
    assert not mean.any() and not weights.any()
