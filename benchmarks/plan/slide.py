"""One training step on a slide of 65536 x 65536 pixels, 3 % of it tissue: `python -m benchmarks.plan.slide`.

The slide is a source: its pixels are made on the fly, from a seed and the coordinates alone, and nothing of its size is
ever in memory. What it costs is held against the same step on an image that is all tissue and has just as much of it:

    slide    65536 x 65536, 3 % tissue       time / time  <= 1.5        each in a process of its own,
    tissue   11264 x 11264                   RSS  < 4 GiB               by the processor's time
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.measure import machine
from streamingcnn import StreamingModule
from streamingcnn.boxes import Box
from streamingcnn.memory import format_bytes
from streamingcnn.models import resnet18
from streamingcnn.sources import MaskedSource, Source

__all__ = ["Texture", "slide", "step"]

#: The side of a block of the tissue mask, in pixels.
BLOCK = 512
#: The value of the background, as on a scanned slide: a light grey.
GLASS = 0.94
TISSUE, RATIO, RSS = 0.03, 1.5, 4 << 30
#: Few stored maps, so that the step stays within the bytes: ResNet's last three scales.
STORED = ("layer2.1", "layer3.1", "layer4.0")

logger = logging.getLogger(__name__)


class Texture:
    """A square image of coloured waves and noise: every pixel follows from its coordinates and a seed.

    >>> image = Texture(4096, seed=1)
    >>> bool((image.read(((10, 14), (7, 9))) == image.read(((0, 20), (0, 20)))[:, 10:14, 7:9]).all())
    True
    """

    axes, dtype = "CYX", torch.float32

    def __init__(self, side: int, seed: int = 0) -> None:
        self.shape = (3, side, side)
        self.seed = seed

    def read(self, box: Box) -> torch.Tensor:
        """The pixels of a box, float32 in [0, 1]."""
        y, x = (np.arange(low, high, dtype=np.uint32) for low, high in box)
        with np.errstate(over="ignore"):
            noise = (y[:, None] * np.uint32(0x9E3779B1)) ^ (x * np.uint32(0x85EBCA77)) ^ np.uint32(self.seed)
            noise *= np.uint32(0xC2B2AE3D)
            noise ^= noise >> np.uint32(15)
        waves = np.sin(y / 37.0, dtype=np.float32)[:, None] * np.cos(x / 53.0, dtype=np.float32)
        planes = [
            0.5 + 0.2 * waves + ((noise >> np.uint32(8 * k)) & np.uint32(255)).astype(np.float32) * (0.3 / 255)
            for k in range(3)
        ]
        return torch.from_numpy(np.stack(planes).astype(np.float32))


def slide(side: int, tissue: float, seed: int = 0) -> MaskedSource:
    """A slide with two pieces of tissue on glass; the tissue is about the given share of its area."""
    cells = side // BLOCK
    y, x = np.mgrid[:cells, :cells] + 0.5
    radius = cells * np.sqrt(tissue / np.pi / 1.5)
    first = ((y - 0.35 * cells) ** 2 + (x - 0.4 * cells) ** 2) < radius**2
    second = ((y - 0.7 * cells) ** 2 + (x - 0.65 * cells) ** 2) < radius**2 / 2
    return MaskedSource(Texture(side, seed), first | second, GLASS, (BLOCK, BLOCK))


@dataclass(frozen=True)
class Measured:
    """What one step took."""

    seconds: float
    #: Of the processor: what a busy machine does not change.
    processor: float
    rss_bytes: int
    tiles: str
    loss: float
    gradient: float


def step(image: Source, tile: int | None) -> Measured:
    """One forward and backward of a ResNet-18 with a global mean and two classes; normalisation is frozen."""
    torch.manual_seed(0)
    net = resnet18(num_classes=2).eval()
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    streamed = StreamingModule(net, tile=tile, stored=STORED)
    streamed.plan(image)
    start, worked = time.perf_counter(), time.process_time()
    loss = F.cross_entropy(streamed(image), torch.tensor([1]))
    logger.info("forward: %.0f s, %s", time.perf_counter() - start, streamed.last_run)
    loss.backward()
    seconds, processor = time.perf_counter() - start, time.process_time() - worked
    norm = torch.stack([p.grad.norm() for p in net.parameters() if p.grad is not None]).norm()
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    logger.info("step: %.0f s, of the processor %.0f s, RSS %s", seconds, processor, format_bytes(rss))
    return Measured(seconds, processor, rss, str(streamed.last_run), loss.item(), norm.item())


def _run(image: Source, tile: int | None, threads: int) -> Measured:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(threads)
    return step(image, tile)


def main() -> None:
    """Measures both steps, each in a process of its own, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=65536, help="of the slide, in pixels")
    parser.add_argument("--tile", type=int, default=512, help="pixels of the image that a tile covers; 0 chooses")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    whole = slide(options.side, TISSUE)
    # As many pixels as the slide has of tissue, in a square of whole blocks.
    side = round(float(np.sqrt(whole.mask.sum()))) * BLOCK
    images: dict[str, Source] = {f"slide, {whole.mask.mean():.1%} tissue": whole, "tissue alone": Texture(side)}
    results = {}
    context = multiprocessing.get_context("spawn")
    for name, image in images.items():
        with ProcessPoolExecutor(1, context) as process:
            results[name] = process.submit(_run, image, options.tile or None, options.threads).result()
    (first, on_slide), (second, on_tissue) = results.items()
    pixels = whole.mask.sum() * BLOCK**2 / side**2
    ratio = on_slide.processor / (on_tissue.processor * pixels)
    print("| image | pixels | tiles | time | of the processor | RSS |\n|---|---|---|---|---|---|")
    for name, extent, got in ((first, options.side, on_slide), (second, side, on_tissue)):
        times = f"{got.seconds:.0f} s | {got.processor:.0f} s"
        print(f"| {name} | {extent} x {extent} | {got.tiles} | {times} | {format_bytes(got.rss_bytes)} |")
    met = "met" if ratio <= RATIO and on_slide.rss_bytes < RSS else "missed"
    print(f"\n{ratio:.2f}x of the tissue's share (bound {RATIO}x), RSS bound {format_bytes(RSS)}: {met}")
    print(f"{machine(options.threads)}; tile {options.tile or 'chosen'}; one step each.")


if __name__ == "__main__":
    main()
