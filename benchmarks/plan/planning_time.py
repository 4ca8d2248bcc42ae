"""How long planning takes: `python -m benchmarks.plan.planning_time` prints a table of README.md beside this file.

Processor time of one process, so that a busy machine does not count. Capture is torch.export's own time for the most
part; the plan is searched for at a share of plain PyTorch's bytes; the table is what `print(plan)` makes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from benchmarks.convnext import convnext_tiny
from benchmarks.measure import machine
from benchmarks.pages import fill
from streamingcnn.capture import capture
from streamingcnn.check import plain_bytes
from streamingcnn.memory import format_bytes
from streamingcnn.models import UNet3D, resnet50
from streamingcnn.plan.plan import Plan, make_plan
from streamingcnn.plan.search import BudgetError

#: What issue and README promise, for the search alone.
BOUND = 3.0


class Case(NamedTuple):
    """A network, and the size that it is planned for."""

    title: str
    make: Callable[[], nn.Module]
    size: tuple[int, ...]


def densenet121() -> nn.Module:
    """MONAI's, in 2-D."""
    from monai.networks.nets.densenet import DenseNet121

    made: nn.Module = DenseNet121(spatial_dims=2, in_channels=3, out_channels=2)
    return made


CASES = {
    "resnet50": Case("ResNet-50 trunk", resnet50, (1, 3, 2048, 2048)),
    "convnext": Case("ConvNeXt-T trunk", convnext_tiny, (1, 3, 2048, 2048)),
    "densenet": Case("MONAI DenseNet-121", densenet121, (1, 3, 2048, 2048)),
    "unet3d": Case("3-D U-Net, 4 levels, 32 filters", lambda: UNet3D(1, 3, levels=4, filters=32), (1, 1, *[512] * 3)),
}


def measure(case: Case, shares: Sequence[float]) -> Iterator[list[str]]:
    """One row per budget: the network at its size, and the seconds of each part."""
    module = case.make().eval()
    plain = plain_bytes(module, case.size)
    image = torch.empty(case.size, device="meta")
    capture(module, (image,), {})  # the first one imports and compiles what all later ones use
    start = time.process_time()
    graph = capture(module, (image,), {})
    captured = time.process_time() - start
    size = " x ".join(map(str, case.size[1:]))
    for share in shares:
        marks = [time.process_time()]
        plan: Plan | None = None
        try:
            plan = make_plan(graph, memory=int(share * plain))
            stages = str(len(plan.stages))
        except BudgetError as error:
            stages = f"none: {format_bytes(error.smallest)} at least"
        marks.append(time.process_time())
        str(plan)
        marks.append(time.process_time())
        planned, printed = (after - before for before, after in pairwise(marks))
        verdict = "met" if planned < BOUND else "missed"
        cells = [case.title, size, f"{format_bytes(share * plain)} ({share:.0%} of plain)", stages]
        yield [*cells, f"{captured:.2f} s", f"{planned:.2f} s", f"{BOUND:.0f} s", verdict, f"{printed:.2f} s"]


def main() -> None:
    """Measure the networks and print a row for each budget."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES), help="networks to plan")
    parser.add_argument(
        "--share", nargs="+", type=float, default=[0.6, 0.35, 0.2, 0.05], help="budgets, of plain's bytes (%(default)s)"
    )
    parser.add_argument("--pages", action="store_true", help="put the table on the page")
    options = parser.parse_args()
    columns = ["network", "input", "budget", "stages", "capture", "plan", "bound", "", "table"]
    lines = [columns, ["---"] * len(columns)]
    lines += [cells for name in options.only for cells in measure(CASES[name], options.share)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    said = f"{machine(torch.get_num_threads())}; processor time."
    print(f"{table}\n\n{said}")
    if options.pages:
        fill(Path(__file__).parent / "README.md", "plan-time", f"{table}\n\n{said}")


if __name__ == "__main__":
    main()
