"""A U-Net on a volume of 512^3, loss and all: `python -m benchmarks.plan.volume`.

The network of the Mesh-TensorFlow paper (Hou et al. 2019), which spread it over hundreds of TPU cores: 4 levels of 32,
64, 128 and 256 filters, two 3x3x3 convolutions with batch norm (frozen here) and leaky ReLU each; the loss, 0.2 Dice
and 0.8 weighted cross-entropy, is part of the streamed module. About 115 TMAC: half an hour to an hour on two cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks.measure import machine
from benchmarks.pages import fill
from benchmarks.plan.long import HEAD, logged, long_step
from streamingcnn import StreamingModule
from streamingcnn.models import DiceCrossEntropy, UNet3D

_FOLDER = Path(__file__).parent


def main() -> None:
    """One step, its log beside this file, and a row for the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=512, help="the volume's side (%(default)s)")
    parser.add_argument("--filters", type=int, default=32, help="filters of the first level (%(default)s)")
    parser.add_argument("--memory", default="12GiB", help="the budget (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads (%(default)s)")
    parser.add_argument("--log", type=Path, help="the log (volume-SIZE.log beside this file)")
    parser.add_argument("--pages", action="store_true", help="put the row on the page")
    options = parser.parse_args()
    logged(options.log or _FOLDER / f"volume-{options.size}.log", options.threads)
    torch.manual_seed(0)
    loss = DiceCrossEntropy(weight=(0.2, 1.0, 1.0))
    model = UNet3D(1, 3, levels=4, filters=options.filters, norm="batch", loss=loss)
    net = StreamingModule(model.eval(), memory=options.memory)
    generator = torch.Generator().manual_seed(1)
    shape = (options.size,) * 3
    volume = torch.randn((1, 1, *shape), generator=generator)
    target = torch.randint(3, (1, *shape), generator=generator)
    step = long_step(net, volume, target, memory=options.memory)
    row = f"| 3-D U-Net with loss, {options.filters} filters, {options.size}^3 | {step.row} |"
    text = f"{HEAD}\n{row}\n\n{machine(options.threads)}; one step."
    print(text)
    if options.pages:
        fill(_FOLDER / "README.md", "plan-volume", text)


if __name__ == "__main__":
    main()
