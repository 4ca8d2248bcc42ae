"""Random networks over several ranks."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
import torch.distributed as dist

from streamingcnn import Partition, StreamingModule
from streamingcnn.comparison import run_step

from .case import Case


def fuzz(names: list[str]) -> Iterator[Case]:
    """Random networks (`tests.fuzz`) divided along one axis or two; two numbers among the names are their seeds."""
    from tests.fuzz import networks
    from tests.fuzz.draw import FromSeed
    from tests.fuzz.judge import against_plain

    first, last = [int(name) for name in names if name.isdigit()] or (0, 8)
    ranks = dist.get_world_size()
    for seed in range(first, last):
        case = networks.example(FromSeed(seed))
        space = case.image.dim() - 2
        grid = ranks == 4 and space > 1 and seed % 2 == 0
        axes, parts = ([0, 1], (2, 2)) if grid else ([seed % space], (ranks,))
        weights = [(1, 5, 2, 3)[:count] for count in parts] if seed % 3 == 0 else None
        partition = Partition(None, axes, parts, weights, timeout=60)
        net = StreamingModule(copy.deepcopy(case.net), tile=case.tile, partition=partition)
        rows = against_plain(case, net, [run_step(net, case.image)])
        errors = torch.tensor([max(error for _, error in rows)], dtype=torch.float64)
        dist.all_reduce(errors, dist.ReduceOp.MAX)
        yield {"case": f"seed {seed} on axes {axes} in {parts}, weights {weights}", "error": float(errors)}
