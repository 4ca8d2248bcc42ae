"""A plan over several ranks says what one of them runs: its tiles, its maps, and the time of the slowest.

Once wrong: tiles and seconds were those of one process that ran the whole image (2670 s said, 1075 s taken).
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from streamingcnn import StreamingModule
from streamingcnn.capture import capture
from streamingcnn.distributed.ownership import Division
from streamingcnn.distributed.planning import Ranks
from streamingcnn.graph import Graph
from streamingcnn.plan.plan import Plan, make_plan

SHAPE = (1, 2, 512, 384)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.Tanh()
    )


@pytest.fixture(scope="module")
def graph() -> Graph:
    return capture(network(), (torch.zeros(SHAPE),), {})


def over(graph: Graph, *weights: float, rank: int = 0, axis: int = 0, tile: int = 32) -> Plan:
    """The plan of ranks whose parts along an axis have these shares."""
    parts: list[tuple[float, ...]] = [(1.0,), (1.0,)]
    parts[axis] = weights
    division = Division((len(parts[0]), len(parts[1])), (parts[0], parts[1]))
    return make_plan(graph, tile, ranks=Ranks(division, True, rank=rank))


def test_equal_parts_take_their_share(graph: Graph) -> None:
    alone = make_plan(graph, 32)
    for ranks in (2, 4):
        for axis in (0, 1):
            plan = over(graph, *[1.0] * ranks, axis=axis)
            assert plan.tiles == alone.tiles / ranks
            assert plan.seconds == pytest.approx(alone.seconds / ranks, rel=0.01)
    assert over(graph, 1.0).seconds == pytest.approx(alone.seconds)


def test_the_time_is_that_of_the_slowest(graph: Graph) -> None:
    alone = make_plan(graph, 32)
    plans = [over(graph, 1.0, 7.0, rank=rank) for rank in (0, 1)]
    assert [plan.tiles / alone.tiles for plan in plans] == [1 / 8, 7 / 8]
    for plan in plans:  # the first waits for the second
        assert plan.seconds == pytest.approx(alone.seconds * 7 / 8, rel=0.01)


def test_a_rank_takes_what_its_part_would_take_alone(graph: Graph) -> None:
    """The halo at the seam is what its part has more than an image of its size."""
    half = capture(network(), (torch.zeros(1, 2, 256, 384),), {})
    for tile in (32, 100, 512):
        plan, alone = over(graph, 1.0, 1.0, tile=tile), make_plan(half, tile, stored=stored(graph, tile))
        assert plan.tiles == alone.tiles
        assert alone.seconds <= plan.seconds <= 1.1 * alone.seconds


def stored(graph: Graph, tile: int) -> list[str]:
    return [stage.name for stage in make_plan(graph, tile).stages if stage.stored]


def test_parts_without_pixels_take_nothing() -> None:
    deep = capture(
        nn.Sequential(nn.Conv2d(1, 4, 3, 8, 1), nn.Tanh(), nn.Conv2d(4, 4, 3, 8, 1)), (torch.zeros(1, 1, 16, 64),), {}
    )
    plans = [over(deep, 1.0, 1.0, 1.0, rank=rank) for rank in range(3)]
    assert plans[0].seconds == plans[1].seconds == plans[2].seconds > 0
    assert min(plan._tiles_of(plan.stages[-1]) for plan in plans) == 0


def test_what_is_printed(graph: Graph) -> None:
    text = str(over(graph, 1.0, 3.0, rank=1))
    assert "divided over 2 ranks (2x1): tiles and maps are those of rank 1" in text
    assert "rank 1 sends" in text
    assert f"{over(graph, 1.0, 3.0, rank=1).tiles} tiles" in text
    assert "ranks" not in str(StreamingModule(network(), tile=32).plan(SHAPE))
