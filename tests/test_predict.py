"""Predictions in files: the numbers of net(x), resumable, never whole in memory, and in the right place."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from torch import Tensor, nn

from streamingcnn import StreamingModule, open_image
from streamingcnn.boxes import Box
from streamingcnn.memory import LiveBytes
from streamingcnn.models import UNet3D
from streamingcnn.outputs.blocks import Blocks, own_pages
from streamingcnn.outputs.geometry import geometry
from streamingcnn.remaining import remaining
from streamingcnn.sources import ArraySource, FileImage, MaskedSource, ScaledSource

from .tiff_pages import pages

BOUND = 1e-10


def trunk() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.Tanh(), nn.Conv2d(6, 2, 3, padding=1)).double().eval()


class Image(ArraySource):
    """An array that knows how large its pixels are."""

    mpp = (0.5, 0.5)


def image(*space: int) -> Image:
    generator = torch.Generator().manual_seed(5)
    return Image(torch.rand(3, *space, dtype=torch.float64, generator=generator))


def opened(path: Path) -> Tensor:
    return open_image(path).read_all()


@pytest.mark.parametrize("ending", [".npy", ".tif", ".zarr"])
@pytest.mark.parametrize("tile", [32, 21])
def test_what_is_written_is_what_the_network_gives(tmp_path: Path, ending: str, tile: int) -> None:
    source = image(150, 117)
    net = StreamingModule(trunk(), tile=tile)
    out = net.predict(source, tmp_path / f"result{ending}")
    with torch.no_grad():
        expected = net.module(source.array[None])[0]
    found = opened(out)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=BOUND, atol=BOUND)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"result{ending}", f"result{ending}.json"]
    if ending != ".npy":
        written = open_image(out)
        assert isinstance(written, FileImage) and written.stated_mpp == pytest.approx((1.0, 1.0))
    about = json.loads((tmp_path / f"result{ending}.json").read_text())
    assert (about["scale"], about["offset"], about["shape"]) == ([2.0, 2.0], [0.0, 0.0], [2, 75, 59])


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".npy", ".zarr"])
def test_a_volume_lies_where_its_image_does(tmp_path: Path, ending: str) -> None:
    nibabel = pytest.importorskip("nibabel")
    affine = np.array([[-1.5, 0, 0, 30.0], [0, 1.5, 0, -20.0], [0, 0, 2.0, 7.0], [0, 0, 0, 1]])
    voxels = np.random.default_rng(0).normal(size=(20, 28, 24)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), tmp_path / "image.nii.gz")
    volume = open_image(tmp_path / "image.nii.gz")
    assert volume.shape == (1, 24, 28, 20)
    net = StreamingModule(UNet3D(1, 3, levels=2, filters=4).eval(), tile=8)
    out = net.predict(volume, tmp_path / f"result{ending}")
    with torch.no_grad():
        expected = net.module(torch.from_numpy(voxels.T.copy())[None, None])[0]
    torch.testing.assert_close(opened(out), expected, rtol=1e-5, atol=1e-5)
    if ending.startswith(".nii"):
        result = nibabel.load(out)
        np.testing.assert_allclose(result.affine, affine, atol=1e-6)
        assert result.shape == (20, 28, 24, 3)


def test_formats_that_do_not_fit_are_refused_before_anything_runs(tmp_path: Path) -> None:
    net = StreamingModule(trunk(), tile=32)
    with pytest.raises(
        ValueError, match=r"\.nii takes no result with 2 spatial axes; take \.zarr, \.tif, \.tiff, \.npy"
    ):
        net.predict(image(64, 64), tmp_path / "result.nii")
    with pytest.raises(ValueError, match=r"is written as one of \.zarr"):
        net.predict(image(64, 64), tmp_path / "result.png")
    assert list(tmp_path.iterdir()) == []


def test_networks_without_one_map_are_refused(tmp_path: Path) -> None:
    source = image(64, 64)
    head = nn.Sequential(trunk(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with pytest.raises(ValueError, match=r"writes one map of pixels, and this network gives \[\(1, 2\)\]"):
        StreamingModule(head, tile=32).predict(source, tmp_path / "a.npy")
    with pytest.raises(ValueError, match=r"call net\.eval\(\) first"):
        StreamingModule(trunk().train(), tile=32).predict(source, tmp_path / "a.npy")
    with pytest.raises(ValueError, match="takes one image, and was given 2"):
        StreamingModule(trunk(), tile=32).predict(torch.rand(2, 3, 64, 64, dtype=torch.float64), tmp_path / "a.npy")


def test_a_result_that_runs_plainly_is_written_too(tmp_path: Path) -> None:
    class Flipped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flip(2)

    net = StreamingModule(nn.Sequential(trunk(), Flipped()).eval(), tile=32)
    source = image(64, 81)
    out = net.predict(source, tmp_path / "a.npy")
    torch.testing.assert_close(opened(out), net.module(source.array[None])[0].detach(), rtol=BOUND, atol=BOUND)


def test_shared_tiles_are_kept_once_and_written_everywhere(tmp_path: Path) -> None:
    source = image(1024, 1024)
    mask = np.zeros((16, 16), bool)
    mask[3:6, 4:9] = True
    masked = MaskedSource(source, mask, 0.25)
    net = StreamingModule(trunk(), tile=64)
    out = net.predict(masked, tmp_path / "a.npy")
    assert net.last_run is not None
    assert net.last_run.saved > 0.5
    assert "outside its mask, set to 0.25" in str(net.last_run)
    filled = masked.read(((0, 1024), (0, 1024)))
    with torch.no_grad():
        torch.testing.assert_close(opened(out), net.module(filled[None])[0], rtol=BOUND, atol=BOUND)


def test_a_finished_prediction_is_known_and_another_is_not_overwritten(tmp_path: Path) -> None:
    net, source = StreamingModule(trunk(), tile=32), image(96, 96)
    out = net.predict(source, tmp_path / "a.npy")
    written = out.stat().st_mtime_ns
    net.last_run = None
    assert net.predict(source, out) == out
    assert (out.stat().st_mtime_ns, net.last_run) == (written, None)
    with torch.no_grad():
        next(net.parameters()).add_(1)
    with pytest.raises(FileExistsError, match=r"made of another network, image or weights; .*overwrite=True"):
        net.predict(source, out)
    net.predict(source, out, overwrite=True)
    torch.testing.assert_close(opened(out), net.module(source.array[None])[0].detach(), rtol=BOUND, atol=BOUND)
    (tmp_path / "a.npy.json").unlink()
    with pytest.raises(FileExistsError, match=r"there is no a\.npy\.json"):
        net.predict(source, out)


def test_a_network_whose_forward_was_changed_is_another_one(tmp_path: Path) -> None:
    def made(scale: float) -> nn.Module:
        class Scaled(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x * 2.0

        class Again(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x * 3.0

        Again.__name__ = "Scaled"
        return nn.Sequential(trunk(), Scaled() if scale == 2 else Again()).eval()

    source, out = image(64, 64), tmp_path / "a.npy"
    StreamingModule(made(2), tile=32).predict(source, out)
    with pytest.raises(FileExistsError, match="another network"):
        StreamingModule(made(3), tile=32).predict(source, out)


KILLED = """
    import sys, time
    from pathlib import Path
    import torch
    from streamingcnn import StreamingModule
    from streamingcnn.outputs import blocks
    from tests.test_predict import image, trunk
    torch.set_num_threads(1)
    blocks.EVERY = 0.0                                   # every tile is listed at once
    written = blocks.Blocks.write
    def slow(self, box, tile):
        written(self, box, tile)
        print("tile", flush=True)
        time.sleep(0.05)
    blocks.Blocks.write = slow
    StreamingModule(trunk(), tile=32, stored=["2"]).predict(image(160, 160), Path(sys.argv[1]))
"""


def test_a_killed_prediction_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "a.tif"
    root = Path(__file__).parent.parent
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(out)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as process:
        assert process.stdout is not None
        for _ in range(9):
            assert process.stdout.readline() == b"tile\n"
        process.send_signal(signal.SIGKILL if sys.platform != "win32" else signal.SIGTERM)
    assert not out.exists()
    ran: list[object] = []
    write = Blocks.write

    def watched(self: Blocks, box: Box, tile: Tensor) -> None:
        ran.append(box)
        write(self, box, tile)

    monkeypatch.setattr(Blocks, "write", watched)
    net, source = StreamingModule(trunk(), tile=32, stored=["2"]), image(160, 160)
    net.predict(source, out)
    assert 25 - 11 <= len(ran) <= 25 - 8  # of 25 tiles
    with torch.no_grad():
        torch.testing.assert_close(opened(out), net.module(source.array[None])[0], rtol=BOUND, atol=BOUND)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", "a.tif.json"]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("norm", [False, True])
def test_what_goes_on_runs_what_is_missing_and_no_more(tmp_path: Path, shared: bool, norm: bool) -> None:
    """Three stages; two tiles of the last are missing. Statistics of a map want all of it."""
    torch.manual_seed(0)
    middle = nn.GroupNorm(2, 4) if norm else nn.Tanh()
    layers = [nn.Conv2d(3, 4, 3, padding=1), middle, nn.Conv2d(4, 4, 3, 2, 1), nn.Tanh(), nn.Conv2d(4, 2, 3, padding=1)]
    net = StreamingModule(nn.Sequential(*layers).double().eval(), tile=64, stored=["0", "2", "4"])
    source: Any = image(512, 512)
    if shared:
        mask = np.zeros((32, 32), bool)
        mask[4:9, 7:20] = True
        source = MaskedSource(source, mask, 0.5)
    out = net.predict(source, tmp_path / "a.npy")
    expected = opened(out)
    with torch.no_grad():
        torch.testing.assert_close(expected, net(source)[0], rtol=0, atol=0)
    plan = net.plan(source)
    first, _, last = plan.stages
    boxes = [box for box, _ in plan.sharing.tiles(last)]

    class Some:
        def has(self, box: Box) -> bool:
            return box not in boxes[3:5]

    left = remaining(plan.steps, plan.sharing, {last.name: Some()})  # type: ignore[dict-item]
    assert left[last] == set(boxes[3:5])
    ran = len(left[first])
    assert ran == plan.sharing.count(first) if norm else 0 < ran < plan.sharing.count(first) / 2


def test_what_an_error_left_behind_is_taken_over(tmp_path: Path) -> None:
    """A disk that is full, an unreadable region: the tiles before it are not lost."""

    class Failing(Image):
        failing = True

        def read(self, box: object) -> Tensor:
            if self.failing and box[0][1] > 100:  # type: ignore[index]
                raise OSError("unreadable")
            return super().read(box)  # type: ignore[arg-type]

    source = Failing(image(160, 160).array)
    net = StreamingModule(trunk(), tile=32, stored=["2"])
    with pytest.raises(OSError, match="unreadable"):
        net.predict(source, tmp_path / "a.npy")
    assert [path.name for path in tmp_path.iterdir()] == [".a.npy.partial"]
    done = len((tmp_path / ".a.npy.partial" / "done.bin").read_bytes()) // 8
    assert done == 15
    source.failing = False
    out = net.predict(source, tmp_path / "a.npy")
    torch.testing.assert_close(opened(out), net.module(source.array[None])[0].detach(), rtol=BOUND, atol=BOUND)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no device that is always full")
def test_a_full_disk_says_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = Blocks(tmp_path / "a", {}, 1, own_pages((4, 4), (2, 2)), (2, 3), torch.float32)
    blocks._file.close()
    monkeypatch.setattr(blocks, "_file", open("/dev/full", "r+b", buffering=0))  # noqa: SIM115
    blocks._last = 0.0
    with pytest.raises(OSError, match=r"No space left .*the tiles so far are kept, and the same call goes on"):
        blocks.write(((0, 2), (2, 4)), torch.ones(1, 1, 2, 2))
    blocks._file.close()
    blocks._list.close()


def test_a_partial_result_of_something_else_is_not_taken_over(tmp_path: Path) -> None:
    table = own_pages((4, 4), (2, 2))
    for about, there in (({"of": 1}, 0), ({"of": 1}, 1), ({"of": 2}, 0)):
        blocks = Blocks(tmp_path / "a", about, 1, table, (2, 3), torch.float32)
        assert blocks.taken_over == there
        blocks.write(((0, 2), (2, 4)), torch.ones(1, 1, 2, 2))
        blocks.close()
    with (tmp_path / "a" / "done.bin").open("ab") as file:
        file.write(b"\1\2\3")  # torn
    blocks = Blocks(tmp_path / "a", {"of": 2}, 1, table, (2, 3), torch.float32)
    assert (blocks.taken_over, blocks.missing) == (1, 3)
    assert blocks.has(((0, 2), (2, 4)))
    blocks.close()


def test_the_result_is_never_whole_in_memory(tmp_path: Path) -> None:
    """64 channels of 512 x 512 in float64 are 128 MiB; a plan of a tile's bytes runs them all."""
    module = nn.Conv2d(1, 64, 3, padding=1).double().eval()
    source = ArraySource(np.random.default_rng(0).normal(size=(1, 512, 512)))
    net = StreamingModule(module, memory="24MiB")
    with LiveBytes() as live:
        out = net.predict(source, tmp_path / "a.npy")
    assert live.peak < 24 << 20
    found = np.load(out, mmap_mode="r")
    assert found.shape == (64, 512, 512)
    with torch.no_grad():
        expected = module(torch.from_numpy(source.array)[None])[0]
    torch.testing.assert_close(torch.from_numpy(found[3].copy()), expected[3], rtol=BOUND, atol=BOUND)


def test_bfloat16_is_kept_as_float32(tmp_path: Path) -> None:
    net = StreamingModule(nn.Conv2d(1, 2, 3).bfloat16().eval(), tile=32)
    x = torch.rand(1, 1, 70, 70, dtype=torch.bfloat16)
    out = net.predict(x, tmp_path / "a.npy")
    with torch.no_grad():
        assert torch.equal(opened(out), net(x)[0].float())


# ----------------------------------------------------------------------------------- where pixels lie


GEOMETRY = {
    "same": (nn.Conv2d(1, 1, 3, padding=1), 1.0, 0.0),
    "valid": (nn.Conv2d(1, 1, 5), 1.0, 2.0),
    "stride": (nn.Conv2d(1, 1, 3, 2, 1), 2.0, 0.0),
    "pool": (nn.AvgPool2d(2), 2.0, 0.5),
    "deep": (nn.Sequential(nn.Conv2d(1, 1, 7, 2, 3), nn.MaxPool2d(3, 2, 1), nn.Conv2d(1, 1, 2, 2)), 8.0, 2.0),
    "nearest": (nn.Upsample(scale_factor=2), 0.5, -0.25),
    "shuffle": (nn.PixelUnshuffle(4), 4.0, 1.5),
}


@pytest.mark.parametrize("name", GEOMETRY)
def test_where_the_pixels_of_a_result_lie(name: str) -> None:
    module, scale, offset = GEOMETRY[name]
    plan = StreamingModule(copy.deepcopy(module).eval(), tile=64).plan((1, 1, 304, 260))
    found = geometry(plan.graph, plan.graph.outputs[0])
    assert (found.scale, found.offset) == ((scale,) * 2, (offset,) * 2)


def test_a_slide_s_result_opens_at_the_right_resolution(tmp_path: Path) -> None:
    from streamingcnn.synthetic import make_slide, write_slide

    write_slide(make_slide(3, tumour=False, size=(512, 768)), tmp_path / "slide.tif")
    slide = open_image(tmp_path / "slide.tif", mpp=1.0)
    net = StreamingModule(trunk().float(), tile=64)
    out = net.predict(ScaledSource(slide), tmp_path / "result.tif")
    with tifffile.TiffFile(out) as file:
        (page,) = pages(file)
        assert (page.shape, page.is_tiled) == ((2, 128, 192), True)
        assert page.tags.valueof("ResolutionUnit") == 3
        assert page.tags.valueof("XResolution")[0] / page.tags.valueof("XResolution")[1] == pytest.approx(10_000 / 2.0)
    assert open_image(out).mpp == pytest.approx((2.0, 2.0))
