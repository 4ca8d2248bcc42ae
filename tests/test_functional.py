"""Writes in a captured program: what is rewritten here, what is left to torch, and that both are exact."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamingcnn import StreamingModule
from streamingcnn.comparison import compare
from streamingcnn.functional import made_functional
from tests.blocks import Net


def view_made_before(net: Net, x: Tensor) -> Tensor:
    y = net.conv(x)
    half = y[:, :2]
    y.relu_()
    return net.last(torch.cat([half, y], 1))


def dropout_gives_its_input_back(net: Net, x: Tensor) -> Tensor:
    y = net.conv(x)
    z = F.dropout(y, training=False)
    z.relu_()
    return net.last(torch.cat([y[:, :2], z], 1))


def residual(net: Net, x: Tensor) -> Tensor:
    y = net.norm(net.conv(x))
    z = torch.tanh(y)
    y += z
    y.mul_(2).sigmoid_()
    return net.last(torch.cat([y, z[:, :2]], 1))


def norm_twice(net: Net, x: Tensor) -> Tensor:
    return net.last(torch.cat([net.norm(net.conv(x)), torch.tanh(net.conv(x))[:, :2]], 1))


def counted(net: Net, x: Tensor) -> Tensor:
    net.seen.add_(1)
    net.seen.mul_(2)
    return net.last(torch.cat([net.conv(x) * net.seen, x[:, :2]], 1))


def vector_norm(net: Net, x: Tensor) -> Tensor:
    return net.vector(net.conv(x).square().mean((2, 3)))


def network(compute: Callable[[Net, Tensor], Tensor]) -> nn.Module:
    net = Net(
        compute, conv=nn.Conv2d(3, 4, 3, padding=1), last=nn.Conv2d(6, 2, 3), norm=nn.BatchNorm2d(4),
        vector=nn.BatchNorm1d(4),
    )  # fmt: skip
    net.register_buffer("seen", torch.ones(()))
    return net.double()


HERE = [residual, norm_twice, counted, vector_norm]
TORCH = [view_made_before]


@pytest.mark.parametrize("compute", [*HERE, *TORCH, dropout_gives_its_input_back], ids=lambda net: net.__name__)
def test_writes_are_followed(compute: Callable[[Net, Tensor], Tensor]) -> None:
    module = network(compute)
    x = torch.randn(3, 3, 19, 16, dtype=torch.float64)
    rows = compare(copy.deepcopy(module), StreamingModule(module, tile=6), x)
    assert {row.kind for row in rows} >= {"output", "input gradient", "buffer"}
    assert max(row.error for row in rows) <= 1e-12


@pytest.mark.parametrize("compute", HERE + TORCH, ids=lambda compute: compute.__name__)
def test_what_is_rewritten(compute: Callable[[Net, Tensor], Tensor]) -> None:
    """The two ways agree on what is theirs: a write that another name can see is torch's."""
    program = torch.export.export(network(compute), (torch.randn(3, 3, 19, 16, dtype=torch.float64),), strict=False)

    def writes() -> bool:
        targets = [node.target for node in program.graph.nodes]
        return any(isinstance(t, torch._ops.OpOverload) and t._schema.is_mutable for t in targets)

    assert writes()
    assert made_functional(program) == (compute in HERE)
    assert writes() == (compute in TORCH)
