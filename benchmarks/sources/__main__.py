"""How long a training step waits for its pixels: `python -m benchmarks.sources`.

The same step on a made slide in a tiled TIFF, deflated, read through OpenSlide and through tifffile, with reading ahead
and without it; variants take turns, and the shares are those of each one's own step.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from benchmarks.measure import machine
from benchmarks.pages import fill
from streamingcnn import StreamingModule
from streamingcnn.boxes import Box
from streamingcnn.models import resnet18
from streamingcnn.sources import ScaledSource, SlideImage, Source, TiffImage
from streamingcnn.synthetic import make_slide, write_slide

__all__ = ["OnTheSpot", "Step", "step"]


class OnTheSpot:
    """A source that is read when a tile asks for it, and not before."""

    threads = 0

    def __init__(self, source: Source) -> None:
        self.source = source
        self.shape, self.dtype, self.axes = source.shape, source.dtype, source.axes

    def read(self, box: Box) -> torch.Tensor:
        """The pixels of a box."""
        return self.source.read(box)


@dataclass(frozen=True)
class Step:
    """What one step took: its seconds, and those in which it stood still for pixels."""

    seconds: float
    waited: float
    boxes: int


def step(net: StreamingModule, image: Source) -> Step:
    """One forward and backward."""
    start = time.perf_counter()
    net(image).mean().backward()
    assert net.last_run is not None and net.last_run.reading is not None
    return Step(time.perf_counter() - start, net.last_run.reading.waited, net.last_run.reading.boxes)


def main() -> None:
    """Measures, prints a table, and puts it into README.md beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=4096, help="of the slide, in pixels")
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="that compute")
    parser.add_argument("--pages", action="store_true", help="put the table into README.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    net: Any = resnet18(num_classes=2).eval()
    net.to(memory_format=torch.channels_last)
    small: Any = nn.Sequential(nn.Conv2d(3, 8, 7, 4, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1))
    streamed = {
        "ResNet-18": StreamingModule(net, tile=options.tile),
        "two convolutions": StreamingModule(small, tile=options.tile),
    }
    with TemporaryDirectory() as folder:
        path = Path(folder) / "slide.tif"
        write_slide(make_slide(0, tumour=False, size=(options.side, options.side)), path)
        rows = measured(path, streamed, options.rounds)
    said = f"{machine(options.threads)}; {options.side}^2 pixels, tile {options.tile}, {options.rounds} rounds."
    text = f"{table(rows)}\n\n{said}"
    print(text)
    if options.pages:
        fill(Path(__file__).parent / "README.md", "sources-waiting", text)


def measured(path: Path, nets: dict[str, StreamingModule], rounds: int) -> dict[tuple[str, str, bool], list[Step]]:
    """Every variant once per round: by network, by reader, by whether it reads ahead."""
    readers = {"OpenSlide": SlideImage, "tifffile": TiffImage}
    rows: dict[tuple[str, str, bool], list[Step]] = {}
    for number in range(rounds):
        for name, net in nets.items():
            for reader, kind in readers.items():
                for ahead in (False, True):
                    image: Source = ScaledSource(kind(path))
                    image = image if ahead else OnTheSpot(image)
                    if number == 0:
                        net.plan(image)
                    rows.setdefault((name, reader, ahead), []).append(step(net, image))
    return rows


def table(rows: dict[tuple[str, str, bool], list[Step]]) -> str:
    """One line per variant; the share of its fastest step."""
    lines = [
        "| network | read by | reading ahead | step | waiting for pixels | share |",
        "|---|---|---|---|---|---|",
    ]
    for (name, reader, ahead), steps in rows.items():
        best = min(steps, key=lambda each: each.seconds)
        share = best.waited / best.seconds
        met = f" ({'met' if share < 0.1 else 'missed'}: below 10 %)" if ahead and name == "ResNet-18" else ""
        lines.append(
            f"| {name} | {reader} | {'yes' if ahead else 'no'} | {best.seconds:.2f} s | {best.waited:.2f} s | "
            f"{share:.1%}{met} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
