"""Computation and memory at the published sizes: `python -m benchmarks.gmic` (minutes; no large tensor is made).

Every network runs a forward and backward pass on tensors without numbers (the meta device). Work is torch's counter's,
of the forward pass, in multiply-adds; live bytes are those of the training step beside parameters and image.
Those of a streamed trunk are its plan's `peak_bytes`, a rehearsal of the real step. A trunk that runs again in the
backward pass (of GMIC with `recompute=True`; of 3D-GMIC slice by slice) leaves nothing but its map, so a whole step
takes what the trunk or the local network takes, whichever is more, the maps with their gradients, and the crops.

A ResNet per slice of a volume holds every slice's activations until the backward pass, so one slice is measured and
counted 70 times; so are the slices of 3D-GMIC that are not streamed.

`python -m benchmarks.gmic.real` runs whole streamed steps with numbers and measures them.
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

#: The budget of a streamed local network.
LOCAL = "120MiB"
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


@dataclass(frozen=True)
class Line:
    """A network against another, and how much less it has to take: shares of work and bytes; None: no bar was set."""

    name: str
    against: str
    work: float
    other_work: float
    live: int
    other_live: int
    bars: tuple[float | None, float | None]

    def __str__(self) -> str:
        shares = (1 - self.work / self.other_work, 1 - self.live / self.other_live)
        less = [_judged(share, bar) for share, bar in zip(shares, self.bars, strict=True)]
        return (
            f"| {self.name} | {self.against} | {self.work / 1e9:.1f} | {self.other_work / 1e9:.1f} | {less[0]} | "
            f"{format_bytes(self.live)} | {format_bytes(self.other_live)} | {less[1]} |"
        )


def _judged(share: float, bar: float | None) -> str:
    if bar is None:
        return f"{share:.2%}"
    return f"{share:.2%} (at least {100 * bar:.4g} %: {'reached' if share >= bar else 'MISSED'})"


def lines(memory: str) -> list[Line]:
    """The lines of the table; bars are those that were set before anything was measured."""
    made = []
    volume = GMIC3D()
    trunk, local = cost(volume.ds_net, 1, 1, *PLANE), cost(volume.dn_resnet, volume.crops, 3, 256, 256)
    work = SLICES * trunk.work + local.work
    plain = SLICES * trunk.held + local.peak
    kept = SLICES * 256 * 33 * 21 * 4  # the maps of all slices
    plan = streamed(GMIC3D().ds_net, 1, 1, *PLANE, memory=memory)
    seen = 4 * volume.crops * 256 * 256 * 4  # crops of one channel, and repeated to three
    sliced = max(trunk.peak, local.peak) + 2 * kept + seen
    tiled = max(plan, local.peak) + 2 * kept + seen
    for name, make, less, bytes_less in (
        ("18", resnet18, 0.91, 0.76),
        ("34", resnet34, 0.955, 0.84),
        ("50", resnet50, 0.96, 0.94),
    ):
        other = cost(make(num_classes=2), 1, 3, *PLANE)
        than = (work, SLICES * other.work)
        against = f"ResNet-{name} per slice, {SLICES} x {PLANE[0]} x {PLANE[1]}"
        made.append(Line("3D-GMIC", against, *than, plain, SLICES * other.held, (less, bytes_less)))
        made.append(Line("3D-GMIC, slice by slice", against, *than, sliced, SLICES * other.held, (less, None)))
        made.append(Line("3D-GMIC, streamed", against, *than, tiled, SLICES * other.held, (less, 0.97)))
    flat = GMIC()
    trunk, local = cost(flat.ds_net, 1, 1, *IMAGE), cost(flat.dn_resnet, flat.crops, 3, 256, 256)
    other = cost(resnet34(num_classes=2), 1, 3, *IMAGE)
    against = f"ResNet-34, {IMAGE[0]} x {IMAGE[1]}"
    than = (trunk.work + local.work, other.work)
    made.append(Line("GMIC", against, *than, trunk.held + local.peak, other.peak, (None, 0.7843)))
    plan = streamed(GMIC().ds_net, 1, 1, *IMAGE, memory=memory)
    beside = 2 * 256 * 46 * 30 * 4 + 4 * flat.crops * 256 * 256 * 4  # the map and its gradient; the crops
    closer = streamed(GMIC().dn_resnet, flat.crops, 3, 256, 256, memory=LOCAL)
    for name, bytes_, bar in (
        ("GMIC, streamed", plan + local.peak, None),
        ("GMIC, streamed, `recompute=True`", max(plan, local.peak), None),
        ("GMIC, `recompute=True`, trunk and local network streamed", max(plan, closer), 0.95),
    ):
        made.append(Line(name, against, *than, bytes_ + beside, other.peak, (None, bar)))
    fine = cost(GLAM().detection_network, 1, 3, *CROP)
    cheap = cost(GLAM(local=PyramidLocal()).detection_network, 1, 3, *CROP)
    against = f"the published one, a crop of {CROP[0]} x {CROP[1]}"
    than = (cheap.work, fine.work)
    made.append(Line("GLAM's local network with a pyramid", against, *than, cheap.peak, fine.peak, (0.75, None)))
    return made


def table(memory: str) -> str:
    """What the command prints."""
    head = "| network | against | GMAC | its GMAC | less computation | live bytes | its bytes | less memory |"
    return "\n".join([head, "|---" * 8 + "|", *map(str, lines(memory))])


def main() -> None:
    """The table, and with --pages into README.md beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", default="160MiB", help="the budget of a streamed trunk (%(default)s)")
    parser.add_argument("--pages", action="store_true", help="put the table on the page")
    options = parser.parse_args()
    text = table(options.memory)
    print(text)
    if options.pages:
        fill(Path(__file__).parent / "README.md", "gmic-cost", text)


if __name__ == "__main__":
    main()
