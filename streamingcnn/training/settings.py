"""Every setting of a training run, in one place: what the command line offers, what a TOML file may say, what is saved.

A setting is a field here and nowhere else; its help text is the command line's and the file's. Values come from the
defaults, then from ``--config settings.toml``, then from the command line. The ``settings.toml`` of a run repeats the
run: ``streamingcnn train --config runs/x/settings.toml --out runs/y``.
"""

from __future__ import annotations

import difflib
import tomllib
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from streamingcnn.files import whole_file
from streamingcnn.training.heads import HEADS
from streamingcnn.training.tasks import TASKS, Task

__all__ = ["Settings"]


def _setting(default: Any, help: str, *, choices: tuple[str, ...] = (), group: str = "") -> Any:
    return field(default=default, metadata=_about(help, choices, group))


def _about(help: str, choices: tuple[str, ...] = (), group: str = "") -> dict[str, Any]:
    return {"help": help, "choices": choices, "group": group}


@dataclass(frozen=True)
class Settings:
    """The settings of a run.

    >>> settings = Settings(table="labels.csv", out="runs/x", mpp=0.5)
    >>> settings.head, settings.epochs
    ('attention', 20)

    Raises:
        ValueError: some values are no possible ones; all of them are listed.
    """

    table: str = _setting("", "CSV or XLSX table of cases", group="cases")
    out: str = _setting("run", "folder of the run", group="cases")
    path_col: str = _setting("path", "column with the slide's file, relative to the table", group="cases")
    id_col: str | None = _setting(None, "column with the case's name (default: id, or the file's name)", group="cases")
    label_col: str = _setting("label", "column with the label", group="cases")
    group_col: str | None = _setting(
        None, "column with the patient; a patient is never in two splits (patient or group)", group="cases"
    )
    split_col: str = _setting("split", "column with train, validation or test", group="cases")
    images: str | None = _setting(
        None, "folder of the slides, where the table does not name them by path", group="cases"
    )
    validation: float = _setting(
        0.15, "share of the patients to validate on, where the table has no split", group="cases"
    )
    test: float = _setting(0.15, "share of the patients to test on, if no split is given", group="cases")
    folds: int = _setting(0, "instead: cross-validation with so many folds; each is tested on once", group="cases")
    fold: int = _setting(0, "the fold that this run is tested on, from 0", group="cases")

    mpp: float | None = _setting(None, "resolution in um per pixel (default: the full image)", group="images")
    level: int | None = _setting(None, "instead: a level of the pyramid", group="images")
    tissue: str = _setting(
        "auto", "auto: find the tissue; none; or a folder of masks ID.png (a mask column goes first)", group="images"
    )
    normalise: str = _setting(
        "slide",
        "slide: each slide's own tissue to mean 0 and deviation 1; imagenet: its mean and deviation; "
        "unit: bytes to 0..1",
        choices=("slide", "imagenet", "unit"),
        group="images",
    )
    flips: bool = _setting(True, "turn and reflect slides while training", group="images")
    jitter: float = _setting(0.0, "colour jitter: how far each channel's gain and offset may move", group="images")

    model: str = _setting("resnet18", "a name, or MODULE.PATH:FACTORY of a trunk or a whole network", group="network")
    arg: dict[str, Any] = field(
        default_factory=dict, metadata=_about("argument of the factory, KEY=VALUE; several times", group="network")
    )
    head: str = _setting("attention", "what is put behind a trunk", choices=tuple(HEADS), group="network")
    norm: str = _setting(
        "batch",
        "batch norms: as they are, frozen, or group norms",
        choices=("batch", "frozen", "group"),
        group="network",
    )
    weights: str | None = _setting(
        None, "warm start: a file of weights (.pt, .safetensors) for the trunk or all of it", group="network"
    )
    memory: str = _setting("auto", "what a step may take, as in 4GiB; auto: what is free at the start", group="network")
    tile: int | None = _setting(None, "instead: pixels that a tile covers", group="network")
    spatial: int = _setting(
        1, "processes of torchrun that share a slide, each a stripe of it, within its own memory", group="network"
    )
    timeout: float = _setting(
        120.0, "seconds after which a process that shares a slide and does not answer is given up", group="network"
    )
    device: str = _setting("auto", "cpu, cuda, cuda:1; auto: a GPU where there is one", group="network")
    precision: str = _setting(
        "float32", "number format of the computation", choices=("float32", "bf16", "fp16"), group="network"
    )

    task: str = _setting("binary", "what a label is", choices=TASKS, group="training")
    classes: tuple[str, ...] = _setting((), "names of the classes in their order (default: sorted)", group="training")
    class_weights: str = _setting(
        "none", "balanced: rare classes count more", choices=("none", "balanced"), group="training"
    )
    epochs: int = _setting(20, "passes over the training slides", group="training")
    accumulate: int = _setting(
        8, "slides per step of the optimiser, on each process (with spatial: each group of them)", group="training"
    )
    lr: float = _setting(3e-4, "learning rate at its height", group="training")
    schedule: str = _setting(
        "onecycle", "how the rate moves", choices=("onecycle", "cosine", "constant"), group="training"
    )
    weight_decay: float = _setting(1e-4, "of AdamW", group="training")
    clip: float = _setting(1.0, "largest norm of all gradients together", group="training")
    frozen_epochs: int = _setting(0, "epochs at the start in which the trunk is left as it is", group="training")
    patience: int = _setting(0, "stop after so many epochs without a lower validation loss; 0: never", group="training")
    seed: int = _setting(0, "of weights, order, turns and splits", group="training")
    checkpoint_seconds: float = _setting(
        60.0, "a checkpoint after the step that ends so long after the last; 0: after each", group="training"
    )

    #: What was measured on the training cases; not set by hand.
    target_mean: float = field(default=0.0, metadata={"found": True})
    target_std: float = field(default=1.0, metadata={"found": True})
    weight_of_class: tuple[float, ...] = field(default=(), metadata={"found": True})

    def __post_init__(self) -> None:
        problems = [*self._wrong_choices(), *self._wrong_numbers()]
        if problems:
            raise ValueError(f"{len(problems)} setting(s) cannot be so:\n" + "\n".join(f"  - {p}" for p in problems))

    def _wrong_choices(self) -> list[str]:
        return [
            f"{each.name} is {getattr(self, each.name)!r}; it can be {', '.join(each.metadata['choices'])}"
            for each in fields(self)
            if each.metadata.get("choices") and getattr(self, each.name) not in each.metadata["choices"]
        ]

    def _wrong_numbers(self) -> list[str]:
        least = {
            "epochs": 1,
            "accumulate": 1,
            "spatial": 1,
            "patience": 0,
            "frozen_epochs": 0,
            "fold": 0,
            "folds": 0,
            "jitter": 0,
        }
        least |= {"spatial": 1, "checkpoint_seconds": 0, "weight_decay": 0, "validation": 0, "test": 0}
        found = [
            f"{name} is {getattr(self, name)}; it must be at least {limit}"
            for name, limit in least.items()
            if not getattr(self, name) >= limit
        ]
        above = {"lr": self.lr, "clip": self.clip, "mpp": self.mpp, "tile": self.tile, "timeout": self.timeout}
        found += [
            f"{name} is {value}; it must be above 0"
            for name, value in above.items()
            if not (value is None or value > 0)
        ]
        if self.mpp is not None and self.level is not None:
            found.append("mpp and level both say the resolution; give one of them")
        if self.folds == 1 or (self.folds and self.fold >= self.folds):
            found.append(f"fold {self.fold} of {self.folds} folds; needed are 2 folds or more, numbered from 0")
        if self.validation + self.test >= 1:
            found.append(f"validation {self.validation} and test {self.test} leave nothing to train on")
        return found

    def labels_as(self) -> Task:
        """The task: classes, weights, and the scale of a regression."""
        return Task(self.task, self.classes, self.weight_of_class, self.target_mean, self.target_std)

    def values(self) -> dict[str, Any]:
        """All values, as TOML and checkpoints can hold them."""
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {name: value for name, value in plain.items() if value is not None}

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str = "settings") -> Settings:
        """Settings from a table of values; names may have hyphens.

        Raises:
            ValueError: a name is unknown or a value of another kind; all of them are listed.
        """
        kinds, known = get_type_hints(cls), {each.name for each in fields(cls)}
        taken: dict[str, Any] = {}
        problems = []
        for given, value in values.items():
            name = given.replace("-", "_")
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                problems.append(f"there is no setting '{given}'" + (f"; did you mean '{near[0]}'?" if near else ""))
                continue
            try:
                taken[name] = _as(kinds[name], value)
            except TypeError as error:
                problems.append(f"{given} is {value!r}; it must be {error}")
        if problems:
            raise ValueError(f"{where}: {len(problems)} problem(s):\n" + "\n".join(f"  - {each}" for each in problems))
        return cls(**taken)

    @classmethod
    def read(cls, path: str | Path) -> dict[str, Any]:
        """The values of a TOML file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not TOML.
        """
        try:
            return tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path} is not TOML: {error}") from None

    def write(self, path: Path) -> None:
        """Write every setting as TOML."""
        import tomli_w

        with whole_file(path) as partial:
            partial.write_text(tomli_w.dumps(self.values()), encoding="utf-8")

    def differences(self, other: Settings) -> list[str]:
        """What another run's settings say otherwise, of those that were set and matter to what comes out."""
        return [
            f"{each.name}: {getattr(other, each.name)!r} there, {getattr(self, each.name)!r} here"
            for each in settable()
            if getattr(self, each.name) != getattr(other, each.name) and each.name not in ("out", "timeout")
        ]

    def with_(self, **changes: Any) -> Settings:
        """The same with some values changed."""
        return replace(self, **changes)


def settable() -> list[Field[Any]]:
    """The settings that a user sets."""
    return [each for each in fields(Settings) if not each.metadata.get("found")]


def default_of(setting: Field[Any]) -> Any:
    """What a setting is where nobody says otherwise."""
    return setting.default if setting.default is not MISSING else {}


def kind_of(setting: Field[Any]) -> Any:
    """The type of a setting's value, without None."""
    return _without_none(get_type_hints(Settings)[setting.name])


def _without_none(kind: Any) -> Any:
    if isinstance(kind, types.UnionType):
        (kind,) = (each for each in get_args(kind) if each is not type(None))
    return kind


def _as(kind: Any, value: Any) -> Any:
    """The value in its field's own type; TypeError with what it must be."""
    if value is None and isinstance(kind, types.UnionType):
        return None
    kind = _without_none(kind)
    if get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)):
            raise TypeError("a list")
        return tuple(_as(get_args(kind)[0], each) for each in value)
    if get_origin(kind) is dict:
        if not isinstance(value, Mapping):
            raise TypeError("a table")
        return dict(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is str and isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # memory = 4294967296, classes = [0, 1]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
        raise TypeError(names[kind])
    return value
