"""What commands share: the network that a command line names, and sizes as people write them."""

from __future__ import annotations

import argparse
import ast
from typing import Any

from streamingcnn.models.named import MODELS
from streamingcnn.models.named import load as load

__all__ = ["MODEL_HELP", "add_model", "keyword", "load", "sizes"]

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
        type=keyword,
        metavar="KEY=VALUE",
        help="an argument for the factory: a Python literal, else a text; may be given several times",
    )


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


def keyword(text: str) -> tuple[str, Any]:
    """A KEY=VALUE, for argparse; the value is a Python literal, else a text.

    >>> keyword("num_classes=2"), keyword("norm=group")
    (('num_classes', 2), ('norm', 'group'))
    """
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"'{text}' is no argument: write KEY=VALUE, as in num_classes=2")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value
