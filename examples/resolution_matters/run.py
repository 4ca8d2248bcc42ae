"""Does the label of a slide need its full resolution? The same slides, network and loop at two levels.

    python examples/resolution_matters/run.py --out resolution

Slides of the demo's kind, 40 to train on and 200 for the test, are written as pyramids. The demo's network
is trained on the full images, and on the level at 1/8 of their size, where a nucleus is less than a pixel.
A small image costs less, so the small ones get six times the epochs. Plain PyTorch throughout: the streamed
network computes the same, and this example is about the slides.
"""

import argparse
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from streamingcnn.models.resnet import BasicBlock, ResNet
from streamingcnn.slides import read_cases
from streamingcnn.synthetic import Cohort
from streamingcnn.training import LogitMap, study


def main() -> None:
    """Write the slides, train and test at 1/8 and at full resolution."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("resolution"), help="folder (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of slides, weights and order (%(default)s)")
    parser.add_argument("--train", type=int, default=40, help="training slides (%(default)s)")
    parser.add_argument("--test", type=int, default=200, help="test slides (%(default)s)")
    parser.add_argument("--epochs", type=int, default=10, help="at full resolution (%(default)s)")
    args = parser.parse_args()

    cohort = Cohort(args.seed, args.train, args.test)
    with tqdm(total=args.train + args.test, desc="writing slides", unit="slide") as bar:
        cases = read_cases(cohort.write(args.out / "slides", on_slide=bar.update))
    for level, epochs in ((3, 6 * args.epochs), (0, args.epochs)):
        torch.manual_seed(args.seed)
        net = nn.Sequential(ResNet(BasicBlock, depths=(1, 1, 1), width=16), LogitMap(64))
        folder = args.out / f"level_{level}"
        result = study(net, cases, folder, level=level, epochs=epochs, seed=args.seed, pictures=False)
        print(f"resolution 1/{2**level}: test AUC {result.auc:.3f} on {args.test} slides", flush=True)


if __name__ == "__main__":
    main()
