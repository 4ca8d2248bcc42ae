"""Synthetic slides: the label is in the nuclei and nowhere else; what is written is what was rendered."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile

from streamingcnn.files import whole_file, whole_folder
from streamingcnn.slides import mask_of, read_asap, read_cases
from streamingcnn.synthetic import Cohort, Slide, make_large_slide, make_slide, write_slide
from streamingcnn.synthetic.slides import LESION_SHARE, TILE
from streamingcnn.synthetic.tiff import halve

from .tiff_pages import pages

SMALL = (512, 512)


def with_nuclei(slide: Slide, *, atypical: bool) -> Slide:
    return dataclasses.replace(slide, atypical=np.full(len(slide.nuclei), atypical))


def absorbance(slide: Slide) -> np.ndarray:
    rows, columns = slide.grid
    tiles = [[slide.nuclear_absorbance(r, c) for c in range(columns)] for r in range(rows)]
    return np.block(tiles)


# ------------------------------------------------------------------------------------- what tells them apart


def test_both_kinds_of_nuclei_absorb_the_same() -> None:
    slide = make_slide(0, tumour=True)
    normal = absorbance(with_nuclei(slide, atypical=False))
    atypical = absorbance(with_nuclei(slide, atypical=True))
    assert np.abs(normal - atypical).max() > 0.3  # they are different nuclei
    assert atypical.sum() == pytest.approx(normal.sum(), rel=1e-12)
    assert normal.sum() == pytest.approx(slide.nuclei[:, 3].sum(), rel=1e-12)


def test_after_averaging_both_kinds_have_the_same_shade() -> None:
    """Tissue of atypical nuclei only and tissue of normal nuclei only differ by less than 1 of 255."""
    slide = make_slide(1, tumour=False)
    shades = [with_nuclei(slide, atypical=kind).pixels()[slide.tissue_mask()].mean(0) for kind in (False, True)]
    without = dataclasses.replace(slide, nuclei=slide.nuclei[:0], atypical=slide.atypical[:0])
    empty = without.pixels()[slide.tissue_mask()].mean(0)
    assert np.all(empty - shades[0] > 10)  # nuclei do darken the tissue
    np.testing.assert_allclose(shades[0], shades[1], atol=1.0)


def test_a_normal_nucleus_is_a_disc_and_an_atypical_one_a_ring_with_a_nucleolus() -> None:
    slide = make_slide(0, tumour=False, size=SMALL)
    one = dataclasses.replace(slide, nuclei=np.array([[100.5, 120.5, 1.0, 22.0]]), atypical=np.array([False]))
    profile = one.nuclear_absorbance(0, 0)[100, 120:130]
    assert np.all(profile[:3] > 0.7)
    assert np.all(profile[4:] == 0)
    profile = with_nuclei(one, atypical=True).nuclear_absorbance(0, 0)[100, 120:130]
    assert profile[0] > 1.0  # nucleolus
    assert profile[2] < 0.05  # clear between it and the ring
    assert profile[4] > 0.2  # ring
    assert np.all(profile[6:] == 0)


@pytest.mark.parametrize("seed", range(12))
def test_lesions_cover_at_most_six_percent_of_the_tissue(seed: int) -> None:
    slide = make_slide(seed, tumour=True)
    lesion, tissue = slide.lesion_mask(), slide.tissue_mask()
    assert 0.01 < lesion.sum() / tissue.sum() <= LESION_SHARE
    assert not (lesion & ~tissue).any()
    assert 2 <= len(slide.lesions) <= 4


def test_atypical_nuclei_are_scattered_in_every_slide_and_dense_in_lesions() -> None:
    normal, tumour = make_slide(3, tumour=False), make_slide(3, tumour=True)
    assert 0.001 < normal.atypical.mean() < 0.02
    at = np.floor(tumour.nuclei[:, :2]).astype(int)
    in_lesion = tumour.lesion_mask()[at[:, 0], at[:, 1]]
    assert tumour.atypical[in_lesion].mean() > 0.85
    assert 0.001 < tumour.atypical[~in_lesion].mean() < 0.03
    # as many nuclei per area inside as outside: density does not tell
    inside = in_lesion.sum() / tumour.lesion_mask().sum()
    outside = (~in_lesion).sum() / (tumour.tissue_mask() & ~tumour.lesion_mask()).sum()
    assert 0.7 < inside / outside < 1.4


def test_stain_varies_from_slide_to_slide() -> None:
    means = np.array([make_slide(s, tumour=False, size=SMALL).pixels().mean((0, 1)) for s in range(6)])
    assert np.all(means.std(0) > 1)


# ------------------------------------------------------------------------------------------------ rendering


def test_the_seed_decides_every_pixel() -> None:
    pixels = make_slide(5, tumour=True, size=SMALL).pixels()
    assert np.array_equal(pixels, make_slide(5, tumour=True, size=SMALL).pixels())
    assert not np.array_equal(pixels, make_slide(6, tumour=True, size=SMALL).pixels())
    assert not np.array_equal(pixels, make_slide(5, tumour=False, size=SMALL).pixels())


def test_a_tile_alone_is_the_same_as_in_the_whole() -> None:
    slide = make_slide(2, tumour=True, size=(512, 768))
    whole = slide.pixels()
    assert whole.shape == (512, 768, 3)
    np.testing.assert_array_equal(slide.tile(1, 2), whole[TILE:, 2 * TILE :])


def test_nuclei_go_on_over_the_seams_of_tiles() -> None:
    slide = make_slide(0, tumour=False, size=SMALL)
    one = dataclasses.replace(slide, nuclei=np.array([[256.2, 255.7, 1.0, 22.0]]), atypical=np.array([True]))
    parts = [one.nuclear_absorbance(row, column).sum() for row in (0, 1) for column in (0, 1)]
    assert min(parts) > 1
    assert sum(parts) == pytest.approx(22.0)


@pytest.mark.parametrize("size", [(1000, 1024), (256, 512)])
def test_a_size_that_does_not_fit_is_refused_with_one_that_does(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"whole tiles of 256 .* use \((1024|512), "):
        make_slide(0, tumour=False, size=size)


# -------------------------------------------------------------------------------------------------- writing


def test_the_file_is_a_tiled_pyramid_with_its_resolution(tmp_path: Path) -> None:
    slide = make_slide(4, tumour=True, size=(512, 768))
    write_slide(slide, tmp_path / "slide.tif")
    with tifffile.TiffFile(tmp_path / "slide.tif") as tiff:
        assert [page.shape[:2] for page in tiff.pages] == [(512, 768), (256, 384), (128, 192), (64, 96)]
        assert [int(page.subfiletype) for page in pages(tiff)] == [0, 1, 1, 1]
        assert all(page.tilewidth == page.tilelength == TILE for page in pages(tiff))
        top, second = tiff.pages[0].asarray(), tiff.pages[1].asarray()
    np.testing.assert_array_equal(top, slide.pixels())
    np.testing.assert_array_equal(second, halve(slide.pixels()))
    with openslide.OpenSlide(tmp_path / "slide.tif") as opened:
        assert opened.properties["openslide.vendor"] == "generic-tiff"
        assert float(opened.properties["openslide.mpp-x"]) == pytest.approx(0.5)
        assert float(opened.properties["openslide.mpp-y"]) == pytest.approx(0.5)
        assert opened.level_dimensions == ((768, 512), (384, 256), (192, 128), (96, 64))


def test_halve_is_the_rounded_mean() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    means = pixels[:6, :8].astype(float).reshape(3, 2, 4, 2, 3).mean((1, 3))
    np.testing.assert_array_equal(halve(pixels), np.floor(means + 0.5))


def test_a_cohort_is_a_table_images_and_outlines(tmp_path: Path) -> None:
    cohort = Cohort(seed=3, train=2, test=2, size=SMALL)
    written = []
    cases = read_cases(cohort.write(tmp_path / "set", on_slide=lambda: written.append(1)))
    assert [(case.name, case.label, case.split) for case in cases] == [
        ("train_000", 0, "train"),
        ("train_001", 1, "train"),
        ("test_000", 0, "test"),
        ("test_001", 1, "test"),
    ]
    assert len(written) == 4
    assert [case.outlines.exists() for case in cases] == [False, True, False, True]
    slide = cohort.slide("test", 1)
    outlines = read_asap(cases[3].outlines)
    assert {outline.group for outline in outlines} == {"Tumor"}
    for outline, lesion in zip(outlines, slide.lesions, strict=True):
        np.testing.assert_allclose(outline.points, lesion, atol=1e-3)
    drawn, truth = mask_of(outlines, SMALL), slide.lesion_mask()
    assert (drawn & truth).sum() / (drawn | truth).sum() > 0.95
    pixels = [slide.pixels().tobytes() for slide in (cohort.slide(s, n) for s in ("train", "test") for n in (0, 1))]
    assert len(set(pixels)) == 4


def test_a_cohort_is_not_written_twice_and_replaced_by_another(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    table = Cohort(seed=0, train=0, test=1, size=SMALL).write(folder)
    first = table.stat().st_mtime_ns
    assert Cohort(seed=0, train=0, test=1, size=SMALL).write(folder).stat().st_mtime_ns == first
    Cohort(seed=1, train=0, test=2, size=SMALL).write(folder)
    assert json.loads((folder / "cohort.json").read_text())["seed"] == 1
    assert len(read_cases(table)) == 2
    assert [each.name for each in tmp_path.iterdir()] == ["set"]


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("three years of work")
    with pytest.raises(FileExistsError, match="something else than synthetic slides"):
        Cohort(train=0, test=1, size=SMALL).write(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["thesis.txt"]


# --------------------------------------------------------------------------------- a disk that does not play


def test_a_full_disk_leaves_nothing_and_says_how_much_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = tifffile.TiffWriter.write

    def fails_at_the_third_level(self: tifffile.TiffWriter, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("shape", (0,))[0] == 128:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, *args, **kwargs)

    monkeypatch.setattr(tifffile.TiffWriter, "write", fails_at_the_third_level)
    with pytest.raises(OSError, match=r"No space left on device.* free in .*choose another folder") as caught:
        Cohort(train=0, test=2, size=SMALL).write(tmp_path / "set")
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """The same on a file system of one megabyte, where the system lets an ordinary user mount one."""
    code = (
        "from pathlib import Path; from streamingcnn.synthetic import Cohort\n"
        "try: Cohort(train=0, test=4, size=(512, 512)).write(Path('small/set'))\n"
        "except OSError as error: print(error); print(list(Path('small').iterdir()))"
    )
    (tmp_path / "small").mkdir()
    mount = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    script = 'mount -t tmpfs -o size=1m tmpfs small || exit 77; "$0" -c "$1"'
    root = str(Path(__file__).parents[1])
    try:
        ended = subprocess.run(
            [*mount, script, sys.executable, code],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": root},
            capture_output=True,
            text=True,
            timeout=120,
        )
    except FileNotFoundError:
        pytest.skip("no unshare on this system")
    if ended.returncode:
        pytest.skip(f"this system mounts no file system for us: {ended.stderr.strip()}")
    message, left = ended.stdout.splitlines()
    assert "No space left on device" in message
    assert left == "[]"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="could not write: Not a directory"):
        Cohort(train=0, test=1, size=SMALL).write(tmp_path / "file" / "set")


def test_an_older_file_stays_when_the_new_one_fails(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def fail() -> None:
        with whole_file(path) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]
    with whole_file(path) as partial:
        partial.write_text("new")
    assert path.read_text() == "new"


def test_an_older_folder_stays_when_the_new_one_fails(tmp_path: Path) -> None:
    path = tmp_path / "set"
    path.mkdir()
    (path / "a").write_text("old")

    def fail() -> None:
        with whole_folder(path) as partial:
            (partial / "a").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert (path / "a").read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["set"]


# ----------------------------------------------------------------------------------------------- large slides


def test_a_large_slide_is_glass_with_pieces_of_tissue(tmp_path: Path) -> None:
    slide = make_large_slide(5, (2048, 3072), tissue=0.1, pieces=2)
    assert len(slide.pieces) == 2
    mask = slide.tissue_mask(128)
    assert mask.shape == (16, 24)
    assert 0.05 < mask.mean() < 0.25
    write_slide(slide, tmp_path / "large.tif")
    with openslide.OpenSlide(tmp_path / "large.tif") as opened:
        assert opened.level_dimensions[:3] == ((3072, 2048), (1536, 1024), (768, 512))
        assert opened.level_dimensions[-1] == (96, 64)
        pixels = np.array(opened.read_region((0, 0), 0, (3072, 2048)))[..., :3]
        half = np.array(opened.read_region((0, 0), 1, (1536, 1024)))[..., :3]
        quarter = np.array(opened.read_region((0, 0), 2, (768, 512)))[..., :3]
    assert np.array_equal(half, halve(pixels))
    assert np.array_equal(quarter, halve(half))
    glass = ~np.repeat(np.repeat(mask, 128, 0), 128, 1)
    assert pixels[glass].mean() > 225
    assert len(np.unique(slide.tile(0, 0).reshape(-1, 3), axis=0)) > 2  # dust
    piece, (top, left) = slide.pieces[0]
    assert np.array_equal(pixels[top : top + 256, left : left + 256], piece.tile(0, 0))


def test_a_large_slide_without_room_for_its_pieces_is_refused() -> None:
    with pytest.raises(ValueError, match="each piece needs at least 512 pixels"):
        make_large_slide(0, (1024, 1024), tissue=0.9, pieces=9)
