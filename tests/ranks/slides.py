"""A training over ranks that share slides."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from streamingcnn import StreamingModule
from streamingcnn.comparison import relative_errors
from streamingcnn.sources import ReadError
from streamingcnn.training.examples import Draw
from streamingcnn.training.heads import MeanHead
from streamingcnn.training.loop import Training
from streamingcnn.training.ranks import Ranks
from streamingcnn.training.recipe import Recipe
from streamingcnn.training.tasks import Task

from .case import Case


def slides(_: list[str]) -> Iterator[Case]:
    """A training on four slides, two at once, each shared by two ranks, against one process."""

    def trained(ranks: Ranks, accumulate: int, broken: bool) -> Training:
        torch.manual_seed(3)
        net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), MeanHead(4)).double()
        streamed = StreamingModule(net, tile=8, partition=ranks.partition)
        recipe = Recipe(2, accumulate=accumulate, lr=0.01, clip=1e9, schedule="constant")
        loss = Task("binary", ("a", "b")).loss
        made = Training(streamed, _Slides(broken), loss, recipe, validation=_Slides(), ranks=ranks)
        made.run()
        return made

    # Only one rank of each two finds that the last one is damaged.
    together = trained(Ranks(spatial=2), accumulate=1, broken=dist.get_rank() % 2 == 1)
    assert together.effective_batch == 2 and set(together.bad) == {"d"}, together.bad
    if dist.get_rank() == 0:
        alone = trained(_Alone(), accumulate=2, broken=True)
        errors = relative_errors(dict(together.net.state_dict()), dict(alone.net.state_dict()))
        validations = [[epoch.validation or 0.0 for epoch in made.history] for made in (together, alone)]
        differences = (abs(a - b) for a, b in zip(*validations, strict=True))
        yield {"case": "training", "error": max(*errors.values(), *differences)}


class _Alone(Ranks):
    """One process, in the middle of a group."""

    def __init__(self) -> None:
        self._together, self.process, self.processes, self.number, self.count = False, 0, 1, 0, 1
        self.partition = None


class _Slides:
    """Images in float64; the last of them can be damaged."""

    def __init__(self, broken: bool = False) -> None:
        draw = torch.Generator().manual_seed(0)
        self.images = [torch.randn(3, 20, 28, dtype=torch.float64, generator=draw) for _ in range(4)]
        self.names, self.targets, self.broken = ["a", "b", "c", "d"], torch.tensor([0.0, 1.0, 1.0, 0.0]), broken

    def image(self, number: int, draw: Draw) -> Tensor:
        if number == 3 and self.broken:
            raise ReadError("d is damaged")
        return self.images[number]

    def close(self, image: Any) -> None:
        pass
