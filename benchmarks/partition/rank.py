"""One process of the benchmark: alone, or as a rank under torchrun. Prints what it saw as a line of JSON."""

from __future__ import annotations

import json
import os
import sys
import time

import torch
import torch.distributed as dist

from benchmarks.networks import NETWORKS
from streamingcnn import Partition, StreamingModule
from streamingcnn.memory import LiveBytes


def main() -> None:
    """A step that counts bytes and warms up, and the faster of two that are timed."""
    network, size = sys.argv[1:]
    shape = tuple(map(int, size.split("x")))
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = NETWORKS[network]()
    tile = 256 if len(shape) == 4 else 32
    several = "WORLD_SIZE" in os.environ
    if several:
        dist.init_process_group("gloo")
    partition = Partition(dims=(0,), gather="none") if several else None
    net = StreamingModule(module, tile=tile, partition=partition)
    image = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    given = image
    if partition is not None:
        (low, high), *_ = partition.input_box(shape)
        given = partition.part(image[:, :, low:high].clone(), shape)  # type: ignore[assignment]

    def step() -> float:
        net.zero_grad(set_to_none=True)
        if several:
            dist.barrier()
        start = time.perf_counter()
        result = net(given)
        result.backward(torch.full_like(result, 1 / result.numel()))
        return time.perf_counter() - start

    with LiveBytes() as live:
        step()
    waited = partition.link.waited if partition is not None else 0.0
    seconds = [step(), step()]
    waited = (partition.link.waited - waited) / 2 if partition is not None else 0.0
    print(json.dumps({"seconds": min(seconds), "waited": waited, "live": live.peak}), flush=True)
    if several:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
