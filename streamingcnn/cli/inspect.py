"""`streamingcnn inspect`: what is this slide, what does it lack, and what would a network take on it?"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from streamingcnn.files import whole_file
from streamingcnn.memory import format_bytes
from streamingcnn.models.named import MODELS, load
from streamingcnn.module import StreamingModule
from streamingcnn.plan.report import format_seconds
from streamingcnn.slides.level0 import file_image, level_0
from streamingcnn.slides.thumbnail import thumbnail
from streamingcnn.slides.tissue import TissueMask, tissue_mask
from streamingcnn.sources import ScaledSource, Source, open_image
from streamingcnn.sources.resolution import missing_mpp

__all__ = ["add_parser"]

EXAMPLE = f"""
  streamingcnn inspect slides/*.svs
  streamingcnn inspect slide.svs --model resnet18 --mpp 0.5 --memory 4GiB
  streamingcnn inspect scan.tif --slide-mpp 0.25 --tissue masks/scan.png

MODEL is one of {", ".join(MODELS)}, or MODULE.PATH:FACTORY.

Exit code: 0, or 1 where a slide cannot be read or lacks what was asked for; all slides are looked at.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser of `streamingcnn`."""
    parser = subparsers.add_parser(
        "inspect",
        help="what a slide is, what it lacks, what a network would take on it",
        description="Size, levels, resolution, scanner and tissue of slides; a thumbnail and a picture of the tissue "
        "mask; tiles, memory and time of a training step. Nothing of a slide's size is read or allocated.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("slides", nargs="+", type=Path, metavar="SLIDE", help="any image that can be opened")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the pictures go (none are drawn)")
    parser.add_argument("--tissue", default="auto", metavar="auto|none|FILE", help="the tissue mask (%(default)s)")
    parser.add_argument("--model", help="plan a training step of this network")
    parser.add_argument("--memory", default="auto", help="what a step may take, as in 4GiB (%(default)s: what is free)")
    resolution = parser.add_mutually_exclusive_group()
    resolution.add_argument("--mpp", type=float, help="micrometres per pixel that the network would read")
    resolution.add_argument("--level", type=int, help="or the level of the pyramid that it would read (0)")
    parser.add_argument(
        "--slide-mpp", type=float, help="the slide's own micrometres per pixel, where the file is wrong"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Describe each slide; return 1 where one cannot be read or lacks what was asked for."""
    failed = 0
    for number, path in enumerate(args.slides):
        if number:
            print()
        print(path)
        try:
            describe(path, args)
        except (OSError, ValueError, ModuleNotFoundError) as error:
            failed += 1
            print(f"  PROBLEM    {error}", file=sys.stderr)
    if len(args.slides) > 1:
        print(f"\n{len(args.slides)} slides, {failed} with a problem")
    return 1 if failed else 0


def describe(path: Path, args: argparse.Namespace) -> None:
    """Print what a slide is, and draw and plan as the arguments say."""
    image = open_image(path, slide_mpp=args.slide_mpp)
    file = file_image(image)
    assert file is not None  # without mpp= an image is opened as its file has it
    whole = level_0(image)
    height, width = whole.size
    say("what", getattr(file, "vendor", "") or type(file).__name__.removesuffix("Image").lower())
    raw = image.shape[0] * height * width * torch.empty((), dtype=image.dtype).element_size()
    say(
        "size",
        f"{height} x {width} pixels (height x width), {format_bytes(raw)} as {image.dtype}".replace("torch.", ""),
    )
    if whole.mpp is not None:
        given = ", as given" if args.slide_mpp else ""
        tall, wide = height * whole.mpp[0] / 1000, width * whole.mpp[1] / 1000
        say("resolution", f"{whole.mpp[1]:.4g} um per pixel{given}: {tall:.2f} x {wide:.2f} mm")
    else:
        text = str(missing_mpp(path.name, args.mpp or 0.5, file.stated_mpp))
        say("resolution", f"MISSING: {text}")
    for number, downsample in enumerate(file.levels):
        at = file.at_level(number).shape
        coarse = "" if whole.mpp is None else f", {whole.mpp[1] * downsample:.4g} um"
        say("levels" if not number else "", f"{number}: {at[-2]} x {at[-1]}{coarse}")
    mask = None
    if len(image.shape) == 3 and (image.shape[0] == 3 or args.tissue != "auto"):
        mask = tissue_mask(image, args.tissue)
        say("tissue", f"{mask.share:.1%} ({mask.how})")
    else:
        say("tissue", "not looked for: the image is not RGB; give a mask with --tissue FILE")
    if args.out is not None:
        draw(path, image, mask, args.out)
    if args.model is not None:
        plan(path, mask, args)


def draw(path: Path, image: Source, mask: TissueMask | None, out: Path) -> None:
    """Write the thumbnail and the picture of the mask."""
    out.mkdir(parents=True, exist_ok=True)
    pictures = {"thumbnail": thumbnail(image).picture()}
    if mask is not None:
        pictures["tissue"] = mask.preview(image)
    for name, picture in pictures.items():
        file = out / f"{path.stem}.{name}.png"
        with whole_file(file) as partial:
            picture.save(partial, format="PNG")
        say("pictures" if name == "thumbnail" else "", str(file))


def plan(path: Path, mask: TissueMask | None, args: argparse.Namespace) -> None:
    """Print what a training step of a network would take on the slide, from shapes alone."""
    level = None if args.mpp else args.level or 0
    image = open_image(path, mpp=args.mpp, level=level, slide_mpp=args.slide_mpp)
    seen: Source = image if mask is None or not mask.kept.any() else mask.over(image)
    net = StreamingModule(load(args.model), memory=args.memory)
    made = net.plan(ScaledSource(seen))
    at = f"{args.mpp:g} um per pixel" if args.mpp else f"level {level}"
    say(args.model, f"{image.shape[-2]} x {image.shape[-1]} pixels at {at}")
    saved = made.tiles - made.tiles_run
    background = f", {made.tiles_run} of them run: the others are background" if saved else ""
    say("", f"{len(made.stages)} stages, {made.tiles} tiles{background}")
    given = "" if made.budget is None else f" of {format_bytes(made.budget)}"
    say("", f"{format_bytes(made.peak_bytes)}{given} for a training step, beside parameters")
    say("", f"{format_seconds(made.seconds)} predicted for a step (`streamingcnn plan` shows it in full)")


def say(name: str, text: str) -> None:
    """Print a name and what there is to say, in two columns."""
    print(f"  {name:<10} {text}")
