"""What commands share: the network that a command line names, and sizes as people write them."""

from __future__ import annotations

import argparse
import ast
import importlib
import sys
from pathlib import Path
from typing import Any

from torch import nn

from streamingcnn.models import UNet3D, resnet18, resnet34, resnet50

__all__ = ["MODEL_HELP", "add_model", "load", "sizes"]

#: The networks that have a name of their own.
MODELS = {"resnet18": resnet18, "resnet34": resnet34, "resnet50": resnet50, "unet3d": UNet3D}

MODEL_HELP = f"""
MODEL is MODULE.PATH:FACTORY, or one of {", ".join(MODELS)}. A factory is a class or a function that returns the
network, or the network itself; it is called without arguments but those of --arg, and looked up from the current
directory too: mynets.py:UNet
"""


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add what says which network: MODEL, --arg and --size."""
    parser.add_argument("model", metavar="MODEL", help="MODULE.PATH:FACTORY, or a name (see below)")
    parser.add_argument("--size", required=True, type=sizes, metavar="NxCxHxW", help="shape of the input")
    parser.add_argument(
        "--arg",
        action="append",
        default=[],
        type=_keyword,
        metavar="KEY=VALUE",
        help="an argument for the factory: a Python literal, else a text; may be given several times",
    )


def load(path: str, arguments: dict[str, Any] | None = None) -> nn.Module:
    """Make the network that a name, `module.path:factory` or `folder/file.py:factory` stands for.

    >>> load("torch.nn:ReLU"), load("torch.nn:LeakyReLU", {"negative_slope": 0.1})
    (ReLU(), LeakyReLU(negative_slope=0.1))
    >>> load("resnet18", {"num_classes": 2}).fc
    Linear(in_features=512, out_features=2, bias=True)

    Raises ValueError, with the reason, where there is none.
    """
    made = MODELS[path] if path in MODELS else _found(path)
    if not isinstance(made, nn.Module):
        if not callable(made):
            raise ValueError(f"'{path}' is a {type(made).__name__}; it must be a network or make one")
        try:
            made = made(**(arguments or {}))
        except TypeError as error:
            given = ", ".join(f"{key}={value!r}" for key, value in (arguments or {}).items())
            raise ValueError(f"{path}({given}) cannot be called so: {error}; give arguments with --arg") from error
        except Exception as error:  # whatever a stranger's code raises
            raise ValueError(f"{path}() failed: {type(error).__name__}: {error}") from error
    elif arguments:
        raise ValueError(f"'{path}' is a network already, which takes no --arg")
    if not isinstance(made, nn.Module):
        raise ValueError(f"{path}() returned a {type(made).__name__}, and not an nn.Module")
    return made


def sizes(text: str) -> tuple[int, ...]:
    """Sizes with x between them, for argparse.

    >>> sizes("1x3x512x512")
    (1, 3, 512, 512)
    """
    try:
        found = tuple(int(part) for part in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no size: write whole numbers with x between") from None
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no size: each number must be at least 1")
    return found


def _found(path: str) -> Any:
    place, _, name = path.partition(":")
    if not name:
        raise ValueError(
            f"'{path}' is neither MODULE.PATH:FACTORY, as in mynets.py:UNet, nor one of {', '.join(MODELS)}"
        )
    if place.endswith(".py"):
        folder, place = str(Path(place).resolve().parent), Path(place).stem
    else:
        folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        found: Any = importlib.import_module(place)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"cannot find '{path}' from {Path.cwd()}: {error}") from error
    except Exception as error:  # whatever a stranger's file raises while it is imported
        raise ValueError(f"importing '{path}' failed: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(folder)
    return found


def _keyword(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"'{text}' is no argument: write KEY=VALUE, as in num_classes=2")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value
