"""Train a streamed network on whole slides from slide labels only, and test it.

    streamingcnn demo --out demo            # makes a set of slides; or bring your own
    python examples/camelyon/train.py demo/slides/labels.csv --out run

The table has the columns path,label,split: a slide that OpenSlide reads (its path relative to the table), 0
or 1, train or test. Outlines in ASAP's XML, at ../annotations/NAME.xml from the slide, are drawn where they
exist; training never sees them. The last line printed is the AUC on the test slides.
"""

import argparse
from pathlib import Path

import torch
from torch import nn

from streamingcnn import StreamingModule
from streamingcnn.models.resnet import BasicBlock, ResNet
from streamingcnn.slides import read_cases
from streamingcnn.sources import open_image
from streamingcnn.training import LogitMap, slide_loss, slide_score, study, write_report

# What is held between stages: the trunk's scales, and the small convolutions in front of batch norms. The large
# ones, at 1/2 and 1/4 of the slide's size, are computed again: that is where the memory is. Without `stored=` a
# plan is chosen for you.
STORED = (
    *("0.maxpool", "0.layer1", "0.layer2", "0.layer3"),
    *("0.layer2.0.conv1", "0.layer2.0.conv2", "0.layer2.0.downsample.0"),
    *("0.layer3.0.conv1", "0.layer3.0.conv2", "0.layer3.0.downsample.0"),
)


def main() -> None:
    """Read the table, wrap the network, train, test, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="CSV with the columns path,label,split")
    parser.add_argument("--out", type=Path, default=Path("run"), help="folder for everything (%(default)s)")
    parser.add_argument("--level", type=int, default=0, help="of the pyramid; 0: the full image (%(default)s)")
    parser.add_argument("--tile", type=int, default=256, help="pixels a tile covers (%(default)s)")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the slides (%(default)s)")
    parser.add_argument("--batch", type=int, default=2, help="slides per step; 1 if sizes differ (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and order (%(default)s)")
    parser.add_argument("--plain", action="store_true", help="do not stream: the same, by plain PyTorch")
    args = parser.parse_args()

    cases = read_cases(args.table)
    shape = open_image(cases[0].path, level=args.level).shape

    # Any module of local operations. Wrapping it changes how it runs, and nothing else: ordinary optimisers,
    # losses and checkpoints go with it.
    torch.manual_seed(args.seed)
    net: nn.Module = nn.Sequential(
        ResNet(BasicBlock, depths=(1, 1, 1), width=16),  # 16, 32 and 64 channels, 1/16 of the slide's size
        LogitMap(64),
    )
    if not args.plain:
        net = StreamingModule(net, tile=args.tile, stored=STORED)
        print(net.plan((args.batch, *shape)))

    # AdamW, one-cycle, clipped gradients; then one score per test slide, and a picture of each tumour.
    result = study(
        net,
        cases,
        args.out,
        loss=slide_loss,  # of a map of logits (N, 1, rows, columns) and the labels (N,): put your own here
        score=slide_score,
        level=args.level,
        epochs=args.epochs,
        batch=args.batch,
        seed=args.seed,
    )
    facts = {"test AUC": f"{result.auc:.3f}", "table": str(args.table), "epochs": str(args.epochs)}
    write_report(args.out / "report.html", result, title="Slides, from slide labels only", facts=facts)
    print(f"report: {(args.out / 'report.html').resolve()}")
    print(f"test AUC {result.auc:.3f}")


if __name__ == "__main__":
    main()
