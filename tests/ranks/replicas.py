"""Data parallelism over partitions."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from streamingcnn import Partition, StreamingModule

from .case import Case, same


def replicas(_: list[str]) -> Iterator[Case]:
    """dp x spatial: DDP and FSDP2 over two images, each on two ranks, against one process; accumulated and clipped.

    The same with a GradScaler; and where it meets a gradient that is not finite, it makes no step.
    """
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "spatial"))
    torch.manual_seed(0)
    base = nn.Sequential(
        nn.Conv2d(2, 4, 3, 2, 1), nn.GELU(), nn.Conv2d(4, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)
    )
    images = torch.randn(2, 2, 2, 33, 21, dtype=torch.float64)  # of two steps, one image for each of dp
    plain = copy.deepcopy(base).double()
    for step in images:
        plain(step).square().sum(1).mean().backward()
    before = nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
    for kind in ("DDP", "FSDP2", "DDP, GradScaler", "FSDP2, GradScaler"):
        net: Any = StreamingModule(copy.deepcopy(base).double(), tile=8, partition=Partition(mesh["spatial"], ("H",)))
        if kind.startswith("DDP"):
            net = DistributedDataParallel(net, process_group=mesh["dp"].get_group())
        else:
            fully_shard(net, mesh=mesh["dp"])
        optimizer = torch.optim.SGD(net.parameters())
        scaler = torch.amp.GradScaler("cpu", enabled=kind.endswith("GradScaler"))
        for step in images:
            loss = net(step[mesh["dp"].get_local_rank()][None]).square().sum(1).mean()
            scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(net.parameters(), 0.1)
        error = abs(float(full_of(norm)) - float(before)) / float(before)
        for a, b in zip(net.parameters(), plain.parameters(), strict=True):
            assert b.grad is not None
            error = max(error, float((full_of(a.grad) - b.grad).norm() / b.grad.norm()))
        yield {"case": kind, "error": error}
        # Too large a number anywhere: no rank makes the step, and all go on with the same scale.
        if scaler.is_enabled():
            before_step = [full_of(p).detach().clone() for p in net.parameters()]
            optimizer.zero_grad()
            scaler.update()
            image = images[0][mesh["dp"].get_local_rank()][None].clone()
            if mesh["dp"].get_local_rank() == 1:
                image[..., -1, -1] = torch.inf
            scaler.scale(net(image).square().sum(1).mean()).backward()
            scaler.step(optimizer)
            scaler.update()
            scales: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(scales, scaler.get_scale())
            kept = same([full_of(p).detach() for p in net.parameters()], before_step)
            yield {"case": f"{kind}, infinite", "error": 0.0 if kept else 1.0, "scales": scales}


def full_of(tensor: Any) -> Tensor:
    """A sharded tensor as a whole."""
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole
