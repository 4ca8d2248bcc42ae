"""In which order slides are seen: mixed by label, and known from seed and epoch alone."""

from __future__ import annotations

import random

import torch
from torch import Tensor

__all__ = ["mixed", "order_of"]


def order_of(labels: Tensor, seed: int, epoch: int) -> list[int]:
    """The order of an epoch, as indices; the same for the same labels, (N,) or several to an image, seed and epoch.

    >>> order_of(torch.tensor([0.0, 0.0, 1.0, 1.0]), 0, 1) == order_of(torch.tensor([0.0, 0.0, 1.0, 1.0]), 0, 1)
    True

    Images with several labels are mixed by all of them together; one that is not known (NaN) is a kind like others.
    """
    if labels.dim() > 1:
        labels = labels.flatten(1).nan_to_num(nan=-1.0).unique(dim=0, return_inverse=True)[1]
    generator = torch.Generator().manual_seed(random.Random(f"order {seed} {epoch}").getrandbits(63))
    return [int(k) for k in mixed(labels, generator)]


def mixed(labels: Tensor, generator: torch.Generator) -> Tensor:
    """A random order in which every stretch holds each label in its share of the whole, as indices.

    A batch of two slides with the same label says mostly "more of this label" and little of what tells the two
    apart. So each slide gets a place within its own label, between 0 and 1, and all are sorted by it::

        label 0, shuffled     5 .......... 2 .......... 0        1/6, 3/6, 5/6
        label 1, shuffled     1 .......... 4 .......... 3        1/6, 3/6, 5/6
        order                 5  1         2  4         0  3

    Where nearly every label is another, as in a regression, this is any order.
    """
    shuffled = torch.randperm(len(labels), generator=generator)
    kinds = labels.unique()
    if len(kinds) > len(labels) // 2:
        return shuffled
    place = torch.empty(len(labels))
    for label in kinds:
        members = shuffled[labels[shuffled] == label]
        place[members] = (torch.arange(len(members)) + 0.5) / len(members)
    return shuffled[place[shuffled].argsort(stable=True)]
