"""What it costs to keep the stored maps on disk: python -m benchmarks.plan.offload --folder /scratch

Three ways to make the same step, one after the other in every round: the maps on the device; the same plan with its
maps on disk; and maps on the device again, but planned for the bytes that the second way took, which is what one would
do without a disk. The fastest step of each counts, and all tensors that live at the same time, parameters' gradients
included. The file is mapped, so the system writes to the disk when it likes: with memory to spare it never waits.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass

import torch

from benchmarks.networks import NETWORKS, prepare
from streamingcnn import StreamingModule
from streamingcnn.memory import LiveBytes, format_bytes
from streamingcnn.plan.cost import map_bytes
from streamingcnn.plan.search import BudgetError

__all__ = ["main"]


@dataclass
class Way:
    """One way to make the step, and what was measured of it."""

    name: str
    net: StreamingModule
    live_bytes: int = 0
    seconds: float = float("inf")

    def step(self, x: torch.Tensor) -> None:
        self.net.zero_grad(set_to_none=True)
        self.net(x).mean().backward()

    def count(self, x: torch.Tensor) -> None:
        with LiveBytes() as live:
            self.step(x)
        self.live_bytes = live.peak

    def time(self, x: torch.Tensor) -> None:
        start = time.perf_counter()
        self.step(x)
        self.seconds = min(self.seconds, time.perf_counter() - start)

    def row(self, x: torch.Tensor) -> str:
        stages = [stage for stage in self.net.plan(x).stages if stage.place == "disk"]
        held = sum(map_bytes(stage.target) for stage in stages)
        tiles = self.net.plan(x).tiles
        return (
            f"| {self.name} | {tiles} | {format_bytes(self.live_bytes)} | {format_bytes(held)} | {self.seconds:.2f} s |"
        )


def main(arguments: list[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet18", choices=NETWORKS)
    parser.add_argument("--size", default="1x3x2048x2048", help="of the image")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where the file is made")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    x = torch.rand(*map(int, given.size.split("x")))
    module, _ = prepare(given.network, "plain")
    ways = [
        Way("maps on the device", StreamingModule(module)),
        Way("maps on disk", StreamingModule(module, offload=f"disk:{given.folder}")),
    ]
    for way in ways:
        way.count(x)
    same = ways[1].net.plan(x).peak_bytes
    try:
        ways.append(Way(f"maps on the device, memory={format_bytes(same)}", StreamingModule(module, memory=same)))
        ways[-1].count(x)
    except BudgetError as error:
        ways.pop()
        print(f"On the device alone {format_bytes(same)} are not enough: {error}\n")
    for _ in range(given.rounds):
        for way in ways:
            way.time(x)
    print(f"{given.network}, {given.size}, {given.threads} thread(s), fastest of {given.rounds}\n")
    print("| way | tiles | live bytes | maps on disk | time |\n|---|---|---|---|---|")
    for way in ways:
        print(way.row(x))


if __name__ == "__main__":
    main()
