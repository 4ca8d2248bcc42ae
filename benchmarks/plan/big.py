"""An image whose activations plain PyTorch could not hold: `python -m benchmarks.plan.big --size 8192 --memory 3GiB`.

One step of a ResNet-34 trunk with a global mean; plain PyTorch retains 40 GiB for it at 8192^2, 160 at 16384^2.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks.measure import machine
from benchmarks.networks import prepare
from benchmarks.pages import fill
from benchmarks.plan.long import HEAD, logged, long_step
from streamingcnn import StreamingModule

_FOLDER = Path(__file__).parent


def main() -> None:
    """One step, its log beside this file, and a row for the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=8192, help="the image's side (%(default)s)")
    parser.add_argument("--memory", default="3GiB", help="the budget (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads (%(default)s)")
    parser.add_argument("--log", type=Path, help="the log (big-SIZE.log beside this file)")
    parser.add_argument("--pages", action="store_true", help="put the row on the page")
    options = parser.parse_args()
    logged(options.log or _FOLDER / f"big-{options.size}.log", options.threads)
    net, forward = prepare("resnet34 mean", "streamed", memory=options.memory)
    assert isinstance(forward, StreamingModule)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    step = long_step(forward, image(options.size), memory=options.memory)
    row = f"| ResNet-34 trunk + global mean, {options.size}^2, channels_last | {step.row} |"
    text = f"{HEAD}\n{row}\n\n{machine(options.threads)}; one step."
    print(text)
    if options.pages:
        fill(_FOLDER / "README.md", f"plan-big-{options.size}", text)


def image(size: int) -> torch.Tensor:
    """Normal random numbers, made in channels_last: two of such images need not exist at once."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn((1, size, size, 3), generator=generator).permute(0, 3, 1, 2)


if __name__ == "__main__":
    main()
