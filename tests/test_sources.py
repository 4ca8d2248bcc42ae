"""Slides as sources of boxes: right pixels, right units, and errors that name the file and the box."""

from __future__ import annotations

import multiprocessing
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from torch import Tensor

from streamingcnn.boxes import Box
from streamingcnn.sources import FileImage, ReadError, ResampledSource, Source, open_image
from streamingcnn.synthetic import Slide, make_slide, write_slide
from streamingcnn.synthetic.tiff import halve


@pytest.fixture(scope="module")
def slide() -> Slide:
    return make_slide(11, tumour=True, size=(512, 768))


@pytest.fixture(scope="module")
def pixels(slide: Slide) -> Tensor:
    return torch.from_numpy(slide.pixels()).permute(2, 0, 1)


@pytest.fixture(scope="module")
def path(slide: Slide, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slides") / "slide.tif"
    write_slide(slide, path)
    return path


def test_a_slide_is_a_source(path: Path) -> None:
    image = open_image(path)
    assert isinstance(image, Source)
    assert (image.shape, image.dtype, image.axes) == ((3, 512, 768), torch.uint8, "CYX")
    assert image.mpp == pytest.approx((0.5, 0.5))
    assert image.downsample == 1
    assert repr(str(path)) in repr(image)


def test_every_box_is_the_same_as_in_the_whole(path: Path, pixels: Tensor) -> None:
    image = open_image(str(path))
    assert torch.equal(image.read_all(), pixels)
    draw = random.Random(0)
    for _ in range(20):
        (top, bottom), (left, right) = (sorted(draw.sample(range(extent + 1), 2)) for extent in (512, 768))
        box = ((top, bottom), (left, right))
        assert torch.equal(image.read(box), pixels[:, top:bottom, left:right]), box


def test_an_empty_box_is_no_pixels(path: Path) -> None:
    assert open_image(path).read(((5, 5), (0, 7))).shape == (3, 0, 7)


def test_levels_have_their_own_coordinates_and_units(path: Path, pixels: Tensor) -> None:
    half = torch.from_numpy(halve(pixels.permute(1, 2, 0).numpy())).permute(2, 0, 1)
    image = open_image(path, level=1)
    assert image.shape == (3, 256, 384)
    assert image.mpp == pytest.approx((1.0, 1.0))
    assert torch.equal(image.read_all(), half)
    assert torch.equal(image.read(((33, 97), (201, 384))), half[:, 33:97, 201:384])
    assert open_image(path, level=-1).shape == (3, 64, 96)


@pytest.mark.parametrize(
    "box", [((0, 513), (0, 10)), ((-1, 5), (0, 10)), ((9, 5), (0, 10)), ((0, 10), (700, 769)), ((0, 10),)]
)
def test_a_box_outside_is_refused(path: Path, box: Box) -> None:
    with pytest.raises(ValueError, match=r"slide\.tif: the box .* is not inside level 0, which is \(\(0, 512\)"):
        open_image(path).read(box)


def test_a_level_that_is_not_there_is_refused_with_those_that_are(path: Path) -> None:
    with pytest.raises(ValueError, match=r"no level 7; its levels are .* 0: 512x768, 1: 256x384, 2: 128x192"):
        open_image(path, level=7)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no slide at .*nothing\.tif"):
        open_image(tmp_path / "nothing.tif")


@pytest.mark.parametrize(
    "content, said",
    [
        (b"path,label,split\n", r"is not an image that can be read; what can be read are slides .*\.nii"),
        (b"", r"is empty \(0 bytes\)"),
        (b"\x89PNG\r\n\x1a\n" + bytes(64), r"is no PNG or JPEG, or is damaged"),
        (b"II*\0" + bytes(64), r"is no TIFF, or its header is damaged"),
        (b"\x93NUMPY\1\0", r"is no array of numpy, or is damaged"),
        (b"\x1f\x8b" + bytes(9), r"is not an image that can be read"),
    ],
    ids=["text", "empty", "png", "tiff", "npy", "gzip"],
)
def test_a_file_that_is_no_image_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(ReadError, match=rf"labels\.csv {said}"):
        open_image(tmp_path / "labels.csv")


def test_an_unreadable_region_is_named_with_file_and_box(tmp_path: Path, path: Path, pixels: Tensor) -> None:
    """A tile whose bytes are damaged: boxes over it fail by name, others are read as before."""
    damaged = tmp_path / "damaged.tif"
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        offset, length = tiff.pages[0].dataoffsets[-1], tiff.pages[0].databytecounts[-1]
    content[offset : offset + length] = bytes(length)
    damaged.write_bytes(content)
    image = open_image(damaged)
    with pytest.raises(ReadError, match=r"damaged\.tif: the region \(\(256, 300\), \(600, 700\)\) of level 0"):
        image.read(((256, 300), (600, 700)))
    assert torch.equal(image.read(((0, 256), (0, 256))), pixels[:, :256, :256])


def test_a_truncated_slide_is_an_error_and_not_black_pixels(tmp_path: Path, path: Path) -> None:
    short = tmp_path / "short.tif"
    short.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ReadError, match=r"short\.tif"):
        open_image(short).read_all()


def test_a_slide_without_resolution_says_none(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "bare.tif", np.zeros((256, 256, 3), np.uint8), tile=(256, 256), photometric="rgb")
    assert open_image(tmp_path / "bare.tif").mpp is None


def test_it_pickles_and_opens_its_own_handle_in_another_process(path: Path, pixels: Tensor) -> None:
    image = open_image(path)
    image.read(((0, 8), (0, 8)))
    again = pickle.loads(pickle.dumps(image))
    assert torch.equal(again.read(((0, 8), (0, 8))), pixels[:, :8, :8])
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        (total,) = pool.map(_sum_of, [image])
    assert total == int(pixels.long().sum())


def _sum_of(image: FileImage | ResampledSource) -> int:
    return int(image.read_all().long().sum())


def test_after_close_it_opens_again(path: Path, pixels: Tensor) -> None:
    image = open_image(path)
    image.close()
    assert torch.equal(image.read(((0, 8), (0, 8))), pixels[:, :8, :8])
