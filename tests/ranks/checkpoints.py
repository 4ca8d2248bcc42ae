"""Checkpoints that go from one number of ranks to another."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from streamingcnn import Partition, StreamingModule
from streamingcnn.distributed import load_checkpoint, save_checkpoint

from .case import Case, same


def checkpoints(_: list[str]) -> Iterator[Case]:
    """Saved by two ranks; loaded by three, which go on and save; loaded by each alone.

    Once wrong: torch names groups by how many a process knows, so ranks that knew others waited for each other.
    """
    where: list[Any] = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(where)
    folder = Path(where[0])
    two, three = dist.new_group([0, 1]), dist.new_group([0, 1, 2])
    one = [dist.new_group([rank]) for rank in range(dist.get_world_size())][dist.get_rank()]
    image = torch.randn(1, 1, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def fresh(group: Any) -> tuple[Any, torch.optim.Optimizer]:
        net: nn.Module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3)).double()
        if group is not None:
            net = StreamingModule(net, tile=4, partition=Partition(group, timeout=60))
        return net, torch.optim.AdamW(net.parameters(), 0.01)

    def steps(net: Any, optimizer: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            net(image).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    def state(net: Any, optimizer: torch.optim.Optimizer) -> list[Tensor]:
        moments = [held for each in optimizer.state.values() for held in each.values()]
        return [tensor.detach().clone() for tensor in (*net.state_dict().values(), *moments)]

    saved: list[Any] = [None]
    if dist.get_rank() < 2:
        net, optimizer = fresh(two)
        steps(net, optimizer, 2)
        save_checkpoint(folder, net, optimizer, 2, two)
        (folder / ".step_00000003.partial").mkdir(exist_ok=True)  # a process that was killed while it saved
        saved = [state(net, optimizer)]
    dist.broadcast_object_list(saved)
    equal = True
    if dist.get_rank() < 3:
        net, optimizer = fresh(three)
        equal = load_checkpoint(folder, net, optimizer, three) == 2 and same(state(net, optimizer), saved[0])
        steps(net, optimizer, 1)
        save_checkpoint(folder, net, optimizer, 3, three)
        saved = [state(net, optimizer)]
    dist.broadcast_object_list(saved)
    net, optimizer = fresh(None)
    equal = equal and load_checkpoint(folder, net, optimizer, one) == 3 and same(state(net, optimizer), saved[0])
    equal = equal and sorted(path.name for path in folder.iterdir()) == ["step_00000003"]
    flags = torch.tensor([float(equal)])
    dist.all_reduce(flags, dist.ReduceOp.MIN)
    if dist.get_rank() == 0:
        shutil.rmtree(folder)
    yield {"case": "two, three, one", "same": bool(flags)}
