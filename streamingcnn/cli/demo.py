"""`streamingcnn demo`: from slides on disk to an AUC, with a network that is streamed, in a few minutes.

It makes its own slides and then does with them what `examples/camelyon/train.py` does with yours.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from streamingcnn.check import check
from streamingcnn.extras import require
from streamingcnn.files import whole_file
from streamingcnn.memory import format_bytes
from streamingcnn.models.resnet import BasicBlock, ResNet
from streamingcnn.module import StreamingModule
from streamingcnn.slides import Case, read_cases, standardised
from streamingcnn.sources import open_image
from streamingcnn.synthetic import Cohort
from streamingcnn.training import LogitMap, study, write_report
from streamingcnn.training.proof import Proof, prove

__all__ = ["add_parser"]

#: What is held between stages: the trunk's scales, and the small convolutions in front of batch norms. The large
#: ones, at 1/2 and 1/4 of the slide's size, are computed again: that is where the memory is.
STORED = (
    *("0.maxpool", "0.layer1", "0.layer2", "0.layer3"),
    *("0.layer2.0.conv1", "0.layer2.0.conv2", "0.layer2.0.downsample.0"),
    *("0.layer3.0.conv1", "0.layer3.0.conv2", "0.layer3.0.downsample.0"),
)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser of `streamingcnn`."""
    parser = subparsers.add_parser(
        "demo",
        help="make slides, train a streamed network on them, test it: a few minutes",
        description="Write a small set of CAMELYON-style slides, read it back through OpenSlide, train a "
        "streamed residual network from slide labels only, and test it on slides that it never saw.",
        epilog="With --quick it ends within a minute, without training: one slide, one step plainly and one "
        "streamed, the comparison and a picture of the tiles.",
    )
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="where (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of slides, weights and order (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="one slide, no training")
    parser.add_argument("--train", type=int, default=40, metavar="N", help="training slides (%(default)s)")
    parser.add_argument("--test", type=int, default=32, metavar="N", help="test slides (%(default)s)")
    parser.add_argument("--size", type=int, default=768, help="pixels along a slide's side (%(default)s)")
    parser.add_argument("--tile", type=int, default=256, help="pixels that a tile covers (%(default)s)")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the slides (%(default)s)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the demo; the last line that it prints is the AUC on the test slides."""
    size = (arguments.size, arguments.size)
    torch.manual_seed(arguments.seed)
    trunk = nn.Sequential(ResNet(BasicBlock, depths=(1, 1, 1), width=16), LogitMap(64))
    if arguments.quick:
        cases = _write(Cohort(arguments.seed, train=0, test=2, size=size), arguments.out / "quick_slides")
        return compare_one(trunk, cases[1], arguments.tile, arguments.out / "tiles.png")
    for name, least in (("train", 2), ("test", 2), ("epochs", 1)):
        if getattr(arguments, name) < least:
            raise ValueError(f"--{name} {getattr(arguments, name)}: it must be at least {least}")
    require("jinja2", "matplotlib", "sklearn")  # now, and not after minutes of training

    cohort = Cohort(arguments.seed, arguments.train, arguments.test, size)
    net = StreamingModule(trunk, tile=arguments.tile, stored=STORED)
    cases = _write(cohort, arguments.out / "slides")
    result = study(net, cases, arguments.out, epochs=arguments.epochs, seed=arguments.seed)

    proof = prove(net, open_image(cases[-1].path).read_all())
    facts = {
        "test AUC": f"{result.auc:.3f} on {arguments.test} slides",
        "trained on": f"{arguments.train} slides of {size[0]} x {size[1]} pixels, slide labels only",
        "epochs": str(arguments.epochs),
        "seed": str(arguments.seed),
        **_said(proof),
    }
    report = arguments.out / "report.html"
    plan = str(net.plan((2, 3, *size)))
    write_report(report, result, title="streamingcnn demo", facts=facts, plan=plan)
    for name, text in _said(proof).items():
        print(f"{name}: {text}")
    print(f"files: {arguments.out.resolve()}: report.html, overlays/, predictions.csv, model.pt, slides/")
    print(f"test AUC {result.auc:.3f}")
    return 0


def compare_one(trunk: nn.Module, case: Case, tile: int, picture: Path) -> int:
    """One step plainly and one streamed on one slide, every tensor compared, and a picture of the tiles."""
    for head in trunk.modules():
        if isinstance(head, LogitMap):
            nn.init.normal_(head.weight)  # through a head of zeros no gradient would reach the trunk
    pixels = open_image(case.path).read_all()
    plan = StreamingModule(trunk, tile=tile, stored=STORED).plan((1, *pixels.shape))
    print(plan)
    result = check(trunk, standardised(pixels[None]), tile=tile, stored=STORED)
    print(f"\n{result}\n")
    with whole_file(picture) as partial:
        plan.draw(pixels).save(partial, format="PNG")
    print(f"slide: {case.path.resolve()}")
    print(f"tiles and halos over it: {picture.resolve()}")
    return 0 if result.ok else 1


def _write(cohort: Cohort, folder: Path) -> list[Case]:
    with tqdm(total=cohort.train + cohort.test, desc="writing slides", unit="slide", leave=False) as bar:
        return read_cases(cohort.write(folder, on_slide=bar.update))


def _said(proof: Proof) -> dict[str, str]:
    share = proof.streamed_bytes / proof.plain_bytes
    return {
        "plain PyTorch needs": f"{format_bytes(proof.plain_bytes)} of tensors for one training step",
        "streaming needs": f"{format_bytes(proof.streamed_bytes)} ({share:.0%})",
        "gradient error": f"{proof.error:.1e} against plain on one slide (float64; worst: {proof.worst})",
    }
