"""Where a slide has tissue: found, given, or all of it; and what a network then sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from streamingcnn.boxes import Box
from streamingcnn.slides import thumbnail, tissue_mask
from streamingcnn.sources import ArraySource, ReadError, SlideImage, open_image
from streamingcnn.synthetic import make_slide, write_slide

from .shared import shared

SLIDE = make_slide(3, tumour=True, size=(512, 768))


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tissue") / "slide.tif"
    write_slide(SLIDE, path)
    return path


def overlap(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_the_tissue_of_a_slide_is_found_to_a_few_percent(slide: Path) -> None:
    mask = tissue_mask(slide)
    assert mask.kept.shape == (32, 48)
    assert mask.mpp == pytest.approx((8.0, 8.0))
    assert mask.scale == (16.0, 16.0)
    truth = SLIDE.tissue_mask().reshape(32, 16, 48, 16).mean((1, 3)) > 0.5
    assert overlap(mask.kept, truth) > 0.93
    assert mask.share == pytest.approx(truth.mean(), abs=0.05)


def test_level_0_is_not_read_where_a_coarser_one_will_do(slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, real = list[tuple[int, ...]](), SlideImage._pixels

    def watched(self: SlideImage, box: Box) -> Tensor:
        read.append(self.shape)
        return real(self, box)

    monkeypatch.setattr(SlideImage, "_pixels", watched)
    tissue_mask(slide)
    assert read
    assert max(shape[1] for shape in read) <= 64  # the coarsest of three levels


def test_the_same_from_a_path_a_source_and_another_level(slide: Path) -> None:
    first = tissue_mask(slide)
    assert (tissue_mask(open_image(slide)).kept == first.kept).all()
    coarser = tissue_mask(open_image(slide, level=1))
    assert coarser.size == first.size
    assert coarser.scale == first.scale
    assert (coarser.kept == first.kept).all()
    between = tissue_mask(open_image(slide, mpp=0.7))
    assert between.size == first.size
    assert (between.kept == first.kept).all()
    pixels = ArraySource(open_image(slide).read_all())
    plain = tissue_mask(pixels)  # knows nothing of micrometres: as fine as 1024 pixels
    assert plain.mpp is None
    blocks = plain.blocks((512, 768), 16)
    assert overlap(blocks, first.kept) > 0.85


def test_a_slide_that_is_all_tissue_is_kept_and_one_of_glass_is_not() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 3, (3, 256, 256))
    tissue = ArraySource(np.clip([[[190]], [[110]], [[160]]] + 8 * noise, 0, 255).astype(np.uint8))
    glass = ArraySource(np.clip(240 + noise, 0, 255).astype(np.uint8))
    assert tissue_mask(tissue).share == 1
    empty = tissue_mask(glass)
    assert empty.share == 0
    with pytest.raises(ValueError, match="keeps nothing of the image; give a mask"):
        empty.over(glass)


def test_specks_go_and_holes_are_filled() -> None:
    picture = np.full((3, 200, 200), 240, np.uint8)
    picture[1, 40:160, 40:160] = 120  # tissue ...
    picture[1, 90:100, 90:100] = 240  # ... with a hole of 100 pixels ...
    picture[1, 10:15, 10:15] = 120  # ... and dust
    found = tissue_mask(ArraySource(picture)).kept
    assert found[90:100, 90:100].all()
    assert not found[:30].any()
    as_they_are = tissue_mask(ArraySource(picture), speck=1, hole=1).kept
    assert not as_they_are[94, 94]
    assert as_they_are[12, 12]


def test_grey_images_need_a_mask_of_their_own() -> None:
    with pytest.raises(ValueError, match=r"1 channel\(s\) has no colour .* 'none'"):
        tissue_mask(ArraySource(np.zeros((1, 64, 64), np.uint8)))
    assert tissue_mask(ArraySource(np.zeros((1, 64, 64), np.uint8)), "none").share == 1


# ------------------------------------------------------------------------------------------------------ own masks


@pytest.mark.parametrize("ending", [".npy", ".png", ".tif"])
@pytest.mark.parametrize("side", [1, 3])
def test_a_mask_in_a_file_is_taken_at_any_size_of_the_same_aspect(
    slide: Path, tmp_path: Path, ending: str, side: int
) -> None:
    own = np.zeros((64 * side // 2, 96 * side // 2), np.uint8)
    own[: own.shape[0] // 2] = 255
    path = tmp_path / f"mask{ending}"
    if ending == ".npy":
        np.save(path, own)
    elif ending == ".tif":
        tifffile.imwrite(path, own)
    else:
        Image.fromarray(own).save(path)
    mask = tissue_mask(slide, path)
    assert (mask.kept == (own > 0)).all()
    assert mask.scale == (512 / own.shape[0], 768 / own.shape[1])
    assert mask.share == 0.5
    assert str(path) in mask.how


@pytest.mark.parametrize("limit", [100 * 100, 500 * 700])  # Pillow refuses the one and warns of the other
def test_a_pyramid_of_a_mask_is_read_at_a_low_level(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)  # as if it were too large to be read whole
    own = np.zeros((512, 768), np.uint8)
    own[100:101, 100:101] = 1  # one pixel of the mask is enough
    path = tmp_path / "mask.tif"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(own, tile=(256, 256))
        tiff.write(own[::2, ::2], tile=(256, 256), subfiletype=1)
    mask = tissue_mask(slide, path)
    assert mask.kept.sum() == 1
    assert mask.kept[100, 100]


def test_a_mask_of_another_aspect_is_refused_with_both_sizes(slide: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "mask.npy", np.ones((100, 100), bool))
    with pytest.raises(ValueError, match=r"100 x 100 .* 512 x 768: the aspects 1.000 and 1.500 differ"):
        tissue_mask(slide, tmp_path / "mask.npy")
    with pytest.raises(ValueError, match=r"512 x 512 .* 512 x 768"):
        tissue_mask(slide).over(ArraySource(np.zeros((3, 512, 512), np.uint8)))


def test_masks_that_are_none_are_named(slide: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no mask at .*gone\.png"):
        tissue_mask(slide, tmp_path / "gone.png")
    for name in ("text.png", "text.npy"):
        (tmp_path / name).write_text("not a mask")
        with pytest.raises(ReadError, match=name):
            tissue_mask(slide, tmp_path / name)
    with pytest.raises(ValueError, match=r"shape \(2, 3, 4\); needed are rows and columns"):
        tissue_mask(slide, np.ones((2, 3, 4)))


# ------------------------------------------------------------------------------------------ what a network then sees


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_masked_source_keeps_the_tissue_at_every_level_and_nothing_far_from_it(slide: Path, level: int) -> None:
    mask, source = tissue_mask(slide), open_image(slide, level=level)
    masked = mask.over(source, fill=255, block=16)
    pixels, seen = source.read_all(), masked.read(tuple((0, extent) for extent in source.shape[1:]))
    at_level = np.kron(mask.kept, np.ones((16 // 2**level,) * 2, bool))
    kept = torch.from_numpy(at_level)
    assert torch.equal(seen[:, kept], pixels[:, kept])
    height, width = source.shape[1:]
    blocks = mask.blocks((height, width), 16)
    outside = torch.from_numpy(~np.kron(blocks, np.ones((16, 16), bool)))
    assert outside.any()
    assert (seen[:, outside] == 255).all()
    counts = at_level.reshape(blocks.shape[0], 16, blocks.shape[1], 16).any((1, 3))
    assert (blocks == counts).all()


def test_no_mask_keeps_every_pixel(slide: Path) -> None:
    source = open_image(slide, 1)
    everything = tissue_mask(slide, "none").over(source)
    box = ((3, 200), (5, 300))
    assert torch.equal(everything.read(box), source.read(box))
    constant = everything.constant_blocks()
    assert constant is not None and constant.share == 0


# ------------------------------------------------------------------------------------------------------- pictures


def test_a_thumbnail_is_the_mean_of_whole_blocks(slide: Path) -> None:
    pixels = ArraySource(open_image(slide).read_all())
    small = thumbnail(pixels, longest=100)
    assert small.pixels.shape == (64, 96, 3)
    assert small.scale == (8, 8)
    expected = pixels.array.float().reshape(3, 64, 8, 96, 8).mean((2, 4)).permute(1, 2, 0)
    torch.testing.assert_close(torch.from_numpy(small.pixels), expected)
    odd = thumbnail(ArraySource(np.zeros((3, 101, 203), np.uint8)), longest=50)
    assert max(odd.pixels.shape) <= 50
    assert odd.size == (101, 203)


def test_the_preview_shows_tissue_as_it_is_and_dims_the_rest(slide: Path) -> None:
    mask = tissue_mask(slide)
    shown = np.asarray(mask.preview(slide, longest=768)).astype(int)
    assert shown.shape[:2] == (512, 768)
    source = open_image(slide).read_all().permute(1, 2, 0).numpy().astype(int)
    kept = np.kron(mask.kept, np.ones((16, 16), bool))
    assert (shown[kept] == source[kept]).all(1).mean() > 0.9  # but the line
    assert shown[~kept].mean() < source[~kept].mean() - 60


def test_the_tissue_of_a_real_slide() -> None:
    path = shared("slides/CMU-1-Small-Region.svs")
    mask = tissue_mask(path)
    assert mask.mpp == pytest.approx((7.98, 7.98), abs=0.05)
    assert 0.3 < mask.share < 0.5
    assert mask.kept[-20:, 40:90].mean() > 0.97  # dermis
    assert not mask.kept[:60, :20].any()  # glass
