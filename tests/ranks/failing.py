"""What goes wrong on one rank, and what every rank says of it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from streamingcnn import Partition, StreamingModule
from streamingcnn.boxes import Box

from .case import Case, cut


def failing(kinds: list[str]) -> Iterator[Case]:
    """One thing goes wrong on rank 1; every rank has to end, and say why."""
    (kind,) = kinds
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)]
    guilty = dist.get_rank() == 1
    if kind == "layer" and guilty:
        layers.append(nn.Conv2d(4, 4, 1))
    image = torch.randn(1, 2, 40, 32, dtype=torch.float64 if kind == "dtype" and guilty else torch.float32)
    net = nn.Sequential(*layers).to(image.dtype if kind == "dtype" else torch.float32)
    partition = Partition(None, ("H",), timeout=8)
    if kind == "replicas":
        with torch.no_grad():
            next(net.parameters()).add_(dist.get_rank())
        partition.verify_replicas(net)
    streamed = StreamingModule(net, tile=8, partition=partition)
    if kind == "shape" and guilty:
        image = image[..., :30]
    if kind == "sleep" and guilty:
        time.sleep(600)
    if kind in ("kill forward", "kill others compute", "exception"):
        result = streamed(_Failing(image, kind if guilty else "compute" if kind == "kill others compute" else ""))
    else:
        result = streamed(image)
    if kind == "kill backward" and guilty:
        os.kill(os.getpid(), signal.SIGKILL)
    result.sum().backward()
    yield {"case": kind, "error": 0.0}


class _Failing:
    """A source that ends its process, raises, or takes its time in the middle of an image."""

    axes = "NCYX"

    def __init__(self, image: Tensor, kind: str) -> None:
        self.image, self.kind, self.shape, self.dtype = image, kind, tuple(image.shape), image.dtype

    def read(self, box: Box) -> Tensor:
        if self.kind == "compute":
            time.sleep(600)  # and not in a message from anyone
        elif self.kind and box[0][0] > 22:
            if self.kind == "exception":
                raise OSError(f"the pixels of {box} cannot be read")
            os.kill(os.getpid(), signal.SIGKILL)
        return cut(self.image, box)
