"""Segment volumes with a 3-D U-Net, alone or over several processes: the same program.

    python examples/volume_segmentation/train.py
    OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 examples/volume_segmentation/train.py
    ... --data DIR            the MNI152 template and its tissues, in place of volumes that are made here

Each process holds its part of every map, reads its part of every volume, and has the gradients that one process would
have. The loss is inside the streamed module, so the logits are never there as a whole. Started again, it goes on after
the last checkpoint, with any number of processes.
"""

import argparse
import math
import os
import time
from pathlib import Path

import torch
from torch import Tensor
from volumes import BRAIN_CLASSES, Volume, brain, made, write_nifti

from streamingcnn import Partition, StreamingModule
from streamingcnn.distributed import gathered, load_checkpoint, save_checkpoint, summed
from streamingcnn.models import DiceCrossEntropy, UNet3D
from streamingcnn.synthetic.abdomen import CLASSES
from streamingcnn.training.ranks import Ranks, joined


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/volumes"), help="folder of the run (%(default)s)")
    parser.add_argument("--data", type=Path, help="folder with the three MNI152 maps, as in the nilearn package")
    parser.add_argument("--size", default="64x96x96", help="of a made volume, DxHxW (%(default)s)")
    parser.add_argument("--volumes", type=int, default=12, help="made to train on; 3 more to test (%(default)s)")
    parser.add_argument("--steps", type=int, default=240, help="of one volume each (%(default)s)")
    parser.add_argument("--levels", type=int, default=3, help="resolutions of the U-Net (%(default)s)")
    parser.add_argument("--filters", type=int, default=8, help="channels of its first level (%(default)s)")
    parser.add_argument("--dice", type=float, default=0.2, help="share of Dice in the loss (%(default)s)")
    parser.add_argument("--weights", help="of the classes in the cross-entropy (1,8,16; of the brain's: 1,1,1)")
    parser.add_argument("--lr", type=float, default=3e-3, help="learning rate at its height (%(default)s)")
    parser.add_argument("--memory", default="auto", help="what a step may take on each process (%(default)s)")
    parser.add_argument("--every", type=int, default=20, help="steps between checkpoints (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and order (%(default)s)")
    return parser.parse_args()


def train(given: argparse.Namespace, ranks: Ranks, device: torch.device) -> None:
    """Train, or go on; then say how well the test volumes are segmented, and write what they are segmented into."""

    def say(line: str) -> None:
        if ranks.first:
            print(line, flush=True)

    classes = CLASSES if given.data is None else BRAIN_CLASSES
    to_train, to_test = volumes(given, ranks)
    torch.manual_seed(given.seed)
    weights = given.weights or ("1,8,16" if given.data is None else "1,1,1")
    loss = DiceCrossEntropy([float(weight) for weight in weights.split(",")], dice=given.dice)
    # Of the brain there is one volume to learn from, and by its own statistics the other half would look like another
    # tissue: it is tested with those of the training, which batch norm keeps.
    norm = "instance" if given.data is None else "batch"
    network = UNet3D(1, len(classes), levels=given.levels, filters=given.filters, norm=norm, loss=loss)
    partition = Partition(dims=("D",), gather="none") if ranks.count > 1 else None
    net = StreamingModule(network.to(device), memory=given.memory, partition=partition)
    optimizer = torch.optim.AdamW(net.parameters(), given.lr)
    start = load_checkpoint(given.out / "checkpoints", net, optimizer)
    say(f"{ranks.count} process(es); {len(to_train)} volume(s) to train on, {len(to_test)} to test; after step {start}")
    for step in range(start, given.steps):
        began = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = given.lr * min(1, (step + 1) / 10) * (1 + math.cos(math.pi * step / given.steps)) / 2
        image, label = own(to_train[order(len(to_train), step, given.seed)], partition, device)
        value = net(image, label)
        value.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        say(f"step {step + 1}/{given.steps}: loss {value.item():.4f}, {time.perf_counter() - began:.2f} s")
        if (step + 1) % given.every == 0 or step + 1 == given.steps:
            save_checkpoint(given.out / "checkpoints", net, optimizer, step + 1)
    found = dice(net, to_test, partition, device, given.out / "predictions", len(classes), ranks)
    on = "test volumes" if given.data is None else "voxels of the back half of one averaged brain"
    said = ", ".join(f"{name} {share:.3f}" for name, share in zip(classes[1:], found[1:].tolist(), strict=True))
    say(f"Dice ({on}): {said}")


def volumes(given: argparse.Namespace, ranks: Ranks) -> tuple[list[Volume], list[Volume]]:
    """What to train on and what to test on."""
    if given.data is not None:
        front, back = brain(given.data, 2 ** (given.levels - 1))
        return [front], [back]
    depth, height, width = map(int, given.size.split("x"))
    seeds = range(given.volumes + 3)
    if ranks.first:
        made(given.out / "volumes", seeds, (depth, height, width), write=True)
    ranks.gathered(None)  # nobody reads before all is written
    found = made(given.out / "volumes", seeds, (depth, height, width), write=False)
    return found[: given.volumes], found[given.volumes :]


def order(count: int, step: int, seed: int) -> int:
    """Which volume a step is about: every one once in each round, in an order of the round's own."""
    drawn = torch.Generator().manual_seed(1000 * seed + step // count)
    return int(torch.randperm(count, generator=drawn)[step % count])


def own(volume: Volume, partition: Partition | None, device: torch.device) -> tuple:
    """The image and the classes that this process gives to the network: all of them, or its part."""
    if partition is None:
        image, label = volume.read(tuple((0, extent) for extent in volume.shape[2:]))
        return image.to(device), label.to(device)
    image, label = volume.read(partition.input_box(volume.shape))
    return partition.part(image.to(device), volume.shape), partition.part(label.to(device), volume.shape)


@torch.no_grad()
def dice(
    net: StreamingModule,
    to_test: list[Volume],
    partition: Partition | None,
    device: torch.device,
    folder: Path,
    classes: int,
    ranks: Ranks,
) -> Tensor:
    """Dice of each class over all voxels of the test volumes; their predictions go to `folder`."""
    net.eval()
    folder.mkdir(parents=True, exist_ok=True)
    counts = torch.zeros(classes, classes, dtype=torch.int64, device=device)
    for volume in to_test:
        image, label = own(volume, partition, device)
        found = net(image).argmax(1, keepdim=True)
        truth = label if partition is None else label.tensor
        counts += torch.bincount(classes * truth.flatten() + found.flatten(), minlength=classes**2).view_as(counts)
        if partition is not None:
            found = gathered(found.to(torch.uint8), volume.shape, partition)
        if ranks.first:
            write_nifti(folder / f"{volume.name}.nii.gz", found[0, 0].to("cpu", torch.uint8).numpy(), volume.affine)
    if partition is not None:
        counts = summed(counts, partition)
    return 2 * counts.diagonal() / (counts.sum(0) + counts.sum(1)).clamp(min=1)


def own_device() -> torch.device:
    """The GPU of this process, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    found = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(found)
    return found


if __name__ == "__main__":
    given, here = options(), own_device()
    with joined(here) as ranks:
        train(given, ranks, here)
