"""What the example of volumes is trained on: made abdomens, and the two halves of a brain."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from streamingcnn import open_image
from streamingcnn.sources import NiftiImage
from streamingcnn.synthetic.abdomen import FAT, LESION, LIVER, make_abdomen
from tests.shared import shared


@pytest.fixture
def volumes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples" / "volume_segmentation"))
    yield import_module("volumes")
    sys.modules.pop("volumes")


def test_an_abdomen_is_its_seed_and_its_lesions_lie_in_the_liver() -> None:
    made, again, other = make_abdomen(3), make_abdomen(3), make_abdomen(4)
    assert np.array_equal(made.image, again.image) and np.array_equal(made.label, again.label)
    assert not np.array_equal(made.image, other.image)
    liver, lesion = made.label == 1, made.label == 2
    assert 0.05 < liver.mean() < 0.2 and 50 < lesion.sum() < 0.1 * liver.sum()
    assert abs(made.image[liver].mean() - LIVER) < 2 and abs(made.image[lesion].mean() - LESION) < 5
    # As dark as a lesion are others too, which are no class: in the spleen and the kidneys.
    dark = (made.image > FAT + 60) & (made.image < LIVER - 60) & (made.label == 0)
    assert dark.sum() > lesion.sum()
    grown = np.pad(liver | lesion, 1)
    for shift in (-1, 1):
        for axis in range(3):
            assert np.roll(grown, shift, axis)[1:-1, 1:-1, 1:-1][lesion].mean() > 0.9


def test_made_volumes_are_read_part_by_part(volumes: Any, tmp_path: Path) -> None:
    (made,) = volumes.made(tmp_path, [5], (16, 24, 20), write=True)
    image, label = made.read(((3, 9), (0, 24), (2, 20)))
    drawn = make_abdomen(5, (16, 24, 20))
    assert image.shape == (1, 1, 6, 24, 18) and label.shape == (1, 6, 24, 18)
    assert np.array_equal(label[0].numpy(), drawn.label[3:9, :, 2:])
    window = np.clip((drawn.image[3:9, :, 2:] + 160) / 200 - 1, -1, 1)
    assert np.allclose(image[0, 0].numpy(), window, atol=1e-6)
    volumes.write_nifti(tmp_path / "found.nii.gz", drawn.label, made.affine)
    found = nibabel.Nifti1Image.from_filename(tmp_path / "found.nii.gz")
    assert nibabel.aff2axcodes(found.affine) == ("L", "P", "S")
    assert np.array_equal(np.asarray(found.dataobj).T, drawn.label)


def test_the_brain_is_split_front_and_back(volumes: Any, tmp_path: Path) -> None:
    folder = shared("volumes")
    front, back = volumes.brain(folder, 8)
    assert front.shape == back.shape == (1, 1, 184, 112, 192)
    assert back.box[1][1] <= front.box[1][0]  # not one voxel is in both
    # A voxel of a prediction lies where it lies in the template.
    whole = open_image(folder / volumes.BRAIN[0])
    assert isinstance(whole, NiftiImage)
    (z, _), (y, _), (x, _) = front.box
    at = (10, 20, 30)  # x, y, z of the box
    there = nibabel.affines.apply_affine(whole.affine, (x + at[0], y + at[1], z + at[2]))
    assert np.allclose(nibabel.affines.apply_affine(front.affine, at), there)
    image, label = back.read(((90, 94), (0, 112), (0, 192)))
    assert image.shape == (1, 1, 4, 112, 192) and float(image.max()) <= 1
    assert set(label.unique().tolist()) == {0, 1, 2}
    assert float(image[0][label == 2].mean()) > float(image[0][label == 1].mean())  # white matter is brighter
