"""The exchange of boxes, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist

from streamingcnn import Partition
from streamingcnn.distributed import redistribute

from .case import Case, cut


def adjoint(names: list[str]) -> Iterator[Case]:
    """<R x, y> = <x, R'y> for 50 tables of owned and needed boxes, drawn at random."""
    partition = Partition(None, ("H",), timeout=60)
    ranks, draw = partition.size, torch.Generator().manual_seed(1)

    def number(high: int) -> int:
        return int(torch.randint(high + 1, (), generator=draw))

    for k in range(50):
        extents = (number(12) + 1, number(6) + 1)
        cuts = sorted(number(extents[0]) for _ in range(ranks - 1))
        own = [((low, high), (0, extents[1])) for low, high in zip([0, *cuts], [*cuts, extents[0]], strict=True)]
        need = []
        for _ in range(ranks):
            ends = [sorted((number(extent), number(extent))) for extent in extents]
            need.append(tuple((low, high) for low, high in ends))
        shape = (2, 3, *extents)
        torch.manual_seed(100 * k + partition.rank)
        x = cut(torch.randn(shape, dtype=torch.float64), own[partition.rank]).clone().requires_grad_()
        wide = redistribute(x, shape, own, need, partition.link)
        y = torch.randn_like(wide)
        wide.backward(y)
        assert x.grad is not None
        sums = torch.stack(
            [(wide.detach() * y).sum(), (x.detach() * x.grad).sum(), x.detach().square().sum(), y.square().sum()]
        )
        dist.all_reduce(sums)
        scale = float((sums[2] * sums[3]).sqrt())
        yield {"case": f"table {k}", "error": float((sums[0] - sums[1]).abs()) / max(scale, 1e-30)}
