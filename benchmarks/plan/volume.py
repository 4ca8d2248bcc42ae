"""A U-Net on a volume of 512^3, loss and all: `python -m benchmarks.plan.volume`.

The network of the Mesh-TensorFlow paper (Hou et al. 2019), which spread it over hundreds of TPU cores: 4 levels of 32,
64, 128 and 256 filters, two 3x3x3 convolutions with batch norm (frozen here) and leaky ReLU each; the loss, 0.2 Dice
and 0.8 weighted cross-entropy, is part of the streamed module. About 115 TMAC: half an hour to an hour on two cores.

Under torchrun every rank has its own slab of the volume. `--save FILE` keeps the loss and the gradients, and
`--against FILE` says how far from those others they are.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.measure import machine
from benchmarks.pages import fill
from benchmarks.plan.long import HEAD, logged, long_step
from streamingcnn import Partition, StreamingModule
from streamingcnn.memory import format_bytes
from streamingcnn.models import DiceCrossEntropy, UNet3D

_FOLDER = Path(__file__).parent
#: No rank waits longer for another: one may still run its tiles of a stage when the other has ended.
_PATIENCE = 1800.0


def main() -> None:
    """One step, its log beside this file, and a row for the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=512, help="the volume's side (%(default)s)")
    parser.add_argument("--filters", type=int, default=32, help="filters of the first level (%(default)s)")
    parser.add_argument("--memory", default="12GiB", help="the budget, of each rank (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each rank (%(default)s)")
    parser.add_argument("--log", type=Path, help="the log (volume-SIZE.log beside this file)")
    parser.add_argument("--save", type=Path, help="where loss and gradients are kept")
    parser.add_argument("--against", type=Path, help="loss and gradients of another run, to compare with")
    parser.add_argument("--pages", action="store_true", help="put the row on the page")
    options = parser.parse_args()
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    name = f"volume-{options.size}" + (f"-rank{rank}" if ranks > 1 else "")
    logged(options.log or _FOLDER / f"{name}.log", options.threads)
    if ranks > 1:
        dist.init_process_group("gloo")
    partition = Partition(dims=("D",), timeout=_PATIENCE) if ranks > 1 else None

    torch.manual_seed(0)
    loss = DiceCrossEntropy(weight=(0.2, 1.0, 1.0))
    model = UNet3D(1, 3, levels=4, filters=options.filters, norm="batch", loss=loss).eval()
    model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    net = StreamingModule(model, memory=options.memory, partition=partition)
    step = long_step(net, *_given(options.size, partition), memory=options.memory)
    said = [f"{machine(options.threads)}; one step"]
    if ranks > 1:
        together = torch.tensor([step.rss_bytes, step.live_bytes])
        dist.all_reduce(together)
        processes, live = map(format_bytes, together.tolist())
        said.append(f"of {ranks} ranks, this is the first; all together: processes {processes}, live {live}")
    found = {"loss": step.result}
    found |= {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
    if options.against is not None:
        said.append(_compared(found, torch.load(options.against)))
    text = f"{HEAD}\n| 3-D U-Net with loss, {options.filters} filters, {options.size}^3 | {step.row} |"
    text += f"\n\n{'; '.join(said)}."
    if rank == 0:
        print(text)
        if options.save is not None:
            torch.save(found, options.save)
        if options.pages:
            fill(_FOLDER / "README.md", "plan-volume" + (f"-ranks-{ranks}" if ranks > 1 else ""), text)
    if ranks > 1:
        dist.barrier()
        dist.destroy_process_group()


def _given(size: int, partition: Partition | None) -> tuple[Tensor, ...]:
    """The volume and its classes at random; of a partition, the own part."""
    generator = torch.Generator().manual_seed(1)
    shape = (1, 1, size, size, size)
    volume = torch.randn(shape, generator=generator)
    target = torch.randint(3, (1, *shape[2:]), generator=generator)
    if partition is None:
        return volume, target
    (low, high), *_ = partition.input_box(shape)
    own = volume[:, :, low:high].clone(), target[:, low:high].clone()
    return tuple(partition.part(tensor, shape) for tensor in own)  # type: ignore[misc]


def _compared(found: dict[str, Tensor], other: dict[str, Tensor]) -> str:
    """How far the loss and the gradients are from others, relative, gradients in norm."""

    def apart(name: str) -> float:
        return float((found[name] - other[name]).norm() / other[name].norm())

    names = [name for name in other if name != "loss"]
    worst = max(names, key=apart)
    every = [torch.cat([tensors[name].flatten() for name in names]) for tensors in (found, other)]
    whole = float((every[0] - every[1]).norm() / every[1].norm())
    return f"against one: loss {apart('loss'):.1e}, gradients {whole:.1e}, the worst {apart(worst):.1e} ({worst})"


if __name__ == "__main__":
    main()
