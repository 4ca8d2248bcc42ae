"""What a rank holds, against one process."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from streamingcnn import Partition, StreamingModule
from streamingcnn.memory import LiveBytes
from streamingcnn.models import UNet3D, resnet18

from .case import Case, cut


def memory(_: list[str]) -> Iterator[Case]:
    """The bytes of maps and their gradients on the rank that holds most, against one process.

    Gradients of parameters, which do not shrink, are not counted; tiles are small, as they do not shrink either.
    """
    trunk = nn.Sequential(*list(resnet18().eval().children())[:6])
    for name, module, shape, tile in (
        ("resnet18 without its widest layers", trunk, (1, 3, 640, 256), 32),
        ("unet3d", UNet3D(1, 2, levels=3, filters=8, norm="batch").eval(), (1, 1, 96, 32, 32), 12),
    ):
        partition = Partition(None, (0,), timeout=60, gather="none")
        net = StreamingModule(copy.deepcopy(module), partition=partition, tile=tile)
        image = torch.randn(shape)
        part = partition.part(cut(image, partition.input_box(shape)).clone(), shape)
        fixed = sum(parameter.nbytes for parameter in module.parameters())
        found = torch.tensor([peak(net, part) - fixed])
        dist.all_reduce(found, dist.ReduceOp.MAX)
        case: Case = {"case": name, "rank": int(found)}
        if dist.get_rank() == 0:  # which prints it; the others would take the processors to find the same
            case["alone"] = peak(StreamingModule(module, tile=tile), image) - fixed
        dist.barrier()
        yield case


def peak(net: nn.Module, given: Any) -> int:
    """The height of a step in bytes."""
    with LiveBytes() as live:
        result = net(given)
        result.backward(torch.ones_like(result))
    return live.peak
