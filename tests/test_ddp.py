"""DistributedDataParallel around a streamed module: the mean of all gradients, as around a plain one."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from streamingcnn import StreamingModule
from streamingcnn.check import relative_errors
from tests.blocks import Residual
from tests.forked import needs_fork, ranks

RANKS = 2
BOUND = 1e-10


def whole() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(
        nn.Conv2d(3, 4, 5, 2, 2), Residual(4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    ).double()


def images(step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(RANKS, 2, 3, 37, 45, dtype=torch.float64, generator=generator)


def rank_main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    try:
        plain = whole()
        net = DistributedDataParallel(StreamingModule(copy.deepcopy(plain), tile=16), bucket_cap_mb=1)
        replicas = [copy.deepcopy(plain) for _ in range(RANKS)]  # buffers are each rank's own, but rank 0 leads
        optimiser = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        reference = torch.optim.SGD(plain.parameters(), 0.1, momentum=0.9)
        for step in range(3):
            optimiser.zero_grad()
            # The second step accumulates: its first half is not synchronised.
            rounds = [images(step)] if step != 1 else [images(step), images(10 + step)]
            for number, batch in enumerate(rounds):
                if number < len(rounds) - 1:
                    with net.no_sync():
                        net(batch[rank]).square().sum().backward()
                else:
                    net(batch[rank]).square().sum().backward()
            reference.zero_grad()
            for batch in rounds:
                for other, replica in enumerate(replicas):
                    replica.load_state_dict(plain.state_dict(), strict=True)
                    replica(batch[other]).square().sum().div(RANKS).backward()
            for replica in replicas:
                for parameter, of_replica in zip(plain.parameters(), replica.parameters(), strict=True):
                    assert of_replica.grad is not None
                    parameter.grad = of_replica.grad + (0 if parameter.grad is None else parameter.grad)
                replica.zero_grad()
            errors = relative_errors(
                {name: parameter.grad for name, parameter in net.module.named_parameters()},
                {name: parameter.grad for name, parameter in plain.named_parameters()},
            )
            assert max(errors.values()) <= BOUND, (rank, step, errors)
            optimiser.step()
            reference.step()
        dist.barrier()
    finally:
        dist.destroy_process_group()


@needs_fork
@pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")
@pytest.mark.timeout(240)
def test_ddp_averages_the_gradients_of_two_processes(tmp_path: Path) -> None:
    done = ranks(tmp_path, RANKS, rank_main)
    assert all(rank.code == 0 for rank in done), done
