"""How to train: the numbers, and what follows from them alone."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler, OneCycleLR

__all__ = ["Recipe"]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Recipe:
    """How to train: AdamW, clipped gradients, and the numbers below.

    Attributes:
        epochs: passes over the images.
        batch: images that go through the network together; they must be tensors of one size, unless it is 1.
        accumulate: batches whose gradients are added for one step of the optimiser, on each process.
        lr: the rate at its height.
        schedule: onecycle, cosine or constant.
        weight_decay: of AdamW.
        clip: the largest norm of all gradients together.
        frozen_epochs: epochs at the start in which the trunk stays as it is, in eval mode.
        patience: epochs without a lower validation loss after which training ends; 0: never.
        precision: float32, bf16 or fp16.
        flips, jitter: whether images are turned and reflected, how far gain and offset of a channel move.
        seed: of order, turns and jitter.
    """

    epochs: int
    batch: int = 1
    accumulate: int = 1
    lr: float = 3e-4
    schedule: str = "onecycle"
    weight_decay: float = 1e-4
    clip: float = 1.0
    frozen_epochs: int = 0
    patience: int = 0
    precision: str = "float32"
    flips: bool = True
    jitter: float = 0.0
    seed: int = 0

    def rates(self, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
        """The schedule of an optimiser over so many steps."""
        if self.schedule == "onecycle":
            return OneCycleLR(optimizer, self.lr, total_steps=steps)
        if self.schedule == "cosine":
            return CosineAnnealingLR(optimizer, steps)
        return ConstantLR(optimizer, factor=1.0)

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """The block in which the network runs on a device, at the precision."""
        dtype = _DTYPES.get(self.precision)
        return nullcontext() if dtype is None else torch.autocast(device.type, dtype)
