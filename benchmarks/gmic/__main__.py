"""Computation and memory at the published sizes: `python -m benchmarks.gmic` (minutes; no large tensor is made).

Every network runs a forward and backward pass on tensors without numbers (the meta device). Work is torch's counter's,
of the forward pass, in multiply-adds; live bytes are those of the training step beside parameters and image.
Those of a streamed step are its plan's `peak_bytes`, a rehearsal of the real step, and the local network's: of GMIC
their sum, an upper bound, as a streamed trunk holds its stored maps while the local network runs; of 3D-GMIC the larger
one, and the small maps of all slices with their gradients, as stored maps are made again in the backward pass.

A ResNet per slice of a volume holds every slice's activations until the backward pass, so one slice is measured and
counted 70 times; so are the slices of 3D-GMIC that are not streamed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.pages import fill
from streamingcnn import StreamingModule
from streamingcnn.memory import LiveBytes, format_bytes
from streamingcnn.models import GLAM, GMIC, GMIC3D, resnet18, resnet34, resnet50
from streamingcnn.models.gmic import PyramidLocal

SLICES, PLANE, IMAGE, CROP = 70, (2116, 1339), (2944, 1920), (512, 512)


@dataclass(frozen=True)
class Cost:
    """Multiply-adds of a forward pass, bytes held for the backward pass, and the most that live at once."""

    work: float
    held: int
    peak: int


def cost(net: nn.Module, *shape: int, forward: Callable[[Tensor], Tensor] | None = None) -> Cost:
    """One training step of a network on an image without numbers."""
    net = net.to("meta").train()
    x = torch.empty(shape, device="meta")
    call = forward or net
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call(x)
    # Gradients of parameters are the same for all ways; they exist before the step is counted.
    for parameter in net.parameters():
        parameter.grad = torch.empty_like(parameter)
    with LiveBytes(fake=True) as live:
        loss = call(x).sum()
        held = live.current
        loss.backward()
    return Cost(counter.get_total_flops() / 2, held, live.peak)


def streamed(trunk: nn.Module, *shape: int, memory: str) -> int:
    """The most bytes of a streamed step of a trunk, within a budget."""
    return StreamingModule(trunk.train(), memory=memory).plan(shape).peak_bytes


def rows(memory: str) -> list[str]:
    """The lines of the table."""
    made = []

    def line(name: str, against: str, work: float, other: float, live: int, than: int) -> None:
        made.append(
            f"| {name} | {against} | {work / 1e9:.1f} | {other / 1e9:.1f} | {1 - work / other:.2%} less | "
            f"{format_bytes(live)} | {format_bytes(than)} | {1 - live / than:.2%} less |"
        )

    volume = GMIC3D()
    trunk, local = cost(volume.ds_net, 1, 1, *PLANE), cost(volume.dn_resnet, volume.crops, 3, 256, 256)
    work = SLICES * trunk.work + local.work
    plain = SLICES * trunk.held + local.peak
    kept = SLICES * 256 * 33 * 21 * 4  # the maps of all slices
    plan = streamed(GMIC3D().ds_net, 1, 1, *PLANE, memory=memory)
    for name, make in (("18", resnet18), ("34", resnet34), ("50", resnet50)):
        other = cost(make(num_classes=2), 1, 3, *PLANE)
        against = f"ResNet-{name} per slice, {SLICES} x {PLANE[0]} x {PLANE[1]}"
        than = SLICES * other.held
        line("3D-GMIC", against, work, SLICES * other.work, plain, than)
        line("3D-GMIC, streamed", against, work, SLICES * other.work, max(plan, local.peak) + 2 * kept, than)
    flat = GMIC()
    trunk, local = cost(flat.ds_net, 1, 1, *IMAGE), cost(flat.dn_resnet, flat.crops, 3, 256, 256)
    other = cost(resnet34(num_classes=2), 1, 3, *IMAGE)
    against = f"ResNet-34, {IMAGE[0]} x {IMAGE[1]}"
    line("GMIC", against, trunk.work + local.work, other.work, trunk.held + local.peak, other.peak)
    plan = streamed(GMIC().ds_net, 1, 1, *IMAGE, memory=memory)
    frozen = GMIC().ds_net.eval()
    line("GMIC, streamed", against, trunk.work + local.work, other.work, plan + local.peak, other.peak)
    least = StreamingModule(frozen, memory=memory).plan((1, 1, *IMAGE)).peak_bytes
    line("GMIC, streamed, frozen norms", against, trunk.work + local.work, other.work, least + local.peak, other.peak)
    fine = cost(GLAM().detection_network, 1, 3, *CROP)
    cheap = cost(GLAM(local=PyramidLocal()).detection_network, 1, 3, *CROP)
    against = f"the published one, a crop of {CROP[0]} x {CROP[1]}"
    line("GLAM's local network with a pyramid", against, cheap.work, fine.work, cheap.peak, fine.peak)
    return made


def main() -> None:
    """The table, and with --pages into README.md beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", default="160MiB", help="the budget of a streamed trunk (%(default)s)")
    parser.add_argument("--pages", action="store_true", help="put the table on the page")
    options = parser.parse_args()
    head = (
        "| network | against | GMAC | its GMAC | computation | live bytes | its bytes | memory |\n" + "|---" * 8 + "|"
    )
    text = "\n".join([head, *rows(options.memory)])
    print(text)
    if options.pages:
        fill(Path(__file__).parent / "README.md", "gmic-cost", text)


if __name__ == "__main__":
    main()
