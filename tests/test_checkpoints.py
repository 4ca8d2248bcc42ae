"""Checkpoints: whole or absent, data and no code, and a run from one is the run without a stop."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from streamingcnn import StreamingModule
from streamingcnn.training.checkpoint import read_checkpoint, read_tensors, write_checkpoint
from streamingcnn.training.examples import Images
from streamingcnn.training.heads import MeanHead
from streamingcnn.training.loop import Training
from streamingcnn.training.network import make_network, warm_start
from streamingcnn.training.recipe import Recipe
from streamingcnn.training.run import load_run
from streamingcnn.training.settings import Settings
from streamingcnn.training.tasks import Task
from streamingcnn.training.watch import Epoch, Watch


class Trap:
    """What a hostile pickle does."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("code_was_run"),))


def test_a_checkpoint_with_code_is_refused_and_the_code_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"kind": "streamingcnn run", "version": 1, "net": Trap()}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Trap()))
    for name in ("a.pt", "b.pt"):
        with pytest.raises(ValueError, match="was not loaded: it holds more than tensors"):
            read_checkpoint(tmp_path / name)
        with pytest.raises(ValueError, match="was not loaded"):
            load_run(tmp_path / name)
        with pytest.raises(ValueError, match="was not loaded"):
            warm_start(nn.Linear(1, 1), tmp_path / name)
    assert not (tmp_path / "code_was_run").exists()


def test_a_checkpoint_cannot_name_code_to_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model is MODULE:FACTORY with arguments, and so is `os:system` with a command."""
    monkeypatch.chdir(tmp_path)
    settings = {"model": "os:mkdir", "arg": {"path": "code_was_run"}, "classes": ["a", "b"]}
    write_checkpoint(tmp_path / "last.pt", {"net": {}, "settings": settings})
    with pytest.raises(ValueError, match=r"If it is yours, say so: load_run\(..., model='os:mkdir'\)"):
        load_run(tmp_path / "last.pt")
    assert not (tmp_path / "code_was_run").exists()


def test_what_is_damaged_or_something_else_is_said(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    write_checkpoint(path, {"step": 1, "net": {"a": torch.ones(3)}})
    assert read_checkpoint(path)["step"] == 1
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"no zip"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"last\.pt (is damaged|was not loaded)"):
            read_tensors(path)
    torch.save({"weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="is no checkpoint of `streamingcnn train`"):
        read_checkpoint(path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_checkpoint(tmp_path / "none.pt")
    with pytest.raises(FileNotFoundError, match="neither a checkpoint nor the folder of a run"):
        load_run(tmp_path / "nothing")


def test_a_write_that_fails_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.pt"
    write_checkpoint(path, {"step": 1})

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        write_checkpoint(path, {"step": 2})
    assert read_checkpoint(path)["step"] == 1
    assert [each.name for each in tmp_path.iterdir()] == ["last.pt"]


# ------------------------------------------------------------------------------------------------- warm start


def test_weights_from_a_file_for_the_trunk_or_all(tmp_path: Path) -> None:
    settings = Settings(model="resnet18", classes=("a", "b"), head="mean")
    net, other = make_network(settings), make_network(settings)
    weights = other.get_submodule("trunk").state_dict() | {"fc.weight": torch.ones(2, 512), "fc.bias": torch.zeros(2)}
    torch.save({"state_dict": weights}, tmp_path / "trunk.pth")
    assert warm_start(net, tmp_path / "trunk.pth") == "120 of 122 tensors; not in the network: fc.bias, fc.weight"
    trunks = (each.get_submodule("trunk").parameters() for each in (net, other))
    assert all(torch.equal(a, b) for a, b in zip(*trunks, strict=True))
    torch.save(other.state_dict(), tmp_path / "all.pth")
    assert warm_start(net, tmp_path / "all.pth") == "122 of 122 tensors"
    assert torch.equal(net.get_parameter("head.logits.weight"), other.get_parameter("head.logits.weight"))
    for content, said in (
        ({"a": torch.ones(1)}, "no weights of this network: it has a"),
        ({"conv1.weight": torch.ones(1)}, r"conv1.weight is \(1,\) there and \(64, 3, 7, 7\) here"),
        ([1, 2], "holds no state_dict"),
    ):
        torch.save(content, tmp_path / "wrong.pth")
        with pytest.raises(ValueError, match=said):
            warm_start(net, tmp_path / "wrong.pth")


def test_weights_as_safetensors(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    net, other = nn.Linear(2, 3), nn.Linear(2, 3)
    safetensors.save_file(other.state_dict(), tmp_path / "w.safetensors")
    assert warm_start(net, tmp_path / "w.safetensors") == "2 of 2 tensors"
    assert torch.equal(net.weight, other.weight)


# ------------------------------------------------------------------------------------- going on where it stopped


class Keeping(Watch):
    """Keeps every state, as a checkpoint would come back; stops after a step where it is told to."""

    def __init__(self, folder: Path, stop_after: int = 0) -> None:
        self.states: list[dict[str, Any]] = []
        self.folder, self.stop_after, self.steps = folder, stop_after, 0

    def stop(self) -> bool:
        self.steps += 1
        return self.steps == self.stop_after

    def due(self) -> bool:
        return True

    def save(self, state: dict[str, Any], best: bool) -> None:
        write_checkpoint(self.folder / "state.pt", state)
        self.states.append(read_checkpoint(self.folder / "state.pt"))


def training(precision: str = "float32", streamed: bool = True, **recipe: Any) -> Training:
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    draw = torch.Generator().manual_seed(0)
    images = [torch.randint(60, 200, (3, 24, 24), dtype=torch.uint8, generator=draw) for _ in range(7)]
    examples = Images(images[:5], [0, 1, 0, 1, 1])
    trunk = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3))
    net: nn.Module = nn.Sequential(trunk, MeanHead(4))
    if streamed:
        net = StreamingModule(net, tile=8)
    task = Task("binary", ("a", "b"))
    kept = Recipe(3, accumulate=2, lr=0.05, precision=precision, jitter=0.1, **recipe)
    return Training(net, examples, task.loss, kept, validation=Images(images[5:], [0, 1], ["v", "w"]), trunk=trunk)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a if key not in ("seconds", "history"))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
def test_a_run_from_any_of_its_states_is_the_run_itself(tmp_path: Path, precision: str) -> None:
    whole = Keeping(tmp_path)
    training(precision, frozen_epochs=1, schedule="cosine").run(whole)
    assert len(whole.states) == 3 * (3 + 1)  # after each step, and after each epoch's validation
    for state in whole.states[::3]:
        rest = training(precision, frozen_epochs=1, schedule="cosine")
        torch.manual_seed(99)  # another process
        rest.load(state)
        after = Keeping(tmp_path)
        rest.run(after)
        last, expected = (after.states or [state])[-1], whole.states[-1]
        for part in ("net", "optimizer", "schedule", "scaler", "generators", "best", "epoch", "finished"):
            assert same(last[part], expected[part]), part
        losses = [(e["loss"], e["validation"]) for e in last["history"]]
        assert losses == [(e["loss"], e["validation"]) for e in expected["history"]]


def test_a_stop_is_after_the_step_and_can_be_gone_on_from(tmp_path: Path) -> None:
    whole = Keeping(tmp_path)
    training().run(whole)
    stopped = Keeping(tmp_path, stop_after=5)
    half = training()
    history = half.run(stopped)
    assert [epoch.number for epoch in history] == [1] and (half.epoch, half.step) == (2, 2) and not half.finished
    rest = training()
    rest.load(stopped.states[-1])
    after = Keeping(tmp_path)
    rest.run(after)
    assert same(after.states[-1]["net"], whole.states[-1]["net"])


def test_a_finished_run_runs_no_more(tmp_path: Path) -> None:
    whole = Keeping(tmp_path)
    training().run(whole)
    again = training()
    again.load(whole.states[-1])
    assert [epoch.number for epoch in again.run(Keeping(tmp_path, stop_after=1))] == [1, 2, 3]


def test_early_stopping_waits_for_its_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    run = training(patience=1)
    values = iter([0.5, 0.7, 0.1])
    monkeypatch.setattr(run, "_validate", lambda _: next(values))
    seen: list[tuple[Epoch, bool]] = []

    class Seeing(Watch):
        def epoch(self, report: Epoch, better: bool) -> None:
            seen.append((report, better))

    assert len(run.run(Seeing())) == 2 and run.finished
    assert [(report.validation, better) for report, better in seen] == [(0.5, True), (0.7, False)]


def test_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    state = training().state()
    with pytest.raises(ValueError, match=r"made by 2 process\(es\), and now there are 1"):
        training().load({**state, "generators": state["generators"] * 2})
