"""From settings to a trained network: the table, the splits, the network, the loop, the folder.

The same settings with the same folder go on where the run stopped; see :mod:`streamingcnn.training.folder`.
"""

from __future__ import annotations

import logging
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from streamingcnn.available import available
from streamingcnn.memory import format_bytes, parse_bytes
from streamingcnn.module import StreamingModule
from streamingcnn.plan.report import format_seconds
from streamingcnn.slides.cases import Case, read_table
from streamingcnn.slides.splits import read_splits, split_cases, write_splits
from streamingcnn.training.checkpoint import read_checkpoint
from streamingcnn.training.folder import Folder, write_bad_cases, write_versions
from streamingcnn.training.loop import Training
from streamingcnn.training.network import make_network, warm_start
from streamingcnn.training.randomness import seed_generators
from streamingcnn.training.ranks import Ranks, joined
from streamingcnn.training.recipe import Recipe
from streamingcnn.training.settings import Settings
from streamingcnn.training.slides import Slides, opened_case
from streamingcnn.training.tasks import balanced
from streamingcnn.training.watch import Epoch, Watch

__all__ = ["Outcome", "train"]

logger = logging.getLogger("streamingcnn")


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its epochs, what was left out and why, and whether it is finished or was stopped."""

    history: tuple[Epoch, ...]
    bad: dict[str, str]
    finished: bool


def train(settings: Settings, say: Callable[[str], None] = logger.info) -> Outcome:
    """Train as settings say, or go on with the run in their folder.

    Example::

        train(Settings(table="labels.csv", out="runs/x", model="resnet18", mpp=0.5), say=print)

    SIGTERM ends the run after the step in progress, with a checkpoint.

    Raises:
        ValueError: the table, the settings or the network are wrong; the folder holds another run; or nothing can be
            read. The message lists all of it.
        OSError: the folder cannot be written; what was in it is still whole.
        FloatingPointError: the loss became infinite or NaN.
    """
    device = _device(settings.device)
    with joined(device, settings.spatial, settings.timeout) as ranks:
        return _train(settings, ranks, device, say if ranks.first else _quiet)


def _train(settings: Settings, ranks: Ranks, device: torch.device, say: Callable[[str], None]) -> Outcome:
    out = Path(settings.out)
    state = _state(out, settings)
    ranks.gathered(None)  # all have looked into the folder before the first one writes there
    if state is not None and state["finished"]:
        say(f"{out} holds this run, finished after {len(state['history'])} epochs; give another --out for a new one")
        return Outcome(tuple(Epoch(**epoch) for epoch in state["history"]), state["bad"], True)
    if settings.tissue not in ("auto", "none") and not Path(settings.tissue).exists():
        raise ValueError(f"tissue is {settings.tissue}: it is neither 'auto' nor 'none', and no file or folder")
    cases, settings = _cases(settings, out if state is not None else None)
    of = {split: [case for case in cases if case.split == split] for split in ("train", "validation", "test")}
    if not of["train"]:
        raise ValueError(f"{settings.table} has no case to train on: none has the split 'train'")
    if ranks.first and state is None:
        _begin(out, settings, cases)
    say("cases: " + ", ".join(f"{len(found)} {split}" for split, found in of.items()) + _classes_said(settings, of))
    sizes, unreadable = _looked_at([*of["train"], *of["validation"]], settings)
    if state is not None:
        bad = state["bad"]
    else:
        bad = {name: why for found in ranks.gathered(unreadable) for name, why in found.items()}
    if bad:
        say(f"{len(bad)} case(s) are left out:")
        for name, why in bad.items():
            say(f"  - {name}: {why}")
    _enough(of["train"], bad)

    torch.manual_seed(settings.seed)
    module = make_network(settings)
    if settings.weights is not None and state is None:
        say(f"weights from {settings.weights}: {warm_start(module, settings.weights)}")
    elif settings.norm == "frozen" and settings.weights is None:
        logger.warning("norm = frozen without weights: the statistics are those of a network that saw nothing")
    seed_generators(settings.seed + 1 + ranks.number)
    memory = state["memory"] if state is not None else _memory(settings, device, ranks)
    net = StreamingModule(module.to(device), tile=settings.tile, memory=memory, partition=ranks.partition)
    training = Training(
        net,
        Slides(of["train"], settings),
        settings.labels_as().loss,
        _recipe(settings),
        validation=Slides(of["validation"], settings) if of["validation"] else None,
        trunk=module.get_submodule("trunk"),
        ranks=ranks,
    )
    training.bad = dict(bad)
    if state is not None:
        training.load(state)
    done = (training.epoch - 1) * training.steps + training.step
    _foresee(net, training, sizes, settings, say)
    folder = Folder(out, settings, {"memory": memory}, device, say)
    with _stopped_by_signals(folder):
        if ranks.first:
            folder.open(done, len(training.history))
        if state is not None:
            say(f"going on after step {done}")
        else:
            first = training.state()
            if ranks.first:
                folder.save(first, best=False)
        try:
            training.run(folder if ranks.first else Quiet(folder))
        finally:
            if ranks.first:
                folder.close()
    _report(training, out, ranks, say)
    return Outcome(tuple(training.history), training.bad, training.finished)


# ----------------------------------------------------------------------------------- the folder and the cases


def _state(out: Path, settings: Settings) -> dict[str, Any] | None:
    """The state that the folder's run is gone on with; None where there is none yet.

    Raises:
        ValueError: the folder holds another run, or something else.
    """
    last = out / "checkpoints" / "last.pt"
    if last.is_file():
        state = read_checkpoint(last)
        differences = settings.differences(_without_found(Settings.of(state["settings"], str(last)), settings))
        if differences:
            raise ValueError(
                f"{out} holds a run with other settings; give another --out, or the settings that it has:\n"
                + "\n".join(f"  - {each}" for each in differences)
            )
        return state
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; --out names a folder")
    others = [entry for entry in out.iterdir() if not entry.name.startswith(".")] if out.is_dir() else []
    if others and not (out / "settings.toml").is_file():
        raise ValueError(f"{out} holds something else than a run; choose another --out")
    return None


def _without_found(there: Settings, here: Settings) -> Settings:
    """The other run's settings, with classes that it found in its table taken back."""
    return there if here.classes else there.with_(classes=())


def _cases(settings: Settings, resumed: Path | None) -> tuple[list[Case], Settings]:
    """The cases with their splits, and the settings with what the training cases say."""
    columns = {name: getattr(settings, name) for name in ("path_col", "id_col", "label_col", "group_col", "split_col")}
    table = read_table(settings.table, **columns, images=settings.images, task=settings.task, classes=settings.classes)
    cases = list(table.cases)
    if resumed is not None:
        cases = read_splits(resumed / "splits.csv", cases)
    elif settings.folds or not all(case.split for case in cases):
        cases = split_cases(
            cases,
            validation=settings.validation,
            test=settings.test,
            folds=settings.folds,
            fold=settings.fold,
            numbers=settings.task == "regression",
            seed=settings.seed,
        )
    labels = [case.label for case in cases if case.split == "train"]
    found: dict[str, Any] = {"classes": table.classes}
    if settings.task == "regression" and labels:
        found |= {"target_mean": statistics.fmean(labels), "target_std": statistics.pstdev(labels) or 1.0}
    elif settings.class_weights == "balanced":
        found["weight_of_class"] = balanced(labels, len(table.classes))
    return cases, settings.with_(**found)


def _begin(out: Path, settings: Settings, cases: Sequence[Case]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    settings.write(out / "settings.toml")  # first: a folder without it is taken for something else than a run
    write_splits(out / "splits.csv", cases, settings.classes)
    write_versions(out / "versions.json")


def _looked_at(cases: Sequence[Case], settings: Settings) -> tuple[dict[str, int], dict[str, str]]:
    """By name: the pixels of cases that open as the settings ask, and why the others do not. Headers only are read."""
    sizes, bad = {}, {}
    for case in cases:
        try:
            opened = opened_case(case, settings)
        except (OSError, ValueError) as error:
            bad[case.name] = str(error)
            continue
        sizes[case.name] = opened.shape[-1] * opened.shape[-2]
        opened.close()
    return sizes, bad


def _enough(cases: Sequence[Case], bad: dict[str, str]) -> None:
    if all(case.name in bad for case in cases):
        reasons = "\n".join(f"  - {name}: {why}" for name, why in list(bad.items())[:10])
        raise ValueError(f"none of {len(cases)} training cases can be read:\n{reasons}")


def _classes_said(settings: Settings, of: dict[str, list[Case]]) -> str:
    if settings.task == "regression":
        return f"; labels {settings.target_mean:.4g} +- {settings.target_std:.4g}"
    counts = [
        f"{name} {sum(case.label == number for case in of['train'])}" for number, name in enumerate(settings.classes)
    ]
    return f"; to train on: {', '.join(counts)}"


# -------------------------------------------------------------------------------------- the network and the loop


def _device(name: str) -> torch.device:
    if name != "auto":
        return torch.device(name)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    import os

    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def _memory(settings: Settings, device: torch.device, ranks: Ranks) -> int | None:
    """The budget of the run: found out once, so that what happens to be free later changes no plan and no bit."""
    if settings.tile is not None and settings.memory == "auto":
        return None
    if settings.memory == "auto":
        return min(
            int(free) for free in ranks.gathered(available(device).bytes)
        )  # one for all, as the checkpoint has one
    return parse_bytes(settings.memory)


def _recipe(settings: Settings) -> Recipe:
    shared = {each.name for each in fields(Recipe)} & {each.name for each in fields(Settings)}
    return Recipe(**{name: getattr(settings, name) for name in shared})


def _foresee(
    net: StreamingModule, training: Training, sizes: dict[str, int], settings: Settings, say: Callable[[str], None]
) -> None:
    """Say what a step will take, by the largest slide there is to train on."""
    slides = training.examples
    assert isinstance(slides, Slides)
    good = [k for k, name in enumerate(slides.names) if name in sizes and name not in training.bad]
    for number in sorted(good, key=lambda k: -sizes[slides.names[k]]):
        try:
            image = slides.image(number)
        except (OSError, ValueError):
            continue  # the loop will meet it, and say so
        net.train()
        start = time.perf_counter()
        plan = net.plan(image)
        planning = time.perf_counter() - start
        slides.close(image)
        height, width = image.shape[-2:]
        share = sum(sizes[slides.names[k]] for k in good) / sizes[slides.names[number]]
        say(
            f"largest slide: {slides.names[number]}, {height} x {width} pixels: {plan.tiles} tiles in "
            f"{len(plan.stages)} stages, predicted {format_bytes(plan.peak_bytes)} and "
            f"{format_seconds(plan.seconds)} to train on it once"
        )
        if (partition := training.ranks.partition) is not None:
            said = f"  by {partition.size} processes together; these bytes are those of the one that holds most"
            say(said + ("" if settings.tissue == "none" else "; background is computed as tissue is"))
        if plan.sharing is not None and (run := plan.sharing.statistics(plan.steps)).saved > 0:
            say(f"  with constant parts shared: {run}")
        epoch = plan.seconds * share / training.ranks.count
        say(
            f"{_counted(training.effective_batch, 'slide')} to a step, {_counted(training.steps, 'step')} to an epoch, "
            f"predicted about {format_seconds(epoch)} for one; {_counted(settings.epochs, 'epoch')}"
        )
        if planning > plan.seconds / 4:
            faster = "" if settings.tile else "; --tile N plans faster"
            say(
                f"  and beside that time for plans, {format_seconds(planning)} for this first one: a slide is planned "
                f"when its size or its background is new, turned too{faster}"
            )
        return


class Quiet(Watch):
    """On processes but the first: looks for signals, writes nothing."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    def stop(self) -> bool:
        """Whether a signal came to this process."""
        return self._folder.stopping


def _quiet(_: str) -> None:
    pass


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


@contextmanager
def _stopped_by_signals(folder: Folder) -> Iterator[None]:
    """Let SIGTERM end the run after its step; a second one ends it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        folder.stopping = True
        signal.signal(signal.SIGTERM, before)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _report(training: Training, out: Path, ranks: Ranks, say: Callable[[str], None]) -> None:
    if ranks.first:
        write_bad_cases(out / "bad_cases.csv", training.bad)
    if training.bad:
        say(f"{len(training.bad)} case(s) were left out ({out / 'bad_cases.csv'}):")
        for name, why in sorted(training.bad.items()):
            say(f"  - {name}: {why}")
    if training.finished:
        checked = [epoch.validation for epoch in training.history if epoch.validation is not None]
        best = f", best validation loss {min(checked):.4f}" if checked else ""
        say(f"finished: {_counted(len(training.history), 'epoch')}{best}. {out / 'checkpoints' / 'best.pt'}")
    else:
        say(f"stopped in epoch {training.epoch} after step {training.step}; the same command goes on from there")
