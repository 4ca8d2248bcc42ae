"""One training step on a slide of 65536 x 65536 pixels, 3 % of it tissue: `python -m benchmarks.sources.slide`.

The slide is a file, a tiled, deflated pyramid that the generator writes, read by box through OpenSlide at level 0; what
is outside its tissue mask is filled. It is held against the same step, with the same tile or the same budget, on a file
of just as much tissue and nothing else:

    slide    65536 x 65536, 3 % tissue       time / time  <= 1.5        each in a process of its own,
    tissue   12800 x 12800                   RSS  < 4 GiB               by the processor's time
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.measure import machine
from streamingcnn import StreamingModule, open_image
from streamingcnn.memory import format_bytes
from streamingcnn.models import resnet18
from streamingcnn.sources import MaskedSource, ScaledSource, Source
from streamingcnn.synthetic import OnGlass, make_large_slide, make_slide, write_slide

__all__ = ["Measured", "files", "slide", "step"]

#: The side of a block of the tissue mask, in pixels.
BLOCK = 512
#: What is outside the mask becomes this grey.
FILL = 240
PIECES, TISSUE, RATIO, RSS = 4, 0.03, 1.5, 4 << 30
#: Few stored maps, so that the step stays within the bytes.
STORED = ("layer3.1", "layer4.0")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """What one step took."""

    seconds: float
    #: Of the processor: what a busy machine does not change.
    processor: float
    waited: float
    rss_bytes: int
    tiles: str
    loss: float
    gradient: float


def files(folder: Path, side: int) -> tuple[Path, Path, Path]:
    """The slide, its mask, and the tissue alone; written where they are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = (folder / f"slide-{side}.tif", folder / f"slide-{side}.npy", folder / f"tissue-{side}.tif")
    if not all(path.exists() for path in paths):
        made = make_large_slide(0, (side, side), TISSUE, PIECES)
        mask = made.tissue_mask(BLOCK)
        write_slide(made, paths[0])
        write_slide(_tissue_alone(int(mask.sum())), paths[2])
        np.save(paths[1], mask)
    return paths


def _tissue_alone(blocks: int) -> OnGlass:
    """A square of about so many blocks, of four pieces without glass between them."""
    side = round(float(np.sqrt(blocks))) * BLOCK
    half = side // 2 // 256 * 256
    corners = [(y, x) for y in (0, half) for x in (0, half)]
    pieces = [(make_slide(90 + k, tumour=False, size=(half, half)), corner) for k, corner in enumerate(corners)]
    return OnGlass((2 * half, 2 * half), tuple(pieces), seed=0)


def slide(path: Path, mask: Path | None) -> Source:
    """A slide at level 0 as floats; with a mask, what is outside it is filled."""
    image: Source = open_image(path, level=0)
    if mask is not None:
        image = MaskedSource(image, np.load(mask), FILL, (BLOCK, BLOCK))
    return ScaledSource(image)


def step(image: Source, tile: int | None, memory: str | None) -> Measured:
    """One forward and backward of a ResNet-18 with a global mean and two classes; normalisation is frozen."""
    torch.manual_seed(0)
    net = resnet18(num_classes=2).eval()
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    streamed = StreamingModule(net, memory=memory) if memory else StreamingModule(net, tile=tile, stored=STORED)
    logger.info("%s", streamed.plan(image))
    start, worked = time.perf_counter(), time.process_time()
    loss = F.cross_entropy(streamed(image), torch.tensor([1]))
    ran = streamed.last_run
    assert ran is not None and ran.reading is not None
    logger.info("forward: %.0f s, %s, RSS %s", time.perf_counter() - start, ran, format_bytes(_rss()))
    loss.backward()
    seconds, processor = time.perf_counter() - start, time.process_time() - worked
    norm = torch.stack([p.grad.norm() for p in net.parameters() if p.grad is not None]).norm()
    logger.info("step: %.0f s, of the processor %.0f s, RSS %s", seconds, processor, format_bytes(_rss()))
    logger.info("%.1f s waited for pixels", ran.reading.waited)
    return Measured(seconds, processor, ran.reading.waited, _rss(), str(ran), loss.item(), norm.item())


def _rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _run(path: Path, mask: Path | None, tile: int | None, memory: str | None, threads: int) -> Measured:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(threads)
    return step(slide(path, mask), tile, memory)


def main() -> None:
    """Measures both steps, each in a process of its own, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=65536, help="of the slide, in pixels")
    parser.add_argument("--tile", type=int, default=512, help="pixels of the image that a tile covers; 0 chooses")
    parser.add_argument("--memory", help="a budget in place of the tile and the stored maps")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--folder", type=Path, default=Path(gettempdir()) / "streamingcnn-slides", help="of the files")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as process:  # or their making would count as memory
        path, mask, alone = process.submit(files, options.folder, options.side).result()
    share = float(np.load(mask).mean())
    steps = {f"slide, {share:.1%} inside the mask": (path, mask), "tissue alone": (alone, None)}
    results, extents = {}, {}
    for name, (file, masked) in steps.items():
        with ProcessPoolExecutor(1, context) as process:
            asked = (file, masked, options.tile or None, options.memory, options.threads)
            results[name] = process.submit(_run, *asked).result()
        extents[name] = open_image(file, level=0).shape[1]
    (first, on_slide), (second, on_tissue) = results.items()
    pixels = share * extents[first] ** 2 / extents[second] ** 2
    ratio = on_slide.processor / (on_tissue.processor * pixels)
    print("| image | pixels | tiles | time | of the processor | waiting for pixels | RSS |")
    print("|---|---|---|---|---|---|---|")
    for name, got in results.items():
        times = f"{got.seconds:.0f} s | {got.processor:.0f} s | {got.waited / got.seconds:.1%}"
        print(f"| {name} | {extents[name]}^2 | {got.tiles} | {times} | {format_bytes(got.rss_bytes)} |")
    met = "met" if ratio <= RATIO and on_slide.rss_bytes < RSS else "missed"
    print(f"\n{ratio:.2f}x of the tissue's share (bound {RATIO}x), RSS bound {format_bytes(RSS)}: {met}")
    how = f"memory={options.memory}" if options.memory else f"tile {options.tile or 'chosen'}"
    print(f"{machine(options.threads)}; {how}; one step each.")


if __name__ == "__main__":
    main()
