"""Synthetic mammograms and volumes: only fine structure tells the kinds of lesions apart."""

from __future__ import annotations

import numpy as np
import pytest

from streamingcnn.synthetic.mammograms import lesion, make_mammogram
from streamingcnn.synthetic.tomosynthesis import make_volume


def test_the_same_seed_gives_the_same_pixels() -> None:
    one, two, other = (make_mammogram(seed, malignant=True, size=(192, 160)) for seed in (3, 3, 4))
    assert np.array_equal(one.image, two.image) and np.array_equal(one.masks, two.masks)
    assert not np.array_equal(one.image, other.image)


def test_a_lesion_is_all_that_a_label_changes() -> None:
    without, with_one = (make_mammogram(5, malignant=m, size=(384, 288)) for m in (False, True))
    changed = without.image != with_one.image
    y, x = np.nonzero(with_one.masks[1])
    at, radius = (y.mean(), x.mean()), np.sqrt(with_one.masks[1].sum() / np.pi)
    assert 16 <= 2 * radius <= 60
    away = np.hypot(*(np.indices(changed.shape) - np.reshape(at, (2, 1, 1))))
    assert changed[away < radius / 2].all()
    assert not changed[away > 3.2 * radius].any()


@pytest.mark.parametrize("radius", [16.0, 22.5, 29.0])
def test_both_kinds_have_the_same_mean_at_every_distance(radius: float) -> None:
    smooth, spiculated = (lesion(radius, kind, np.random.default_rng(1)) for kind in (False, True))
    half = smooth.shape[0] // 2
    ring = np.hypot(*(np.indices(smooth.shape) - half)).astype(int)
    inside = ring <= half - 1
    means = [np.bincount(ring[inside], each[inside]) / np.bincount(ring[inside]) for each in (smooth, spiculated)]
    assert np.abs(means[0] - means[1]).max() < 1e-5
    assert np.abs(smooth - spiculated).max() > 0.4


def test_pixels_are_black_outside_and_between_0_and_1_inside() -> None:
    image = make_mammogram(0, benign=True, malignant=True, size=(256, 192)).image
    assert image.dtype == np.float32 and image.min() == 0 and image.max() <= 1
    assert (image[:, -1] == 0).all() and (image[128, :20] > 0).all()


def test_a_lesion_of_a_volume_is_sharp_in_three_slices() -> None:
    volume, empty = (make_volume(2, malignant=m, size=(16, 160, 128)) for m in (True, False))
    ((kind, at, *_),) = volume.lesions
    assert kind == 1 and volume.mask(at).any() and not volume.mask((at + 8) % 16).any()
    strongest = [np.abs(volume.slice(z) - empty.slice(z)).max() for z in range(16)]
    assert strongest[at] > 0.1
    assert all(strongest[z] < strongest[at] for z in range(16) if abs(z - at) > 1)
    assert np.array_equal(volume.array()[3], volume.slice(3))
