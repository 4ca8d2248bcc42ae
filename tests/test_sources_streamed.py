"""Sources under a streamed network: exact, read ahead, and nothing of the image's size in memory."""

from __future__ import annotations

import copy
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from streamingcnn import StreamingModule, open_image
from streamingcnn.ahead import Ahead
from streamingcnn.boxes import Box, full, grid
from streamingcnn.comparison import rows_of, run_step
from streamingcnn.memory import LiveBytes
from streamingcnn.models import resnet18
from streamingcnn.sources import ArraySource, MaskedSource, ReadError, ScaledSource

BOUND = 1e-10
SLIDE = Path("/work/shared/data/slides/CMU-1-Small-Region.svs")


class Watched(ArraySource):
    """Notes who reads what."""

    threads = 1

    def __init__(self, array: Any) -> None:
        super().__init__(array)
        self.boxes: list[Box] = []
        self.readers: set[str] = set()
        self.inside = self.most = 0
        self.lock = threading.Lock()

    def read(self, box: Box) -> Tensor:
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
            self.boxes.append(box)
            self.readers.add(threading.current_thread().name)
        time.sleep(0.002)
        with self.lock:
            self.inside -= 1
        return super().read(box).clone()


def small() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 3, 2, 1)).double()


def pixels(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


# -------------------------------------------------------------------------------------- reading ahead


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("keep", [(), ("2",)], ids=["recompute", "keep"])
def test_reading_ahead_changes_nothing(threads: int, keep: tuple[str, ...]) -> None:
    image = pixels(2, 120, 90)
    source = Watched(image)
    source.threads = threads
    net = StreamingModule(small(), tile=32, stored=["2"], keep=keep)
    rows = rows_of(
        run_step(net, source, input_gradients=False),
        run_step(copy.deepcopy(net.module), image[None], input_gradients=False),
    )
    assert max(row.error for row in rows) < BOUND
    assert net.last_run is not None
    assert net.last_run.reading is not None
    once = sorted(set(source.boxes))
    assert sorted(source.boxes) == sorted(once * (1 if keep else 2))  # forward, and backward where it recomputes
    assert net.last_run.reading.boxes == len(source.boxes)
    assert source.most <= max(threads, 1)
    main = threading.current_thread().name
    assert (source.readers == {main}) if threads == 0 else (main not in source.readers)


def test_reading_goes_on_while_computing() -> None:
    """Reading takes 10 ms and computing 10 ms: together they take little more than one of them."""

    def read(box: Box) -> Tensor:
        time.sleep(0.01)
        return torch.zeros(1)

    boxes = list(grid((30,), (1,)))
    ahead = Ahead(read, iter(boxes), pixel_bytes=4, threads=1)
    start, waited = time.perf_counter(), 0.0
    for box in boxes:
        asked = time.perf_counter()
        ahead.take(box)
        waited += time.perf_counter() - asked
        time.sleep(0.015)
    ahead.close()
    assert waited < 0.4 * (time.perf_counter() - start)


def test_what_is_read_ahead_is_bounded() -> None:
    read: list[Box] = []

    def note(box: Box) -> Tensor:
        read.append(box)
        return torch.zeros(100, dtype=torch.uint8)

    ahead = Ahead(note, grid((100_000,), (100,)), pixel_bytes=1, threads=1, limit=550)
    ahead.take(((0, 100),))
    time.sleep(0.05)
    assert len(read) <= 7
    ahead.close()
    alone = Ahead(note, grid((300,), (100,)), pixel_bytes=1, threads=1, limit=1)  # one box at least
    assert alone.take(((100, 200),)).shape == (100,)
    assert alone.take(((0, 100),)).shape == (100,)  # not foreseen any more: read on the spot
    alone.close()


def test_an_unreadable_box_is_an_error_of_the_step_and_leaves_no_thread() -> None:
    class Damaged(Watched):
        def read(self, box: Box) -> Tensor:
            if box[0][0] > 60:
                raise ReadError(f"slide.tif: the region {box} cannot be read")
            return super().read(box)

    net = StreamingModule(small(), tile=32, stored=["2"])
    before = threading.active_count()
    with pytest.raises(ReadError, match=r"slide\.tif: the region"):
        net(Damaged(pixels(2, 120, 90)))
    assert threading.active_count() == before
    net(Watched(pixels(2, 120, 90))).sum().backward()
    assert threading.active_count() == before


# ---------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("memory", ["3MiB", "8MiB"])
def test_a_source_is_within_the_budget(memory: str) -> None:
    """An image of 24 MiB; counted are its boxes as well, whichever thread reads them."""
    array = np.random.default_rng(0).integers(0, 256, (3, 2896, 2896), dtype=np.uint8)
    module = nn.Sequential(nn.Conv2d(3, 4, 5, 4, 2), nn.ReLU(), nn.Conv2d(4, 4, 3, 4, 1), nn.AdaptiveAvgPool2d(1))
    net = StreamingModule(module, memory=memory)
    source = ScaledSource(ArraySource(array))
    plan = net.plan(source)
    with LiveBytes() as live:
        net(source).sum().backward()
    assert live.peak <= plan.peak_bytes


RSS = """
    import resource, sys
    import numpy as np, torch
    from torch import nn
    from streamingcnn import StreamingModule
    from streamingcnn.sources import ScaledSource, open_image
    torch.set_num_threads(1)
    net = StreamingModule(nn.Sequential(nn.Conv2d(3, 4, 5, 4, 2), nn.ReLU(), nn.Conv2d(4, 4, 3, 4, 1)), tile=512)
    def step(side):
        net(ScaledSource(open_image(sys.argv[side]))).mean().backward()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    small = step(1)
    print(small, step(2))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts the memory of a process")
def test_nothing_of_the_image_s_size_is_allocated(tmp_path: Path) -> None:
    """A slide of 201 million pixels (604 MB of bytes, 2.4 GB of floats) after one of 1 million: little more memory."""
    import tifffile

    tile = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    how: dict[str, Any] = {"tile": (512, 512), "photometric": "rgb", "compression": "adobe_deflate", "metadata": None}
    paths = []
    for side in (1024, 14336):
        paths.append(tmp_path / f"{side}.tif")
        tiles = (tile for _ in range((side // 512) ** 2))
        tifffile.imwrite(paths[-1], tiles, shape=(side, side, 3), dtype=np.uint8, maxworkers=1, **how)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(RSS), *map(str, paths)],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent, timeout=200,
    )  # fmt: skip
    small_step, large_step = map(int, done.stdout.split())
    assert large_step - small_step < 250_000  # KiB: the stored map of 51 MB and its gradient, boxes, caches


# ---------------------------------------------------------------------------------------------- slides


def test_what_was_filled_is_said() -> None:
    mask = np.zeros((8, 8), bool)
    mask[2:4, 3:5] = True
    image = ArraySource(pixels(2, 512, 512))
    net = StreamingModule(small(), tile=64)
    net(ScaledSource(MaskedSource(image, mask, 0.5), dtype=torch.float64))
    assert net.last_run is not None
    assert net.last_run.filled == "93.8% of the image, outside its mask, set to 0.5"
    assert net.last_run.saved > 0.2
    net(ScaledSource(MaskedSource(image, mask, 0.5, outside="keep"), dtype=torch.float64))
    assert net.last_run.filled == "93.8% of the image, outside its mask, kept"
    assert net.last_run.saved == 0


@pytest.mark.skipif(not SLIDE.exists(), reason="the shared slide is absent")
@pytest.mark.parametrize("mpp", [0.5, 1.0, 1.7])
def test_a_real_slide_at_a_resolution_is_exact(mpp: float) -> None:
    """Streamed from the file against plain PyTorch on the region read as a whole."""
    torch.manual_seed(0)
    trunk = resnet18().double().eval()
    slide = open_image(SLIDE, mpp=mpp)
    assert slide.mpp == pytest.approx((mpp, mpp), rel=3e-3)
    image = ScaledSource(slide, 1 / 255, mean=(0.7, 0.5, 0.7), std=(0.2, 0.2, 0.2), dtype=torch.float64)
    region = image.read(full(image.shape[1:]))[None]
    net = StreamingModule(trunk, tile=512)
    with torch.no_grad():
        expected, found = trunk(region), net(image)
    assert float((found - expected).abs().max() / expected.abs().max()) < BOUND


@pytest.mark.skipif(not SLIDE.exists(), reason="the shared slide is absent")
def test_a_real_slide_s_gradient_is_exact() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 7, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3, 2, 1)).double()
    image = ScaledSource(open_image(SLIDE, mpp=2.0), dtype=torch.float64)
    region = image.read(full(image.shape[1:]))[None]
    rows = rows_of(
        run_step(StreamingModule(copy.deepcopy(module), tile=128), image, input_gradients=False),
        run_step(module, region, input_gradients=False),
    )
    assert max(row.error for row in rows) < BOUND
