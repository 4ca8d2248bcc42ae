"""One whole streamed training step of GMIC and of 3D-GMIC, with numbers, measured: `python -m benchmarks.gmic.real`.

Live bytes are all tensors that live at the same time during the step, beside the image, the parameters and their
gradients. What was predicted is the plan of the trunk or what the local network takes, whichever is more, the trunk's
maps with their gradients, and the crops: what the table of `python -m benchmarks.gmic` has. As there, GMIC's local
network is streamed as well, and 3D-GMIC's, which sees twelve crops at once, is not.

    python -m benchmarks.gmic.real                                          # a while
    python -m benchmarks.gmic.real --plane 529x335                          # volumes of a sixteenth of the pixels

Volumes of 2 slices and of 70 are measured, whose bytes differ by their maps alone.
"""

from __future__ import annotations

import argparse
import resource
import time
from copy import deepcopy
from pathlib import Path

import torch

from benchmarks.gmic.__main__ import IMAGE, LOCAL, PLANE, SLICES, cost
from benchmarks.pages import fill
from streamingcnn import StreamingModule, stream
from streamingcnn.memory import LiveBytes, format_bytes
from streamingcnn.models import GMIC, GMIC3D
from streamingcnn.models.gmic import GMICLoss

HEAD = "| a real step | seconds | live bytes | predicted | process |\n|---|---|---|---|---|"


def step(name: str, model: GMIC | GMIC3D, shape: tuple[int, ...], memory: str) -> str:
    """A line of the table: forward, loss and backward of one image or volume."""
    crops = (model.crops, 3, *model.crop_shape)
    closer = cost(deepcopy(model.dn_resnet), *crops).peak
    stream(model.train(), "ds_net", memory=memory)
    if isinstance(model, GMIC):
        local = stream(model, "dn_resnet", memory=LOCAL).dn_resnet
        assert isinstance(local, StreamingModule)
        closer = local.plan(crops).peak_bytes
    trunk = model.ds_net
    assert isinstance(trunk, StreamingModule)
    plan = trunk.plan((1, 1, *shape[-2:])).peak_bytes
    torch.manual_seed(0)
    x, labels = torch.rand(shape), torch.tensor([[0.0, 1.0]])
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    began = time.perf_counter()
    with LiveBytes() as live:
        result = model(x)
        GMICLoss(0.1, "mean")(result, labels).backward()
    seconds = time.perf_counter() - began
    cells = result.saliency[0, 0].numel()
    predicted = max(plan, closer) + 2 * cells * 256 * 4 + 4 * result.crops.nbytes
    size = " x ".join(map(str, shape[2:]))
    return (
        f"| {name}, {size} | {seconds:.0f} | {format_bytes(live.peak)} | {format_bytes(predicted)} | "
        f"{format_bytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)} |"
    )


def main() -> None:
    """The table, and with --pages into README.md beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", default="160MiB", help="the budget of a streamed trunk (%(default)s)")
    parser.add_argument("--only", choices=("gmic", "gmic3d"), help="one of the two")
    parser.add_argument("--slices", type=int, nargs="+", default=[2, SLICES], help="of the volumes (%(default)s)")
    parser.add_argument("--plane", default=f"{PLANE[0]}x{PLANE[1]}", help="height x width of a slice (%(default)s)")
    parser.add_argument("--pages", action="store_true", help="put the table on the page")
    options = parser.parse_args()
    height, width = (int(size) for size in options.plane.split("x"))
    made = [HEAD]
    if options.only != "gmic3d":
        made.append(step("GMIC, `recompute=True`", GMIC(recompute=True), (1, 1, *IMAGE), options.memory))
        print(made[-1], flush=True)
    for slices in () if options.only == "gmic" else options.slices:
        made.append(step("3D-GMIC", GMIC3D(), (1, 1, slices, height, width), options.memory))
        print(made[-1], flush=True)
    if options.pages:
        fill(Path(__file__).parent / "README.md", "gmic-real", "\n".join(made))


if __name__ == "__main__":
    main()
