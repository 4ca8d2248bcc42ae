"""The promise itself: a streamed network gives plain PyTorch's output, gradients and buffers.

Plain is an untouched deepcopy that PyTorch runs eagerly, never our own graph. Errors are the project's own
(see comparison.py) in float64, at most 1e-10: rounding of sums in another order stays near 1e-15.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
from torch import nn

import streamingcnn.module
from streamingcnn import StreamingModule
from streamingcnn.capture import capture
from streamingcnn.check import compare
from streamingcnn.graph import Graph
from tests.networks import NETWORKS, Network, Tile

BOUND = 1e-10

CASES = [
    pytest.param(network, batch, tile, id=f"{network.name}-{batch}-{tile}".replace(", ", "x"))
    for network in NETWORKS
    for batch, tile in network.cases()
]


@pytest.mark.parametrize("network, batch, tile", CASES)
def test_streamed_is_plain(network: Network, batch: int, tile: Tile, capture_once: None) -> None:
    module = network.make()
    image, more = network.inputs(batch)
    plain = copy.deepcopy(module)
    net = StreamingModule(module, tile=tile)

    rows = compare(plain, net, image, **more)

    worst = max(rows, key=lambda row: row.error)
    assert worst.error <= BOUND, "\n".join(f"{row.error:9.2g}  {row}" for row in rows if row.error > BOUND)
    plan = net.plan(image, **more)
    assert plan.tiles > len(plan.stages), f"nothing was cut into tiles:\n{plan}"


@pytest.fixture
def capture_once(
    network: Network, batch: int, monkeypatch: pytest.MonkeyPatch, captures: dict[tuple[str, int], Graph]
) -> None:
    """Capture a network once for its three tilings: nine tenths of the time of a case are torch.export's.

    A graph holds names and no values, so it also serves the next instance of the same network.
    """
    key = (network.name, batch)

    def remembered(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Graph:
        if key not in captures:
            captures.clear()
            captures[key] = capture(module, args, kwargs)
        return captures[key]

    monkeypatch.setattr(streamingcnn.module, "capture", remembered)
    if key in captures or batch > 1:  # batch 1 has been tried
        monkeypatch.setattr(streamingcnn.module, "refuse_early", lambda module: None)


@pytest.fixture(scope="module")
def captures() -> dict[tuple[str, int], Graph]:
    return {}
