"""Every kind of image file, against the array it was written from: all pixels, every box, right units, clear errors."""

from __future__ import annotations

import gzip
import multiprocessing
import pickle
import random
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from streamingcnn import open_image
from streamingcnn.boxes import Box
from streamingcnn.sources import (
    FileImage,
    FlatImage,
    MaskedSource,
    NiftiImage,
    NpyImage,
    ReadError,
    ResampledSource,
    ScaledSource,
    SlideImage,
    Source,
    TiffImage,
    ZarrImage,
)
from streamingcnn.sources import tiff as tiff_module

from .tiff_pages import pages

DRAW = np.random.default_rng(7)
RGB = DRAW.integers(0, 256, (300, 420, 3), dtype=np.uint8)
GREY16 = DRAW.integers(0, 65536, (200, 333), dtype=np.uint16)
CHANNELS = DRAW.normal(size=(4, 150, 170)).astype(np.float32)
STACK = DRAW.integers(0, 256, (6, 90, 110), dtype=np.uint8)


def colour(array: Any) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, 0)))


def tiff(array: Any, **how: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        tifffile.imwrite(folder / "image.tif", array, **how)
        return folder / "image.tif"

    return write


def flat(mode: str, array: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        options: dict[str, Any] = {"quality": 95} if mode == "jpg" else {}
        Image.fromarray(array).save(folder / f"image.{mode}", **options)
        return folder / f"image.{mode}"

    return write


def npy(array: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        np.save(folder / "image.npy", array)
        return folder / "image.npy"

    return write


def zarr_array(array: Any, version: int, **attributes: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        zarr = pytest.importorskip("zarr")
        chunks = tuple(min(64, size) for size in array.shape)
        made = zarr.create_array(folder / "image.zarr", data=array, chunks=chunks, zarr_format=version)
        made.attrs.update(attributes)
        return folder / "image.zarr"

    return write


def nifti(array: Any, ending: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        nibabel = pytest.importorskip("nibabel")
        made = nibabel.Nifti1Image(array.T, np.diag([0.5, 0.5, 2.0, 1]))
        nibabel.save(made, folder / f"image{ending}")
        return folder / f"image{ending}"

    return write


TILED: dict[str, Any] = {"tile": (64, 64), "compression": "adobe_deflate"}
# name -> how it is written, what is read, the class that reads it
KINDS: dict[str, tuple[Callable[[Path], Path], torch.Tensor, type]] = {
    "tiff, colours in tiles": (tiff(RGB, photometric="rgb", **TILED), colour(RGB), SlideImage),
    "tiff, colours in strips": (
        tiff(RGB, photometric="rgb", rowsperstrip=17, compression="adobe_deflate"),
        colour(RGB),
        TiffImage,
    ),
    "tiff, not packed": (tiff(RGB, photometric="rgb"), colour(RGB), TiffImage),
    "tiff, 16 bits": (tiff(GREY16, **TILED), torch.from_numpy(GREY16)[None], TiffImage),
    "tiff, 16 bits, big-endian": (tiff(GREY16, byteorder=">", **TILED), torch.from_numpy(GREY16)[None], TiffImage),
    "tiff, predictor": (tiff(GREY16, predictor=True, **TILED), torch.from_numpy(GREY16)[None], TiffImage),
    "tiff, planes of floats": (
        tiff(CHANNELS, photometric="minisblack", planarconfig="separate", **TILED),
        torch.from_numpy(CHANNELS),
        TiffImage,
    ),
    "tiff, pages along z": (
        tiff(STACK, photometric="minisblack", metadata={"axes": "ZYX"}, **TILED),
        torch.from_numpy(STACK)[None],
        TiffImage,
    ),
    "ome-tiff, channels": (
        tiff(CHANNELS, ome=True, photometric="minisblack", metadata={"axes": "CYX"}, **TILED),
        torch.from_numpy(CHANNELS),
        TiffImage,
    ),
    "ome-tiff, channels and z": (
        tiff(STACK.reshape(2, 3, 90, 110), ome=True, photometric="minisblack", metadata={"axes": "CZYX"}, **TILED),
        torch.from_numpy(STACK.reshape(2, 3, 90, 110)),
        TiffImage,
    ),
    "ome-tiff, z and channels": (
        tiff(STACK.reshape(3, 2, 90, 110), ome=True, photometric="minisblack", metadata={"axes": "ZCYX"}, **TILED),
        torch.from_numpy(STACK.reshape(3, 2, 90, 110).swapaxes(0, 1).copy()),
        TiffImage,
    ),
    "png": (flat("png", RGB), colour(RGB), FlatImage),
    "png, grey": (flat("png", RGB[..., 0]), torch.from_numpy(RGB[None, ..., 0].copy()), FlatImage),
    "png, 16 bits": (flat("png", GREY16), torch.from_numpy(GREY16)[None], FlatImage),
    "npy, colours last": (npy(RGB), colour(RGB), NpyImage),
    "npy, grey": (npy(GREY16), torch.from_numpy(GREY16)[None], NpyImage),
    "npy, a volume of channels": (
        npy(STACK.reshape(2, 3, 90, 110)),
        torch.from_numpy(STACK.reshape(2, 3, 90, 110)),
        NpyImage,
    ),
    "zarr 2": (zarr_array(CHANNELS, 2), torch.from_numpy(CHANNELS), ZarrImage),
    "zarr 3": (zarr_array(RGB, 3), colour(RGB), ZarrImage),
    "zarr, named axes": (
        zarr_array(STACK, 2, _ARRAY_DIMENSIONS=["z", "y", "x"]),
        torch.from_numpy(STACK)[None],
        ZarrImage,
    ),
    "nifti": (nifti(STACK, ".nii"), torch.from_numpy(STACK)[None], NiftiImage),
    "nifti, packed": (nifti(STACK, ".nii.gz"), torch.from_numpy(STACK)[None], NiftiImage),
    "nifti, channels": (
        nifti(STACK.reshape(2, 3, 90, 110), ".nii.gz"),
        torch.from_numpy(STACK.reshape(2, 3, 90, 110)),
        NiftiImage,
    ),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, torch.Tensor, type]:
    write, expected, read_by = KINDS[request.param]
    return write(tmp_path), expected, read_by


def test_every_box_is_that_of_the_array(kind: tuple[Path, torch.Tensor, type]) -> None:
    path, expected, read_by = kind
    image = open_image(path)
    assert isinstance(image, Source)
    assert type(image) is read_by
    assert (image.shape, image.dtype) == (tuple(expected.shape), expected.dtype)
    assert image.axes == ("CYX" if expected.dim() == 3 else "CZYX")
    assert torch.equal(image.read_all(), expected)
    draw = random.Random(0)
    for _ in range(12):
        box: Box = tuple(
            (low, high) for low, high in (sorted(draw.sample(range(extent + 1), 2)) for extent in expected.shape[1:])
        )
        at = (slice(None), *(slice(low, high) for low, high in box))
        found = image.read(box)
        assert torch.equal(found, expected[at]), box
        found.zero_()  # what was read is the reader's own
    assert torch.equal(image.read_all(), expected)
    with pytest.raises(ValueError, match="is not inside level 0"):
        image.read(((0, expected.shape[1] + 1), *((0, 1),) * (expected.dim() - 2)))
    with pytest.raises(ValueError, match="has no level 7"):
        open_image(path, level=7)
    image.close()
    assert torch.equal(image.read_all(), expected)


def _sum_of(image: Any) -> float:
    return float(image.read_all().double().sum())


def test_each_process_opens_its_own_handle(kind: tuple[Path, torch.Tensor, type]) -> None:
    """After a fork, and after pickling to a process that starts anew; the parent's goes on reading."""
    path, expected, _ = kind
    image = open_image(path)
    image.read_all()
    again = pickle.loads(pickle.dumps(image))
    assert torch.equal(again.read_all(), expected)
    if sys.platform == "linux":
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.map(_sum_of, [image] * 4) == [_sum_of(image)] * 4
    assert torch.equal(image.read_all(), expected)


def test_sources_work_in_a_spawned_process(tmp_path: Path) -> None:
    images = []
    for name in ("tiff, 16 bits", "png", "nifti, packed", "zarr 3", "npy, grey"):
        folder = tmp_path / name.replace(" ", "")
        folder.mkdir()
        images.append(open_image(KINDS[name][0](folder)))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(_sum_of, images) == [_sum_of(image) for image in images]


# ------------------------------------------------------------------------------------------- resolution


def pyramid(path: Path, resolution: float | None = 20_000, size: int = 512, dtype: Any = np.uint8) -> np.ndarray:
    """A slide of three levels, 1, 2 and 4, at 0.5 um per pixel."""
    pixels = np.random.default_rng(3).integers(0, 256, (size, size + 64, 3)).astype(dtype)
    with tifffile.TiffWriter(path) as file:
        level, factor = pixels, 1
        for k in range(3):
            rate: dict[str, Any] = (
                {} if resolution is None else {"resolution": (resolution / factor,) * 2, "resolutionunit": 3}
            )
            file.write(level, photometric="rgb", metadata=None, subfiletype=int(k > 0), **TILED, **rate)
            rows, columns = level.shape[0] // 2, level.shape[1] // 2
            level = level.reshape(rows, 2, columns, 2, 3).mean((1, 3)).round().astype(dtype)
            factor *= 2
    return pixels


@pytest.mark.parametrize(
    "mpp, level, factor", [(0.5, 0, 1), (0.5004, 0, 1), (1.0, 1, 1), (0.7, 0, 1.4), (3.1, 2, 1.55)]
)
def test_a_resolution_reads_the_nearest_finer_level(tmp_path: Path, mpp: float, level: int, factor: float) -> None:
    pyramid(tmp_path / "slide.tif")
    image = open_image(tmp_path / "slide.tif", mpp=mpp)
    assert image.mpp == pytest.approx((mpp, mpp), rel=1e-3)
    of = image.source if isinstance(image, ResampledSource) else image
    assert isinstance(of, FileImage)
    assert (of.level, isinstance(image, ResampledSource)) == (level, factor > 1)
    assert image.shape == (3, *(int(extent / factor + 1e-6) for extent in of.shape[1:]))
    assert image.downsample == pytest.approx(2**level * factor, rel=1e-3)


@pytest.mark.parametrize("factors", [2, 3, 1.4, (2.5, 1.1), 7.3, 40.0])
def test_any_box_of_a_resampled_image_is_a_crop_of_the_whole_to_the_bit(tmp_path: Path, factors: Any) -> None:
    pyramid(tmp_path / "slide.tif")
    image = ResampledSource(open_image(tmp_path / "slide.tif"), factors)
    whole = image.read_all()
    draw = random.Random(1)
    for _ in range(15):
        (top, bottom), (left, right) = (sorted(draw.sample(range(e + 1), 2)) for e in image.shape[1:])
        assert torch.equal(image.read(((top, bottom), (left, right))), whole[:, top:bottom, left:right])


@pytest.mark.parametrize("factor", [2, 1.4, 3.7])
def test_a_resampled_pixel_is_the_mean_of_its_area(factor: float) -> None:
    """Against integrals of the image, taken another way: by running sums, interpolated at the edges of the pixels."""
    pixels = np.random.default_rng(0).normal(size=(1, 61, 47))
    image = ResampledSource(open_array(pixels), factor)
    sums = np.pad(pixels[0].cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    rows, columns = (np.arange(size + 1) * factor for size in image.shape[1:])
    along = np.stack([np.interp(rows, np.arange(62), column) for column in sums.T], 1)
    both = np.stack([np.interp(columns, np.arange(48), row) for row in along])
    expected = np.diff(np.diff(both, axis=0), axis=1) / factor**2
    np.testing.assert_allclose(image.read_all()[0].numpy(), expected, atol=1e-11)


def open_array(array: Any) -> Source:
    from streamingcnn.sources import ArraySource

    return ArraySource(array)


def test_a_large_box_is_resampled_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from streamingcnn.sources import resampled

    pixels = np.random.default_rng(0).integers(0, 256, (3, 400, 300), dtype=np.uint8)
    whole = ResampledSource(open_array(pixels), 2.2).read_all()
    monkeypatch.setattr(resampled, "_HELD", 500)
    assert torch.equal(ResampledSource(open_array(pixels), 2.2).read_all(), whole)


def test_bytes_are_rounded_and_not_cut(tmp_path: Path) -> None:
    pixels = np.array([[[10, 11], [11, 11]]], np.uint8)
    assert ResampledSource(open_array(pixels), 2).read_all().tolist() == [[[11]]]  # 10.75


def test_a_resolution_finer_than_the_slide_is_refused(tmp_path: Path) -> None:
    pyramid(tmp_path / "slide.tif")
    with pytest.raises(ValueError, match=r"has 0\.5 um per pixel at its finest, so mpp=0\.25 would have to be made up"):
        open_image(tmp_path / "slide.tif", mpp=0.25)


@pytest.mark.parametrize(
    "resolution, says", [(None, "does not say"), (72 / 2.54, r"352\.8 um wide, .*72 dots per inch")]
)
def test_a_slide_without_a_resolution_has_three_ways_out(tmp_path: Path, resolution: float | None, says: str) -> None:
    pyramid(tmp_path / "slide.tif", resolution)
    with pytest.raises(ValueError, match=says) as error:
        open_image(tmp_path / "slide.tif", mpp=0.5)
    assert all(way in str(error.value) for way in ("column mpp", "slide_mpp=", "level=0"))
    assert open_image(tmp_path / "slide.tif").mpp is None
    assert open_image(tmp_path / "slide.tif", level=0).shape == (3, 512, 576)
    found = open_image(tmp_path / "slide.tif", mpp=1.0, slide_mpp=0.25)
    assert (found.mpp, found.shape) == ((1.0, 1.0), (3, 128, 144))
    assert open_image(tmp_path / "slide.tif", level=1, slide_mpp=0.25).mpp == (0.5, 0.5)


def test_what_cannot_be_a_resolution_is_refused(tmp_path: Path) -> None:
    pyramid(tmp_path / "slide.tif")
    for wrong in (0.0, -1.0, 352.8, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="needed are micrometres per pixel"):
            open_image(tmp_path / "slide.tif", mpp=wrong)
        with pytest.raises(ValueError, match="needed are micrometres per pixel"):
            open_image(tmp_path / "slide.tif", slide_mpp=wrong)
    with pytest.raises(ValueError, match="give one of them"):
        open_image(tmp_path / "slide.tif", mpp=0.5, level=0)


def test_the_resolution_of_every_kind_that_says(tmp_path: Path) -> None:
    um = {"PhysicalSizeX": 250, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "µm"}
    tifffile.imwrite(tmp_path / "a.ome.tif", CHANNELS, ome=True, metadata={"axes": "CYX", **um}, **TILED)
    assert open_image(tmp_path / "a.ome.tif").mpp == pytest.approx((0.5, 0.25))
    Image.fromarray(RGB).save(tmp_path / "a.png", dpi=(50_800, 50_800))
    assert open_image(tmp_path / "a.png").mpp == pytest.approx((0.5, 0.5), rel=1e-3)
    assert open_image(tmp_path / "a.png", mpp=1.0).shape == (3, 150, 210)
    Image.fromarray(RGB).save(tmp_path / "b.png", dpi=(72, 72))
    assert open_image(tmp_path / "b.png").mpp is None
    volume = open_image(nifti(STACK, ".nii")(tmp_path))
    assert volume.mpp == (2000.0, 500.0, 500.0)


def test_levels_and_resolution_of_ome_zarr(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    group = zarr.create_group(tmp_path / "a.zarr")
    half = CHANNELS[:, :150, :170].reshape(4, 75, 2, 85, 2).mean((2, 4))
    axes = [{"name": "c", "type": "channel"}] + [{"name": n, "type": "space", "unit": "micrometer"} for n in "yx"]
    datasets = []
    for name, array, size in (("0", CHANNELS, 0.5), ("1", half, 1.0)):
        group.create_array(name, data=array)
        datasets.append({"path": name, "coordinateTransformations": [{"type": "scale", "scale": [1, size, size]}]})
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    image = open_image(tmp_path / "a.zarr", level=1)
    assert (image.shape, image.mpp, image.downsample) == ((4, 75, 85), (1.0, 1.0), 2.0)
    assert torch.equal(image.read_all(), torch.from_numpy(half))
    finer = open_image(tmp_path / "a.zarr", mpp=1.0)
    assert isinstance(finer, FileImage) and finer.level == 1


# ----------------------------------------------------------------------------------------- what is refused


def test_a_page_that_tifffile_cannot_decode_says_what_to_do(tmp_path: Path) -> None:
    """A JPEG page without imagecodecs; the bytes in it need not be a JPEG for that."""
    if find("imagecodecs"):
        pytest.skip("imagecodecs is installed")
    path = tiff(GREY16.astype(np.uint8), **TILED)(tmp_path)
    with tifffile.TiffFile(path, mode="r+") as file:
        pages(file)[0].tags["Compression"].overwrite(5)  # LZW
    with pytest.raises(ReadError, match=r"packed as LZW, .*pip install\s+imagecodecs, or open it through OpenSlide"):
        TiffImage(path).read(((0, 10), (0, 10)))


def find(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None


def test_a_page_that_openslide_decodes_is_left_to_it() -> None:
    slide = Path("/work/shared/data/slides/CMU-1-Small-Region.svs")
    if not slide.exists():
        pytest.skip("the shared slide is absent")
    image = open_image(slide)
    assert type(image) is SlideImage
    assert (image.shape, image.vendor) == ((3, 2967, 2220), "aperio")
    assert image.mpp == pytest.approx((0.499, 0.499))


def claims(path: Path, **tags: int) -> Path:
    """A TIFF whose header says what is not there."""
    tifffile.imwrite(path, RGB, photometric="rgb", **TILED)
    with tifffile.TiffFile(path, mode="r+") as file:
        for name, value in tags.items():
            pages(file)[0].tags[name].overwrite(value, dtype="I")
    return path


@pytest.mark.parametrize(
    "tags, says",
    [
        ({"ImageWidth": 10**6, "ImageLength": 10**6}, r"claims 1000000 x 1000000 x 3 pixels, .* and has 35"),
        ({"TileWidth": 2**20, "TileLength": 2**20, "ImageWidth": 10**6, "ImageLength": 10**6}, "and has 35|pieces of"),
    ],
    ids=["pixels", "tiles"],
)
def test_a_tiff_that_claims_10_to_the_12_pixels_is_refused(tmp_path: Path, tags: dict[str, int], says: str) -> None:
    path = claims(tmp_path / "bomb.tif", **tags)
    with pytest.raises(ReadError, match=says):
        open_image(path)


def test_a_single_strip_that_would_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiff(RGB, photometric="rgb", rowsperstrip=300, compression="adobe_deflate")(tmp_path)
    monkeypatch.setattr(tiff_module, "LARGEST", 100_000)
    with pytest.raises(ReadError, match=r"packed in pieces of 369 KiB, .*vips tiffsave .* --tile"):
        open_image(path)


BOMBS = """
    import sys
    from pathlib import Path
    from streamingcnn import open_image
    from streamingcnn.sources import ReadError
    import resource
    open_image(sys.argv[1])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in sys.argv[2:]:
        try:
            open_image(path).read_all()
        except ReadError as error:
            print(Path(path).name, "refused")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts the memory of a process")
def test_what_is_made_up_or_cut_off_is_refused_in_bounded_memory(tmp_path: Path) -> None:
    good = tiff(RGB, photometric="rgb", **TILED)(tmp_path)
    bad = [
        claims(tmp_path / "pixels.tif", ImageWidth=10**6, ImageLength=10**6),
        claims(tmp_path / "tiles.tif", TileWidth=2**20, TileLength=2**20, ImageWidth=10**6, ImageLength=10**6),
        tmp_path / "count.tif",
        tmp_path / "half.tif",
        tmp_path / "empty.svs",
        tmp_path / "bomb.png",
        tmp_path / "bomb.nii.gz",
        tmp_path / "bomb.npy",
    ]
    entries = [(256, 4, 1, 10**6), (257, 4, 1, 10**6), (258, 3, 1, 8), (322, 4, 1, 256), (323, 4, 1, 256)]
    entries += [(324, 4, 2**31 - 1, 8), (325, 4, 2**31 - 1, 8)]  # two thousand million offsets
    header = struct.pack("<4sIH", b"II*\0", 8, len(entries))
    bad[2].write_bytes(header + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(64))
    bad[3].write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    bad[4].write_bytes(b"")
    chunk = struct.pack(">IIBBBBB", 10**6, 10**6, 8, 2, 0, 0, 0)
    bad[5].write_bytes(
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I4s", 13, b"IHDR") + chunk + struct.pack(">I", 0) + bytes(99)
    )
    nii = struct.pack("<i", 348) + bytes(36) + struct.pack("<8h", 3, 10_000, 10_000, 10_000, 1, 1, 1, 1)
    nii = nii.ljust(70, b"\0") + struct.pack("<2h", 2, 8)
    nii = nii.ljust(108, b"\0") + struct.pack("<f", 352.0)
    bad[6].write_bytes(gzip.compress(nii.ljust(344, b"\0") + b"n+1\0" + bytes(4)))
    with bad[7].open("wb") as file:
        shape: Any = {"descr": "|u1", "fortran_order": False, "shape": (3, 10**6, 10**6)}
        np.lib.format.write_array_header_2_0(file, shape)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(BOMBS), str(good), *map(str, bad)],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent, timeout=100,
    )  # fmt: skip
    *refused, grown = done.stdout.splitlines()
    assert refused == [f"{path.name} refused" for path in bad]
    assert int(grown) < 200_000  # KiB


def test_a_truncated_tiff_is_named_when_it_is_opened(tmp_path: Path) -> None:
    path = tiff(GREY16, **TILED)(tmp_path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(ReadError, match=r"image\.tif (is truncated|is no TIFF, or its header is damaged)"):
        open_image(path)


def test_a_damaged_tile_is_named_with_its_box(tmp_path: Path) -> None:
    path = tiff(GREY16, **TILED)(tmp_path)
    with tifffile.TiffFile(path) as file:
        offset, count = file.pages[0].dataoffsets[-1], file.pages[0].databytecounts[-1]
    content = bytearray(path.read_bytes())
    content[offset : offset + count] = bytes(count)
    path.write_bytes(content)
    image = open_image(path)
    with pytest.raises(
        ReadError, match=r"image\.tif: the region \(\(195, 199\), \(325, 330\)\) of page 0 cannot be read"
    ):
        image.read(((195, 199), (325, 330)))
    assert torch.equal(image.read(((0, 64), (0, 64))), torch.from_numpy(GREY16[:64, :64].copy())[None])


def test_a_picture_that_is_too_large_is_to_be_a_slide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from streamingcnn.sources import flat as flat_module

    path = flat("png", RGB)(tmp_path)
    monkeypatch.setattr(flat_module, "LARGEST", 1000)
    with pytest.raises(ReadError, match=r"300 x 420 pixels; at most 1000 .*vips tiffsave"):
        open_image(path)


def test_a_missing_library_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from streamingcnn import extras

    path = nifti(STACK, ".nii")(tmp_path)
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"need nibabel, .* pip install 'streamingcnn\[nifti\]'"):
        open_image(path)


# ----------------------------------------------------------------------------------------------- DICOM


def dicom(path: Path, pixels: np.ndarray, tile: int = 64, mpp: float = 0.5) -> None:
    """A whole slide image of one level, its tiles not packed, in one file."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

    height, width, _ = pixels.shape
    slide, meta, measures, groups, light = Dataset(), FileMetaDataset(), Dataset(), Dataset(), Dataset()
    meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.77.1.6")
    meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = generate_uid(), ExplicitVRLittleEndian
    slide.file_meta, slide.SOPClassUID = meta, meta.MediaStorageSOPClassUID
    slide.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    slide.StudyInstanceUID, slide.SeriesInstanceUID = generate_uid(), generate_uid()
    slide.Modality, slide.ImageType = "SM", ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    slide.Rows = slide.Columns = tile
    slide.TotalPixelMatrixColumns, slide.TotalPixelMatrixRows = width, height
    slide.SamplesPerPixel, slide.PhotometricInterpretation, slide.PlanarConfiguration = 3, "RGB", 0
    slide.BitsAllocated, slide.BitsStored, slide.HighBit, slide.PixelRepresentation = 8, 8, 7, 0
    slide.DimensionOrganizationType, slide.TotalPixelMatrixFocalPlanes, slide.NumberOfOpticalPaths = "TILED_FULL", 1, 1
    slide.ImagedVolumeWidth, slide.ImagedVolumeHeight, slide.ImagedVolumeDepth = width * mpp, height * mpp, 1.0
    measures.PixelSpacing, measures.SliceThickness = [mpp / 1000, mpp / 1000], 0.001
    groups.PixelMeasuresSequence, light.OpticalPathIdentifier = [measures], "1"
    slide.SharedFunctionalGroupsSequence, slide.OpticalPathSequence = [groups], [light]
    slide.ContainerIdentifier, slide.ImageOrientationSlide = "slide", [0, 1, 0, 1, 0, 0]
    pad = [(0, -extent % tile) for extent in (height, width)]
    padded = np.pad(pixels, [*pad, (0, 0)], mode="edge")
    rows, columns = padded.shape[0] // tile, padded.shape[1] // tile
    slide.NumberOfFrames = rows * columns
    slide.PixelData = padded.reshape(rows, tile, columns, tile, 3).swapaxes(1, 2).tobytes()
    pydicom.dcmwrite(path, slide, enforce_file_format=True)


@pytest.mark.parametrize("through", ["OpenSlide", "wsidicom"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_dicom_slide(tmp_path: Path, through: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dicom(tmp_path / "level-0.dcm", RGB)
    if through == "wsidicom":
        pytest.importorskip("wsidicom")
        import openslide

        monkeypatch.setattr(openslide.OpenSlide, "detect_format", lambda path: None)
    for path in (tmp_path, tmp_path / "level-0.dcm"):
        image = open_image(path)
        assert isinstance(image, SlideImage) == (through == "OpenSlide")
        assert image.mpp == pytest.approx((0.5, 0.5))
        assert torch.equal(image.read_all(), colour(RGB))
        assert torch.equal(image.read(((50, 190), (33, 401))), colour(RGB[50:190, 33:401]))
        image.close()
    assert open_image(tmp_path, mpp=1.0).shape == (3, 150, 210)
    if through == "wsidicom":
        (tmp_path / "level-0.dcm").write_bytes(bytes(128) + b"DICM" + bytes(50))
        with pytest.raises(ReadError, match="is no DICOM slide that can be read"):
            open_image(tmp_path)


# ------------------------------------------------------------------------------- memory, caches, transforms


def test_the_tiles_that_are_kept_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiff_module, "CACHE", 40_000)  # four tiles of 8192 bytes, and a bit
    image = TiffImage(tiff(GREY16, **TILED)(tmp_path))
    assert torch.equal(image.read_all(), torch.from_numpy(GREY16)[None])
    assert image._handle.get()._pieces.bytes <= 40_000


def test_outside_a_mask_pixels_are_filled_or_kept() -> None:
    source = open_array(np.random.default_rng(0).integers(0, 256, (3, 64, 64), dtype=np.uint8))
    mask = np.zeros((4, 4), bool)
    mask[1, 2] = True
    filled, kept = (MaskedSource(source, mask, 200, outside=outside) for outside in ("fill", "keep"))
    assert torch.equal(kept.read(((0, 64), (0, 64))), source.read(((0, 64), (0, 64))))
    assert kept.constant_blocks() is None
    assert (filled.read(((0, 16), (0, 64))) == 200).all()
    assert filled.filled == "93.8% of the image, outside its mask, set to 200"
    assert kept.filled == "93.8% of the image, outside its mask, kept"
    with pytest.raises(ValueError, match="needed is 'fill' or 'keep'"):
        MaskedSource(source, mask, 200, outside="drop")  # type: ignore[arg-type]


def test_scaled_sources_say_what_they_read_from(tmp_path: Path) -> None:
    pyramid(tmp_path / "slide.tif")
    image = ScaledSource(open_image(tmp_path / "slide.tif", mpp=0.8))
    from streamingcnn.sources.source import said_by

    assert said_by(image, "mpp") == pytest.approx((0.8, 0.8))
    assert said_by(image, "threads") == 4
