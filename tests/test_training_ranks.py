"""Two processes that train together are one with all the slides; a slide that one of them cannot read is no hang."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from streamingcnn import StreamingModule
from streamingcnn.comparison import relative_errors
from streamingcnn.sources import ReadError
from streamingcnn.training.checkpoint import read_checkpoint
from streamingcnn.training.examples import Draw
from streamingcnn.training.folder import read_log
from streamingcnn.training.heads import AttentionHead
from streamingcnn.training.loop import Training
from streamingcnn.training.ranks import Ranks, joined
from streamingcnn.training.recipe import Recipe
from streamingcnn.training.settings import Settings
from streamingcnn.training.tasks import Task
from streamingcnn.training.train import train
from tests import faults, forked

RANKS, BOUND = 2, 1e-10


class Doubles:
    """Images in float64; one of them may be unreadable."""

    def __init__(self, broken: int | None = None) -> None:
        draw = torch.Generator().manual_seed(0)
        self.images = [torch.randn(3, 20, 28, dtype=torch.float64, generator=draw) for _ in range(4)]
        self.names, self.targets, self.broken = ["a", "b", "c", "d"], torch.tensor([0.0, 1.0, 1.0, 0.0]), broken

    def image(self, number: int, draw: Draw) -> Tensor:
        if number == self.broken:
            raise ReadError("c is damaged")
        return self.images[number]

    def close(self, image: Any) -> None:
        pass


def trained(broken: int | None, accumulate: int) -> Training:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), AttentionHead(4)).double()
    recipe = Recipe(2, accumulate=accumulate, lr=0.01, clip=1e9, schedule="constant")
    loss = Task("binary", ("a", "b")).loss
    examples = Doubles(broken)
    made = Training(StreamingModule(net, tile=8), examples, loss, recipe, validation=Doubles())
    made.run()
    return made


def rank_main(folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    try:
        for broken in (None, 2):
            made = trained(broken, accumulate=1)
            assert made.effective_batch == 2 and made.ranks.count == RANKS
            state = made.state()
            assert set(state["bad"]) == (set() if broken is None else {"c"})
            torch.save((state["net"], [epoch.validation for epoch in made.history]), f"{folder}/{rank}_{broken}.pt")
    finally:
        dist.destroy_process_group()


@forked.needs_fork
@pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")
@pytest.mark.timeout(240)
def test_two_processes_are_one_with_all_the_slides(tmp_path: Path) -> None:
    done = forked.ranks(tmp_path, RANKS, rank_main, str(tmp_path))
    assert all(rank.code == 0 for rank in done), done
    for broken in (None, 2):
        alone = trained(broken, accumulate=2)
        for rank in range(RANKS):
            weights, validation = torch.load(tmp_path / f"{rank}_{broken}.pt", weights_only=True)
            errors = relative_errors(weights, dict(alone.net.state_dict()))
            assert max(errors.values()) <= BOUND, (rank, broken, errors)
            assert validation == pytest.approx([epoch.validation for epoch in alone.history], abs=1e-12)


def command_settings(folder: str | Path) -> Settings:
    return Settings(
        table=f"{folder}/labels.csv",
        out=f"{folder}/run",
        model="tests.faults:small",
        head="mean",
        tile=32,
        epochs=2,
        tissue="none",
        accumulate=1,
        checkpoint_seconds=0.0,
    )


def command_main(folder: str, ports: list[int]) -> None:
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    settings = command_settings(folder)
    for port, more in zip(ports[:2], ({}, {"spatial": 2, "accumulate": 2, "out": f"{folder}/shared"}), strict=True):
        os.environ["MASTER_PORT"] = str(port)
        said: list[str] = []
        outcome = train(settings.with_(**more), said.append)
        assert outcome.finished and len(outcome.history) == 2
        assert bool(said) == (rank == 0)
        assert not dist.is_initialized()
    os.environ["MASTER_PORT"] = str(ports[-1])
    with joined(torch.device("cpu"), spatial=2, timeout=7.0) as ranks:
        assert ranks.partition is not None and ranks.partition.link.timeout == timedelta(seconds=7)


@forked.needs_fork
@pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")
@pytest.mark.timeout(240)
def test_the_command_under_torchrun(tmp_path: Path) -> None:
    """It writes once; and two processes that share each slide train what one process trains."""
    faults.prepare(tmp_path)
    done = forked.ranks(tmp_path, RANKS, command_main, str(tmp_path), forked.free_ports(3))
    assert all(rank.code == 0 for rank in done), done
    rows = [row for row in read_log(tmp_path / "run" / "log.csv") if row["loss"]]
    assert [(row["step"], row["images"]) for row in rows] == [("1", "2"), ("2", "2"), ("3", "2"), ("4", "2")]
    assert len(read_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")["generators"]) == RANKS

    alone = command_settings(tmp_path).with_(accumulate=2, out=str(tmp_path / "alone"))
    train(alone, lambda _: None)
    logs = [read_log(tmp_path / name / "log.csv") for name in ("shared", "alone")]
    for shared_row, alone_row in zip(*logs, strict=True):
        for column in ("loss", "epoch_loss", "validation"):
            if alone_row[column]:
                assert float(shared_row[column]) == pytest.approx(float(alone_row[column]), rel=1e-5), column
    nets = [read_checkpoint(tmp_path / name / "checkpoints" / "last.pt")["net"] for name in ("shared", "alone")]
    # A bias in front of a batch norm has no gradient but rounding, of which Adam makes steps.
    nets = [{k: v for k, v in net.items() if k not in ("trunk.0.bias", "trunk.1.running_mean")} for net in nets]
    errors = relative_errors(*nets)
    assert max(errors.values()) <= 1e-4, errors
    with pytest.raises(ValueError, match=r"spatial is 2, and 1 process\(es\) are no groups of 2"):
        train(alone.with_(spatial=2, out=str(tmp_path / "none")), lambda _: None)


def test_accumulated_gradients_are_those_of_the_batch() -> None:
    """Two batches of one image, or one of two: the same weights, as no norm looks at the batch."""
    states = []
    for batch, accumulate in ((1, 2), (2, 1)):
        torch.manual_seed(3)
        net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), AttentionHead(4)).double()
        recipe = Recipe(1, batch=batch, accumulate=accumulate, lr=0.01)
        made = Training(net, Doubles(), Task("binary", ("a", "b"), (0.5, 1.5)).loss, recipe, ranks=Ranks())
        made.run()
        states.append(net.state_dict())
    found, wanted = states
    assert max(relative_errors(found, wanted).values()) <= BOUND


def test_a_run_goes_on_with_another_timeout() -> None:
    settings = Settings(table="labels.csv", timeout=5.0)
    assert settings.differences(settings.with_(timeout=300.0)) == []
    assert settings.differences(settings.with_(spatial=2)) == ["spatial: 2 there, 1 here"]
    with pytest.raises(ValueError, match=r"timeout is 0\.0; it must be above 0"):
        settings.with_(timeout=0.0)
