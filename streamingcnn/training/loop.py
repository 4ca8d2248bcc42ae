"""The training loop: read, step, say how it goes.

It knows nothing of tiles. A streamed network is an ordinary module, so this loop trains a plain one just as
well.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from streamingcnn.memory import format_bytes
from streamingcnn.module import StreamingModule
from streamingcnn.slides.stain import standardised

__all__ = ["Epoch", "fit"]


@dataclass(frozen=True)
class Epoch:
    """One pass over the slides: its number from 1, the mean loss of its steps, its seconds."""

    number: int
    loss: float
    seconds: float


def fit(
    net: nn.Module,
    images: Sequence[Tensor],
    labels: Sequence[int],
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    epochs: int,
    batch: int = 2,
    lr: float = 3e-3,
    weight_decay: float = 1e-4,
    clip: float = 1.0,
    seed: int = 0,
    progress: bool = True,
) -> list[Epoch]:
    """Train a network on whole slides: AdamW, one-cycle, clipped gradients, slides turned and reflected.

    Example::

        history = fit(StreamingModule(trunk), images, labels, slide_loss, epochs=10)

    Args:
        net: any module, streamed or not; it is left in training mode.
        images: (3, height, width) uint8 each; of one size, unless ``batch`` is 1.
        labels: one number per image.
        loss: of the network's result and the labels (N,), a scalar.
        epochs: passes over the images.
        batch: images per step; the last, smaller batch of an epoch is left out.
        lr: the peak of the one-cycle schedule.
        clip: the largest norm of all gradients together.
        seed: of the order and the turns; the same seed gives the same run.
        progress: whether to show a bar with loss, tiles per second and the memory of the process.

    Raises:
        ValueError: images and labels differ in number or are fewer than a batch, or sizes differ in a batch.
        FloatingPointError: the loss became infinite or NaN; the message says where.
    """
    if len(images) != len(labels) or len(images) < batch:
        raise ValueError(
            f"{len(images)} images and {len(labels)} labels for batches of {batch}: there must be one label "
            f"per image, and at least one batch"
        )
    sizes = {tuple(image.shape[-2:]) for image in images} if batch > 1 else set()
    if len(sizes) > 1:
        raise ValueError(f"slides of {len(sizes)} sizes, such as {sorted(sizes)[:3]}, do not stack: use batch=1")
    device = next(net.parameters()).device
    steps = len(images) // batch
    optimizer = torch.optim.AdamW(net.parameters(), lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * steps)
    generator = torch.Generator().manual_seed(seed)
    targets = torch.tensor(labels, dtype=torch.float32)
    net.train()

    history: list[Epoch] = []
    with tqdm(total=epochs * steps, unit="step", disable=not progress, mininterval=1.0) as bar:
        for number in range(1, epochs + 1):
            start, total = time.perf_counter(), 0.0
            order = mixed(targets, generator)[: steps * batch]
            for chosen in order.view(steps, batch):
                step_start = time.perf_counter()
                pixels = turned(torch.stack([images[int(i)] for i in chosen]), generator)
                x = standardised(pixels.to(device))
                value = loss(net(x), targets[chosen].to(device))
                if not torch.isfinite(value):
                    raise FloatingPointError(
                        f"the loss became {value.item()} in epoch {number}; use a smaller rate than lr={lr}"
                    )
                optimizer.zero_grad()
                value.backward()
                nn.utils.clip_grad_norm_(net.parameters(), clip)
                optimizer.step()
                schedule.step()
                total += value.item()
                bar.set_description(f"epoch {number}/{epochs}", refresh=False)
                bar.set_postfix_str(_state(net, x, value.item(), time.perf_counter() - step_start), refresh=False)
                bar.update()
            history.append(Epoch(number, total / steps, time.perf_counter() - start))
    return history


def mixed(labels: Tensor, generator: torch.Generator) -> Tensor:
    """A random order in which every stretch holds each label in its share of the whole, as indices.

    A batch of two slides with the same label says mostly "more of this label" and little of what tells the two
    apart. So each slide gets a place within its own label, between 0 and 1, and all are sorted by it::

        label 0, shuffled     5 .......... 2 .......... 0        1/6, 3/6, 5/6
        label 1, shuffled     1 .......... 4 .......... 3        1/6, 3/6, 5/6
        order                 5  1         2  4         0  3
    """
    shuffled = torch.randperm(len(labels), generator=generator)
    place = torch.empty(len(labels))
    for label in labels.unique():
        members = shuffled[labels[shuffled] == label]
        place[members] = (torch.arange(len(members)) + 0.5) / len(members)
    return shuffled[place[shuffled].argsort(stable=True)]


def turned(images: Tensor, generator: torch.Generator) -> Tensor:
    """One of the eight turns and reflections of a batch, of square slides; others are reflected only."""
    turns, mirror = torch.randint(4, (2,), generator=generator).tolist()
    if images.shape[-1] != images.shape[-2]:
        turns -= turns % 2
    images = torch.rot90(images, turns, (-2, -1))
    return images.flip(-1) if mirror % 2 else images


def _state(net: nn.Module, x: Tensor, loss: float, seconds: float) -> str:
    if isinstance(net, StreamingModule):
        speed = f"{net.plan(x).tiles / seconds:.0f} tiles/s"  # the plan is remembered: this costs a look-up
    else:
        speed = f"{len(x) / seconds:.1f} slides/s"
    return f"loss {loss:.3f}, {speed}, {format_bytes(_memory(x.device))}"


def _memory(device: torch.device) -> int:
    """The most bytes held so far: by tensors on CUDA, by the whole process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
