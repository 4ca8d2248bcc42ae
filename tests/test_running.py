"""The quick estimate of how many tiles run, against the count of the tiles that truly do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from streamingcnn import StreamingModule
from streamingcnn.capture import capture
from streamingcnn.plan.align import align
from streamingcnn.plan.choose import tile_of
from streamingcnn.plan.running import Running
from streamingcnn.plan.stages import Stage, build_steps
from streamingcnn.signature import Content, share
from streamingcnn.sources.source import ConstantBlocks

TRUNK = nn.Sequential(
    nn.Conv2d(1, 4, 5, 2, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 2, 1)
)


def background(side: int = 2048, block: int = 64) -> Content:
    """A square of background with three pieces of something else, one of them at the border."""
    labels = np.zeros((side // block, side // block), np.int64)
    labels[3:8, 5:9] = labels[20:22, 14:26] = labels[28:, :3] = -1
    return Content({"input": ConstantBlocks((block, block), labels)})


@pytest.mark.parametrize("tile", [32, 64, 128])
def test_the_estimate_is_near_the_count(tile: int) -> None:
    graph = capture(TRUNK.eval(), (torch.empty(1, 1, 2048, 2048, device="meta"),), {})
    content = background()
    steps = build_steps(graph, set(graph.locals))
    for step in steps:
        assert isinstance(step, Stage)
        step.tile = tile_of(graph, step.target, (tile, tile))
    steps = align(steps, chosen=True)
    sharing, running = share(steps, graph.image, content), Running(graph, content)
    for stage in steps:
        assert isinstance(stage, Stage)
        exact = sharing.count(stage) / stage.tiles
        assert exact < 0.7
        assert exact / 1.25 <= running.share(stage.name, stage.tile) <= 1.25 * exact


def test_smaller_tiles_leave_more_of_the_background_out() -> None:
    graph = capture(TRUNK.eval(), (torch.empty(1, 1, 2048, 2048, device="meta"),), {})
    running = Running(graph, background())
    shares = [running.share(graph.outputs[0].name, (tile, tile)) for tile in (8, 16, 32, 64, 128)]
    assert shares == sorted(shares) and shares[0] < 0.2 < 0.5 < shares[-1]


def test_without_a_constant_part_or_after_a_dropout_every_tile_runs() -> None:
    image = torch.empty(1, 1, 2048, 2048, device="meta")
    dropped = nn.Sequential(TRUNK, nn.Dropout(0.5), nn.Conv2d(4, 4, 3)).train()
    for module, content in ((TRUNK.eval(), Content()), (dropped, background())):
        graph = capture(module, (image,), {})
        assert Running(graph, content).share(graph.outputs[0].name, (16, 16)) == 1.0


class Slide:
    """A source of which only the background is known."""

    shape, dtype, axes = (1, 2048, 2048), torch.float32, "CYX"

    def read(self, box: object) -> torch.Tensor:
        raise AssertionError("a plan reads no pixels")

    def constant_blocks(self) -> ConstantBlocks:
        return background().constants["input"]


def test_a_budget_takes_tiles_that_fit_the_background() -> None:
    """Large tiles are the fastest of an image without background, and run nearly all of this one."""
    wide = nn.Sequential(nn.Conv2d(1, 32, 5, 2, 2), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.Conv2d(64, 64, 3)).eval()
    plan = StreamingModule(wide, memory="256MiB").plan(Slide())
    assert plan.sharing.statistics(plan.steps).saved > 0.6
