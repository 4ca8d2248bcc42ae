"""`streamingcnn plan`: what would my network take, and what would a budget buy? Before anything is allocated."""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from streamingcnn.comparison import run_step
from streamingcnn.extras import require
from streamingcnn.files import whole_file
from streamingcnn.memory import LiveBytes, format_bytes
from streamingcnn.module import StreamingModule
from streamingcnn.plain import first_line
from streamingcnn.plan.frontier import budgets, frontier, smallest_budget, step_work
from streamingcnn.plan.plan import Plan
from streamingcnn.plan.report import by, format_seconds

from ._network import MODEL_HELP, add_model, load, sizes

__all__ = ["add_parser"]

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}

EXAMPLE = f"""{MODEL_HELP}
  streamingcnn plan resnet34 --size 1x3x8192x8192 --memory 4GiB --save plan.json
  streamingcnn plan mynets.py:UNet --arg filters=32 --size 1x1x512x512x512 --sweep frontier.png

Exit code: 0, or 2 where no plan fits, the network cannot be streamed, or the call is wrong.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser of `streamingcnn`."""
    parser = subparsers.add_parser(
        "plan",
        help="show what a network takes at a size, and what a budget buys",
        description="Plan one training step of a network at a size: stages, tiles, bytes; what plain PyTorch would "
        "need; the smallest budget that works. Nothing of the image's size is allocated.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model(parser)
    parser.add_argument("--memory", metavar="BYTES", help="what a step may take, as in 4GiB, or auto (a usual plan)")
    parser.add_argument("--tile", type=sizes, metavar="N or HxW", help="pixels a tile covers (automatic)")
    parser.add_argument("--save", type=Path, metavar="FILE.json", help="write the plan, for Plan.load")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="number format (%(default)s)")
    parser.add_argument("--channels-last", action="store_true", help="in channels_last memory format (contiguous)")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--train", dest="training", action="store_const", const=True, help="in train mode")
    mode.add_argument("--eval", dest="training", action="store_const", const=False, help="in eval mode (as it is made)")
    parser.add_argument(
        "--sweep",
        type=Path,
        nargs="?",
        const=Path("sweep.png"),
        metavar="FILE.png",
        help="plan for budgets from the smallest to plain PyTorch's need, and draw memory against time (%(const)s)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the plan and what it is held against; return 2 with one line where there is none."""
    try:
        if args.sweep is not None:
            require("matplotlib")  # now, and not after the planning
        describe(args)
    except (ImportError, OSError, ValueError, TypeError) as error:
        print(f"streamingcnn plan: {error}", file=sys.stderr)
        return 2
    return 0


def describe(args: argparse.Namespace) -> None:
    """Plan, print, save and sweep, as the arguments say."""
    if len(args.size) < 3:
        raise ValueError(f"--size needs batch, channels and space, as in 1x3x512x512; got {by(args.size)}")
    module = load(args.model, dict(args.arg)).to(DTYPES[args.dtype])
    if args.training is not None:
        module.train(args.training)
    image = blank(args.size, DTYPES[args.dtype], args.channels_last)
    tile = args.tile[0] if args.tile and len(args.tile) == 1 else args.tile
    plan = StreamingModule(module, tile=tile, memory=args.memory).plan(image)
    if args.save is not None:
        plan.save(args.save)
    layout = "channels_last" if args.channels_last else "contiguous"
    print(f"{args.model}, {'train' if module.training else 'eval'} mode, {args.dtype}, {layout}\n\n{plan}\n")
    plain = plain_bytes(module, image)
    smallest = smallest_budget(plan.graph, tile)
    if isinstance(plain, int):
        print(f"plain PyTorch needs {format_bytes(plain)}; this plan {plan.peak_bytes / plain:.1%} of it")
    else:
        print(f"plain PyTorch's need is {plain}")
    print(f"the smallest budget that works: {format_bytes(smallest)} (memory={smallest})")
    if args.save is not None:
        print(f"saved: {args.save}")
    if args.sweep is not None:
        if not isinstance(plain, int):
            raise ValueError(f"--sweep goes up to what plain PyTorch needs, which is {plain}")
        sweep(plan, smallest, plain, tile, args.sweep, f"{args.model}, {by(args.size)}, {args.dtype}")


def blank(size: Sequence[int], dtype: torch.dtype, channels_last: bool) -> Tensor:
    """An image that has a shape and no memory."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if channels_last and len(size) not in formats:
        raise ValueError(f"--channels-last is for images and volumes; {by(size)} is neither")
    memory_format = formats[len(size)] if channels_last else torch.contiguous_format
    return torch.empty(tuple(size), dtype=dtype, device="meta", memory_format=memory_format)


def plain_bytes(module: nn.Module, image: Tensor) -> int | str:
    """The bytes that plain PyTorch holds at the height of a training step, from shapes; or why that is not known."""
    reference = copy.deepcopy(module).to("meta")
    live = LiveBytes(fake=True)
    try:
        with live:
            run_step(reference, image, input_gradients=False)
    except (RuntimeError, ValueError, TypeError) as error:
        return f"not known, as the network does not run on shapes alone ({first_line(error)})"
    return live.peak


def sweep(plan: Plan, smallest: int, plain: int, tile: int | tuple[int, ...] | None, path: Path, title: str) -> None:
    """Print one line per budget, and draw them."""
    plans = []
    print(f"\n{'budget':>9}  {'of plain':>8}  {'peak':>9}  {'stages':>6}  {'tiles':>7}  {'work':>6}  time")
    for made in frontier(plan.graph, budgets(smallest, plain), tile):
        plans.append(made)
        budget = made.budget or 0
        print(
            f"{format_bytes(budget):>9}  {budget / plain:>8.1%}  {format_bytes(made.peak_bytes):>9}  "
            f"{len(made.stages):>6}  {made.tiles:>7}  {step_work(made):>5.2f}x  "
            f"{format_seconds(made.seconds)}",
            flush=True,
        )
    with whole_file(path) as partial:
        draw(plans, plain, partial, title)
    print(f"picture: {path}")


def draw(plans: Sequence[Plan], plain: int, path: Path, title: str) -> None:
    """Draw predicted peak against predicted time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter, NullFormatter

    points = [(plan.peak_bytes, plan.seconds) for plan in plans]
    # The smallest plan of all may take a hundred times as long as the next one: all others would lie on the axis.
    top = 1.2 * max(height for _, height in points if height <= 4 * min(height for _, height in points))
    shown = [(peak, height) for peak, height in points if height <= top]
    figure, axis = plt.subplots(figsize=(7, 4.2))
    axis.plot(*zip(*shown, strict=True), "o-", color="#1f6f8b", label="streamed, one point per budget")
    axis.axvline(plain, color="#888888", linestyle="--", label=f"plain PyTorch, {format_bytes(plain)}")
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: format_bytes(value).replace(".00", "").replace(".0", ""))
    )
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_ylim(0, top)
    for peak, height in points:
        if height > top:
            axis.plot(peak, top, "^", color="#1f6f8b", clip_on=False)
            said = f"{format_bytes(peak)}: {format_seconds(height)}"
            axis.annotate(said, (peak, top), textcoords="offset points", xytext=(6, -12), fontsize=9)
    axis.set_xlabel("predicted peak of a training step")
    axis.set_ylabel("predicted seconds of a training step")
    axis.set_title(title, loc="left", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    axis.legend(fontsize=9, loc="upper right", framealpha=1)
    figure.tight_layout()
    figure.savefig(path, format="png", dpi=110)
    plt.close(figure)
