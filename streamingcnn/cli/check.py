"""`streamingcnn check`: is my own network, streamed, the same network?"""

from __future__ import annotations

import argparse
import sys

import torch

from streamingcnn.check import check

from ._network import MODEL_HELP, add_model, load, sizes

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}

EXAMPLE = f"""{MODEL_HELP}
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
    add_model(parser)
    parser.add_argument("--tile", type=sizes, metavar="N or HxW", help="pixels a tile covers (automatic)")
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
        module = load(args.model, dict(args.arg)).to(args.device).train(not args.eval)
        tile = args.tile[0] if args.tile and len(args.tile) == 1 else args.tile
        result = check(module, args.size, tile=tile, dtype=DTYPES[args.dtype], tolerance=args.tolerance, seed=args.seed)
    except (ValueError, TypeError) as error:
        print(f"streamingcnn check: {error}", file=sys.stderr)
        return 2
    print(result)
    return 0 if result.ok else 1
