"""Segment a volume that is too large for plain PyTorch: a streamed 3-D U-Net takes a few training steps.

    python examples/wrap_unet3d.py                      a 64^3 volume, seconds on one core
    python examples/wrap_unet3d.py --size 128           what the benchmark measures
    python examples/wrap_unet3d.py --size 256 --tile 64 past what plain PyTorch fits in 8 GiB

The volume is made up: bright balls in noise, and the label says where the balls are. What to take from here
is how little changes: the network is an ordinary module, wrapped in one line.
"""

import argparse
import time

import torch
from torch import Tensor

from streamingcnn import StreamingModule
from streamingcnn.memory import LiveBytes, format_bytes
from streamingcnn.models import UNet3D


def balls(size: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """A volume (1, 1, D, H, W) with balls in noise, and the class of each voxel (1, D, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.zeros(size, size, size, dtype=torch.long)
    axis = torch.arange(size)
    for _ in range(count):
        z, y, x = torch.randint(0, size, (3,), generator=generator)
        radius = torch.randint(size // 16, size // 6, (1,), generator=generator)
        away = (axis[:, None, None] - z) ** 2 + (axis[None, :, None] - y) ** 2 + (axis[None, None, :] - x) ** 2
        label[away <= radius**2] = 1
    volume = label + 0.8 * torch.randn(size, size, size, generator=generator)
    return volume[None, None], label[None]


def main() -> None:
    """Trains for `--steps` steps and says what they cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, help="voxels along each axis, a multiple of 8 (%(default)s)")
    parser.add_argument("--tile", type=int, default=32, help="voxels that a tile covers per axis (%(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="training steps (%(default)s)")
    parser.add_argument("--filters", type=int, default=8, help="channels of the first level (%(default)s)")
    parser.add_argument("--plain", action="store_true", help="train plainly, to compare")
    options = parser.parse_args()

    torch.manual_seed(0)
    network = UNet3D(in_channels=1, out_channels=2, levels=4, filters=options.filters, norm="instance")
    model = network if options.plain else StreamingModule(network, tile=options.tile)
    volume, label = balls(options.size, count=8, seed=0)
    if isinstance(model, StreamingModule):
        print(model.plan(volume))

    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for step in range(options.steps):
        start = time.perf_counter()
        with LiveBytes() as live:
            logits = model(volume)
            loss = torch.nn.functional.cross_entropy(logits, label)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        seconds = time.perf_counter() - start
        print(f"step {step + 1}: loss {loss.item():.4f}, {seconds:.1f} s, peak {format_bytes(live.peak)}")


if __name__ == "__main__":
    main()
