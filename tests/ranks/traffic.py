"""Bytes sent and bytes held, against those of the plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from streamingcnn import Partition, StreamingModule
from streamingcnn.memory import LiveBytes
from streamingcnn.models import UNet3D, resnet18
from streamingcnn.runner import Runner

from .case import Case, cut


class Counted:
    """How many tiles were run, and how many of them in forward."""

    run = forward = 0

    def counting(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            self.run += 1
            return method(*arguments)

        return counted


def traffic(_: list[str]) -> Iterator[Case]:
    """The bytes that were sent against those that the plan says; and the bytes of a rank against its plan's."""
    torch.manual_seed(0)
    for name, module, shape, options in (
        ("resnet18", resnet18(), (1, 3, 256, 192), {"tile": 64}),
        ("unet3d", UNet3D(1, 2, levels=3, filters=4, norm="batch"), (1, 1, 40, 16, 24), {"memory": "4MiB"}),
    ):
        partition = Partition(None, ("H",), timeout=60, gather="none")
        net = StreamingModule(module.eval(), partition=partition, **options)
        image = torch.randn(shape)
        part = partition.part(cut(image, partition.input_box(shape)).clone(), shape)
        plan = net.plan(part)
        before, tiles = partition.link.sent, Counted()
        with LiveBytes() as live, pytest.MonkeyPatch.context() as patch:
            patch.setattr(Runner, "_forward_tile", tiles.counting(Runner._forward_tile))
            result = net(part)
            tiles.forward = tiles.run
            result.backward(torch.ones_like(result))
        mine: Case = {
            "sent": partition.link.sent - before,
            "planned": plan.bytes_sent(partition.rank),
            "live": live.peak,
        }
        mine |= {"tiles": [tiles.forward, plan.tiles]}
        everyone: list[Any] = [None] * partition.size
        dist.all_gather_object(everyone, mine)
        yield {"case": name, "ranks": everyone, "predicted": plan.peak_bytes}
