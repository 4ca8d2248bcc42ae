"""`streamingcnn check`: is my own network, streamed, the same network?"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from streamingcnn.check import check

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}

EXAMPLE = """
MODULE.PATH:FACTORY names a class or a function that returns the network when it is called without
arguments, or the network itself. It is looked up from the current directory too:

  streamingcnn check mynets.py:UNet --size 1x3x512x512 --tile 128

Exit code: 0 when every tensor agrees within the tolerance, 1 when one does not, 2 for a wrong call.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser of `streamingcnn`."""
    parser = subparsers.add_parser(
        "check",
        help="compare a network of yours, streamed, with plain PyTorch",
        description="Run one training step of a network plainly and streamed, on random input, and compare "
        "outputs, input gradients, parameter gradients, buffers, time and bytes.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("factory", metavar="MODULE.PATH:FACTORY", help="what makes the network")
    parser.add_argument("--size", required=True, type=_sizes, metavar="NxCxHxW", help="shape of the input")
    parser.add_argument("--tile", type=_sizes, metavar="N or HxW", help="pixels a tile covers (automatic)")
    parser.add_argument("--dtype", choices=DTYPES, default="float64", help="number format (%(default)s)")
    parser.add_argument("--device", default="cpu", help="where to compute (%(default)s)")
    parser.add_argument("--eval", action="store_true", help="in eval mode (train mode)")
    parser.add_argument("--tolerance", type=float, help="largest error allowed (1e-10 in float64)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and input (%(default)s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the table of `check`; return 1 when a tensor is beyond the tolerance."""
    try:
        if len(args.size) < 3:
            raise ValueError(f"--size needs batch, channels and space, as in 1x3x512x512; got {args.size}")
        torch.manual_seed(args.seed)
        module = load(args.factory).to(args.device).train(not args.eval)
        tile = args.tile[0] if args.tile and len(args.tile) == 1 else args.tile
        result = check(module, args.size, tile=tile, dtype=DTYPES[args.dtype], tolerance=args.tolerance, seed=args.seed)
    except (ValueError, TypeError) as error:
        print(f"streamingcnn check: {error}", file=sys.stderr)
        return 2
    print(result)
    return 0 if result.ok else 1


def load(path: str) -> nn.Module:
    """Make the network that `module.path:factory` or `folder/file.py:factory` names.

    >>> load("torch.nn:ReLU")
    ReLU()

    Raises ValueError, with the reason, where there is none.
    """
    place, _, name = path.partition(":")
    if not name:
        raise ValueError(f"'{path}' has no factory; write MODULE.PATH:FACTORY, as in mynets.py:UNet")
    if place.endswith(".py"):
        folder, place = str(Path(place).resolve().parent), Path(place).stem
    else:
        folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        made: Any = importlib.import_module(place)
        for part in name.split("."):
            made = getattr(made, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"cannot find '{path}' from {Path.cwd()}: {error}") from None
    finally:
        sys.path.remove(folder)
    if not isinstance(made, nn.Module):
        if not callable(made):
            raise ValueError(f"'{path}' is a {type(made).__name__}; it must be a network or make one")
        try:
            made = made()
        except TypeError as error:
            raise ValueError(f"{path}() cannot be called without arguments: {error}") from None
    if not isinstance(made, nn.Module):
        raise ValueError(f"{path}() returned a {type(made).__name__}, and not an nn.Module")
    return made


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no size: write whole numbers with x between") from None
