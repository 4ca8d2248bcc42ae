"""What the tasks have in common: what rank 0 prints of a case, and how ranks compare."""

from __future__ import annotations

from types import EllipsisType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from streamingcnn import StreamingModule
from streamingcnn.boxes import Box
from streamingcnn.check import compare

#: A line of JSON: the name of the case, and its error or whatever else the test asks for.
Case = dict[str, Any]


def worst(plain: nn.Module, net: StreamingModule, image: Any, **more: Any) -> float:
    """The largest error of result, gradients and buffers, on any rank."""
    errors = torch.tensor([max(row.error for row in compare(plain, net, image, **more))], dtype=torch.float64)
    dist.all_reduce(errors, dist.ReduceOp.MAX)
    return float(errors)


def cut(tensor: Tensor, box: Box) -> Tensor:
    place: tuple[slice | EllipsisType, ...] = (..., *(slice(low, high) for low, high in box))
    return tensor[place]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    """Whether these are the same numbers, to the bit."""
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
