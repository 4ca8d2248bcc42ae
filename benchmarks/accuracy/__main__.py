"""Is streaming as accurate as plain PyTorch? `python -m benchmarks.accuracy` prints the table of README.md beside this.

Both run a step in float32, and both are held against plain PyTorch in float64, tensor by tensor: the output, and the
gradients of the input and of every parameter. What is said is the streamed error over the plain one.

Activations with a kink and max-pooling are taken out first (SiLU and average pooling in their place): where rounding
moves a value over the kink, the gradient loses or gains a whole pixel's part, in plain PyTorch as in a streamed step,
and whoever meets such a pixel first looks a thousand times worse.
"""

from __future__ import annotations

import argparse
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.networks import NETWORKS
from benchmarks.pages import ROOT, fill
from streamingcnn import StreamingModule
from streamingcnn.comparison import relative_errors


@dataclass(frozen=True)
class Case:
    """A network, its norms in training, at one size; a tile covers so many pixels of the image."""

    network: str
    title: str
    shape: tuple[int, ...]
    tile: int


CASES = (
    Case("resnet18", "ResNet-18 trunk, batch norm", (1, 3, 256, 256), 64),
    Case("resnet50", "ResNet-50 trunk, batch norm", (1, 3, 256, 256), 64),
    Case("convnext-t", "ConvNeXt-T trunk, layer norm", (1, 3, 256, 256), 64),
    Case("densenet121", "DenseNet-121 (MONAI), batch norm", (1, 3, 256, 256), 64),
    Case("unet3d", "3-D U-Net, batch norm", (1, 1, 48, 48, 48), 24),
    Case("dynunet", "DynUNet (MONAI), instance norm", (1, 1, 48, 48, 48), 24),
    Case("segresnet", "SegResNet (MONAI), group norm", (1, 1, 48, 48, 48), 24),
)


def errors(case: Case) -> tuple[list[float], list[float]]:
    """The streamed and the plain error of every tensor of one step, in float32 against float64."""
    torch.manual_seed(0)
    net = smooth(NETWORKS[case.network]().train())
    x = torch.rand(case.shape)
    wanted = step_of(deepcopy(net).double(), x.double())
    plain = step_of(deepcopy(net), x)
    streamed = step_of(StreamingModule(deepcopy(net), tile=case.tile), x)
    scale = max(float(torch.linalg.vector_norm(wanted[name])) for name, _ in net.named_parameters())
    of_streamed, of_plain = (relative_errors(step, wanted, scale) for step in (streamed, plain))
    return list(of_streamed.values()), list(of_plain.values())


def smooth(net: nn.Module) -> nn.Module:
    """The network without kinks, changed in place."""
    for parent in list(net.modules()):
        for name, child in parent.named_children():
            if isinstance(child, (nn.ReLU, nn.LeakyReLU, nn.PReLU)):
                setattr(parent, name, nn.SiLU())
            elif isinstance(child, nn.MaxPool2d | nn.MaxPool3d):
                kind: Any = nn.AvgPool2d if isinstance(child, nn.MaxPool2d) else nn.AvgPool3d
                setattr(parent, name, kind(child.kernel_size, child.stride, child.padding))
    return net


def step_of(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The output of a step and all its gradients; every pixel counts, by numbers that are the same in any dtype."""
    x = x.clone().requires_grad_()
    output = net(x)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output.dtype)
    leaves = {"input": x, **dict(net.named_parameters())}
    gradients = torch.autograd.grad(output, list(leaves.values()), weights)
    return {"output": output.detach(), **dict(zip(leaves, gradients, strict=True))}


def main() -> None:
    """Runs every case and prints a row of each, and one of all together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", action="store_true", help="put the table on the project's pages")
    options = parser.parse_args()
    lines = [
        "| network | tensors | plain's error: median | largest | streamed over plain: median | 90th percentile "
        "| largest | above 2x |",
        "|---|---|---|---|---|---|---|---|",
    ]
    every: tuple[list[float], list[float]] = ([], [])
    for case in CASES:
        streamed, plain = errors(case)
        lines.append(row(case.title, streamed, plain))
        every[0].extend(streamed)
        every[1].extend(plain)
    lines.append(row("all", *every))
    printed = "\n".join(lines)
    print(printed)
    if options.pages:
        for page in (Path(__file__).parent / "README.md", ROOT / "docs" / "exactness.md"):
            fill(page, "accuracy", printed)


def row(title: str, streamed: list[float], plain: list[float]) -> str:
    """One row of the table; where plain is without error, streaming has to be too."""
    ratios = [a / b if b else (1.0 if a == 0 else float("inf")) for a, b in zip(streamed, plain, strict=True)]
    high = quantiles(ratios, n=10)[-1]
    cells = [
        title,
        str(len(ratios)),
        f"{median(plain):.1e}",
        f"{max(plain):.1e}",
        f"{median(ratios):.2f}",
        f"{high:.2f}",
        f"{max(ratios):.1f}",
        str(sum(ratio > 2 for ratio in ratios)),
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
