"""A plan without its graph: the names and integers that a file holds.

Searching for a plan depends on the machine it runs on: on its free memory and on how fast it is. A run that must be
repeated elsewhere, or go on tomorrow, brings its plan along instead. A file may be edited by hand or come from a
stranger, so it is JSON, nothing in it is ever run, every field is checked when it is read, and it is held against the
graph before a tile runs: a plan of another network, size or mode is refused.

    {"format": "streamingcnn plan", "version": 1, "torch": "2.13.0",
     "graph": "9f2c...",                                    which network, at which size
     "images": [[1, 3, 512, 512]], "budget": 4294967296,    for people; budget may be null
     "stored": ["relu_2", "relu_4"],
     "stages": [{"target": "relu_2", "tile": [128, 256], "way": "recompute", "place": "disk"}, ...]}

A map whose place is not named lives on the device.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..files import whole_file
from ..graph import Graph
from .identity import graph_hash
from .place import PLACES, movable
from .stages import Globals, Stage, build_steps

if TYPE_CHECKING:
    from .plan import Plan

__all__ = ["PlanError", "SavedPlan", "SavedStage", "chosen"]

FORMAT, VERSION = "streamingcnn plan", 1
WAYS = ("recompute", "keep")


class PlanError(ValueError):
    """A plan that is not well formed, or was made for another network, size or mode."""


@dataclass(frozen=True)
class SavedStage:
    """One stage: the node it makes, its tile in pixels of that node's map, its way, and where its map lives."""

    target: str
    tile: tuple[int, ...]
    way: str
    place: str = "device"


@dataclass(frozen=True)
class SavedPlan:
    """A plan as names and integers, as :meth:`Plan.load` gives it.

    ::

        net.plan((1, 3, 8192, 8192)).save("plan.json")
        net = StreamingModule(module, plan=Plan.load("plan.json"))

    Attributes:
        graph: the hash of the network that it is for, at its size and in its mode.
        images: the shapes of the spatial inputs.
        budget: the bytes that it was made for, or None.
        stored: the nodes whose maps are stored.
        stages: in the order of the forward.
        torch: the version of torch that captured the network.
        origin: the file that it was read from.
    """

    graph: str
    images: tuple[tuple[int, ...], ...]
    budget: int | None
    stored: tuple[str, ...]
    stages: tuple[SavedStage, ...]
    torch: str
    origin: str = field(default="", compare=False)

    @classmethod
    def of(cls, plan: Plan) -> SavedPlan:
        """What a plan would save."""
        return cls(
            graph=graph_hash(plan.graph),
            images=_images(plan.graph),
            budget=plan.budget,
            stored=tuple(stage.name for stage in plan.stages if stage.stored),
            stages=tuple(SavedStage(stage.name, tuple(stage.tile), stage.way, stage.place) for stage in plan.stages),
            torch=str(torch.__version__),
        )

    def save(self, path: str | Path) -> None:
        """Write it; the file is whole or absent."""
        data = {
            "format": FORMAT,
            "version": VERSION,
            "torch": self.torch,
            "graph": self.graph,
            "images": self.images,
            "budget": self.budget,
            "stored": self.stored,
            "stages": [_written(stage) for stage in self.stages],
        }
        with whole_file(Path(path)) as partial:
            partial.write_text(_lines(data), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> SavedPlan:
        """Read and check it.

        Raises:
            PlanError: something in it is not as it must be; the message says what, and in which file.
            OSError: there is no such file, or it cannot be read.
        """
        record = _Record(_parsed(Path(path)), f"the plan {path}", "")
        if record.take("format", str) != FORMAT:
            raise PlanError(f'{record.file}: it is no plan of streamingcnn; needed is "format": "{FORMAT}"')
        version = record.take("version", int)
        if version != VERSION:
            raise PlanError(
                f"{record.file}: version is {version}, and this streamingcnn reads version {VERSION}; "
                "plan again and save, or install the streamingcnn that wrote it"
            )
        saved = cls(
            graph=record.digest("graph"),
            images=record.each("images", lambda value, where: record.sizes(value, where)),
            budget=record.take("budget", int, none=True),
            stored=record.each("stored", lambda value, where: record.checked(value, str, where)),
            stages=record.each("stages", lambda value, where: _stage(_Record(value, record.file, where + "."))),
            torch=record.take("torch", str),
            origin=str(path),
        )
        record.end()
        return saved

    def steps(self, graph: Graph) -> list[Stage | Globals]:
        """The steps that it stands for.

        Raises:
            PlanError: it was made for another graph, or a name or a tile in it does not fit this one.
        """
        found = graph_hash(graph)
        if found != self.graph:
            raise PlanError(_mismatch([self], found, graph))
        for name in self.stored:
            if name not in graph.locals:
                raise PlanError(f"{self}: it stores '{name}', and this network makes no such map")
        steps = build_steps(graph, set(self.stored))
        stages = {step.name: step for step in steps if isinstance(step, Stage)}
        named = [stage.target for stage in self.stages]
        if named != list(stages):
            missing, unknown = [n for n in stages if n not in named], [n for n in named if n not in stages]
            raise PlanError(
                f"{self}: its stages do not follow from what it stores; missing: {_list(missing)}, "
                f"of no use: {_list(unknown)}; needed is one for each of {_list(stages)}, in this order"
            )
        for saved in self.stages:
            stage = stages[saved.target]
            extents = stage.target.extents
            if len(saved.tile) != len(extents) or any(t > e for t, e in zip(saved.tile, extents, strict=True)):
                raise PlanError(
                    f"{self}: stage '{saved.target}' has tile {_by(saved.tile)}, and its map has {_by(extents)} "
                    "pixels; needed is one size per axis, from 1 to the map's own"
                )
            if saved.place != "device" and not (stage.stored and stage.name in movable(graph, saved.place)):
                raise PlanError(
                    f"{self}: stage '{saved.target}' has its map on {saved.place}; needed is 'device', as it is a "
                    "result of the network, or read as a whole, or not stored"
                )
            # Beside a CPU there is no other memory than the host's.
            home = saved.place == "host" and graph.device.type == "cpu"
            stage.tile, stage.way, stage.place = saved.tile, saved.way, "device" if home else saved.place
        return steps

    @property
    def places(self) -> frozenset[str]:
        """Where its maps live."""
        return frozenset(stage.place for stage in self.stages)

    def __str__(self) -> str:
        images = " and ".join(_by(shape) for shape in self.images)
        return f"the plan {self.origin} for {images}" if self.origin else f"the given plan for {images}"


def chosen(plans: Iterable[SavedPlan], graph: Graph) -> SavedPlan:
    """The one of several plans that was made for a graph.

    Raises:
        PlanError: none was; it names this graph's hash and each plan's.
    """
    found, given = graph_hash(graph), list(plans)
    for plan in given:
        if plan.graph == found:
            return plan
    raise PlanError(_mismatch(given, found, graph))


def _mismatch(given: list[SavedPlan], found: str, graph: Graph) -> str:
    """What differs, as far as it shows: the size first, then torch; else the network or its mode."""
    images, here = _images(graph), str(torch.__version__)
    if all(plan.images != images for plan in given):
        reason = "the size is another one"
    elif all(plan.torch != here for plan in given):
        reason = f"it was made with torch {given[0].torch}, and torch {here} may name the nodes otherwise"
    else:
        reason = "the network is another one, or in another mode (train or eval, dtype, autocast)"
    plans = ", and ".join(f"{plan} was made for graph {plan.graph[:16]}" for plan in given)
    return (
        f"{plans}, but this network at {' and '.join(map(_by, images))} is graph {found[:16]}: {reason}; make a plan "
        "for this one with StreamingModule(module, memory=...).plan(x).save(path); where several sizes or modes take "
        "turns, give a plan for each: plan=[first, second]"
    )


class _Record:
    """A JSON object whose fields are taken one by one, each checked; a field that nobody takes is an error."""

    def __init__(self, value: Any, file: str, where: str) -> None:
        self.file, self.where = file, where
        self.fields: dict[str, Any] = dict(self.checked(value, dict, where.rstrip(".") or "the file"))

    def take(self, name: str, kind: type, none: bool = False) -> Any:
        if name not in self.fields:
            raise PlanError(f"{self.file}: the field '{self.where}{name}' is missing")
        value = self.fields.pop(name)
        return None if none and value is None else self.checked(value, kind, self.where + name)

    def choice(self, name: str, choices: Sequence[str], default: str | None = None) -> str:
        """One of several words; the default where the field is absent and there is one."""
        if default is not None and name not in self.fields:
            return default
        word: str = self.take(name, str)
        if word not in choices:
            raise PlanError(f"{self.file}: {self.where}{name} is '{word}'; needed is {' or '.join(choices)}")
        return word

    def checked(self, value: Any, kind: type, where: str) -> Any:
        if not isinstance(value, kind) or isinstance(value, bool):
            raise PlanError(f"{self.file}: {where} is {_shown(value)}; needed is {_KINDS[kind]}")
        if isinstance(value, int) and value < 1:
            raise PlanError(f"{self.file}: {where} is {value}; needed is at least 1")
        return value

    def sizes(self, value: Any, where: str) -> tuple[int, ...]:
        sizes = self.checked(value, list, where)
        if not sizes:
            raise PlanError(f"{self.file}: {where} is empty; needed is one integer per axis")
        return tuple(self.checked(size, int, f"{where}[{k}]") for k, size in enumerate(sizes))

    def each(self, name: str, read: Any) -> tuple[Any, ...]:
        values = self.take(name, list)
        return tuple(read(value, f"{self.where}{name}[{k}]") for k, value in enumerate(values))

    def digest(self, name: str) -> str:
        text: str = self.take(name, str)
        if len(text) != 64 or not set(text) <= set("0123456789abcdef"):
            raise PlanError(f"{self.file}: {name} is {_shown(text)}; needed are 64 hexadecimal digits")
        return text

    def end(self) -> None:
        if self.fields:
            raise PlanError(f"{self.file}: nothing is known of the field '{self.where}{next(iter(self.fields))}'")


_KINDS = {str: "a text", int: "an integer", list: "a list", dict: "an object, {...}"}


def _stage(record: _Record) -> SavedStage:
    stage = SavedStage(
        target=record.take("target", str),
        way=record.choice("way", WAYS),
        tile=record.sizes(record.take("tile", list), record.where + "tile"),
        place=record.choice("place", PLACES, "device"),
    )
    record.end()
    return stage


def _written(stage: SavedStage) -> dict[str, Any]:
    place = {} if stage.place == "device" else {"place": stage.place}
    return {"target": stage.target, "tile": stage.tile, "way": stage.way, **place}


def _parsed(path: Path) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"the field '{twice[0]}' is there twice")
        return dict(pairs)

    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise PlanError(f"the plan {path}: it cannot be read as JSON: {error}") from None


def _lines(data: dict[str, Any]) -> str:
    """JSON with one field to a line, and one stage: what a person reads and a version control compares."""
    fields = []
    for name, value in data.items():
        if name == "stages":
            text = "[\n" + ",\n".join(f"    {json.dumps(stage)}" for stage in value) + "\n  ]"
        else:
            text = json.dumps(value)
        fields.append(f"  {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(fields) + "\n}\n"


def _images(graph: Graph) -> tuple[tuple[int, ...], ...]:
    return tuple(value.shape for _, value in sorted(graph.inputs.items()) if value.spatial)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def _by(sizes: Iterable[int]) -> str:
    return "x".join(map(str, sizes))
