"""`streamingcnn train`: a table of slides in, a trained network out; the same command goes on after a stop."""

from __future__ import annotations

import argparse
from dataclasses import Field
from pathlib import Path
from typing import Any

from streamingcnn.training.settings import Settings, default_of, kind_of, settable
from streamingcnn.training.train import train

from ._network import MODEL_HELP, keyword

__all__ = ["add_parser"]

EXAMPLE = f"""{MODEL_HELP}
  streamingcnn train labels.csv --mpp 0.5 --out runs/first
  streamingcnn train slides.xlsx --id-col slide_id --label-col outcome --group-col patient --images /data/slides \\
      --model resnet50 --weights resnet50.pth --norm frozen --frozen-epochs 2 --precision bf16 --out runs/second
  streamingcnn train --config runs/first/settings.toml --seed 1 --out runs/third
  torchrun --nproc-per-node 4 -m streamingcnn.cli.main train labels.csv --mpp 0.5 --out runs/four
  torchrun --nproc-per-node 4 -m streamingcnn.cli.main train labels.csv --mpp 0.5 --spatial 2 --out runs/halves

Started again with the same settings and folder, a run goes on where it was stopped or killed.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser of `streamingcnn`."""
    parser = subparsers.add_parser(
        "train",
        help="train a network on a table of slides, streamed; goes on after a stop",
        description="Train on the slides of a table, each read box by box, with one label per slide.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("table", nargs="?", default=argparse.SUPPRESS, metavar="TABLE", help="CSV or XLSX of cases")
    parser.add_argument("--config", type=Path, metavar="FILE.toml", help="settings; the command line wins over it")
    groups: dict[str, Any] = {}
    for setting in settable():
        if setting.name != "table":
            name = setting.metadata["group"]
            groups.setdefault(name, parser.add_argument_group(name))
            _add(groups[name], setting)
    parser.set_defaults(run=run)


def _add(group: Any, setting: Field[Any]) -> None:
    """One option, with the setting's own type, choices and help; what is not given is not there."""
    flag, kind, default = "--" + setting.name.replace("_", "-"), kind_of(setting), default_of(setting)
    shown = f" ({default})" if default not in (None, {}, ()) and "default" not in setting.metadata["help"] else ""
    about: dict[str, Any] = {
        "default": argparse.SUPPRESS,
        "help": (setting.metadata["help"] + shown).replace("%", "%%"),
    }
    if kind is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, **about)
    elif setting.name == "arg":
        group.add_argument(flag, action="append", type=keyword, metavar="KEY=VALUE", **about)
    elif kind in (int, float, str):
        choices = setting.metadata["choices"] or None
        metavar = None if choices else {int: "N", float: "X", str: "TEXT"}[kind]
        group.add_argument(flag, type=kind, choices=choices, metavar=metavar, **about)
    else:
        group.add_argument(flag, type=lambda text: text.split(","), metavar="A,B,...", **about)


def run(arguments: argparse.Namespace) -> int:
    """Train; 0 also where the run was stopped by SIGTERM, as it can go on."""
    given = {name: value for name, value in vars(arguments).items() if name not in ("run", "verbose", "config")}
    if "arg" in given:
        given["arg"] = dict(given["arg"])
    config = arguments.config
    values = {} if config is None else _of_file(config)
    settings = Settings.of({**values, **given}, "settings" if config is None else str(config))
    if not settings.table:
        raise ValueError("which table? streamingcnn train TABLE, or table = ... in the settings")
    train(settings, say=lambda line: print(line, flush=True))
    return 0


def _of_file(path: Path) -> dict[str, Any]:
    """The settings of a file, without what a run found out by itself."""
    found = {each for each in Settings.__dataclass_fields__ if each not in {s.name for s in settable()}}
    return {name: value for name, value in Settings.read(path).items() if name not in found}
