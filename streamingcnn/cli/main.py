"""`streamingcnn`: finds the commands and runs one.

Every other module of this package is a command. It has a function ``add_parser(subparsers)`` that adds a parser whose
default ``run`` takes the parsed arguments and returns the exit code. What commands share has an underscore in front.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import pkgutil
import sys
from collections.abc import Sequence

import streamingcnn.cli

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code is 0, or 1 for an error or a no, or 2 for a wrong call."""
    parser = argparse.ArgumentParser(
        prog="streamingcnn",
        description="Train convolutional networks on images of any size with plain PyTorch's gradient.",
    )
    parser.add_argument("--verbose", action="store_true", help="say more, and where an error comes from")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in pkgutil.iter_modules(streamingcnn.cli.__path__):
        if module.name != "main" and not module.name.startswith("_"):
            importlib.import_module(f"streamingcnn.cli.{module.name}").add_parser(subparsers)
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.DEBUG if chosen.verbose else logging.WARNING, format="%(message)s")
    try:
        code: int = chosen.run(chosen)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        logging.getLogger(__name__).debug("the command failed", exc_info=True)
        print(f"streamingcnn: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("streamingcnn: stopped", file=sys.stderr)
        return 130
    return code


if __name__ == "__main__":
    sys.exit(main())
