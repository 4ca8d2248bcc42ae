"""Shapes of results that a rehearsal finds by itself are those that PyTorch finds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from streamingcnn.plan.meta import _SHAPES

ATEN = torch.ops.aten
FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}


def seen(results: Any) -> list[Any]:
    several = results if isinstance(results, (tuple, list)) else [results]
    return [None if one is None else (tuple(one.shape), one.stride(), one.dtype) for one in several]


def views(tensor: Tensor) -> list[Tensor]:
    return [tensor, tensor[..., 1:4], tensor[:, 2:5], tensor.contiguous()]


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_shapes_of_what_pytorch_is_slow_at(dims: int, dtype: torch.dtype) -> None:
    whole = torch.empty(2, 8, *(9, 8, 6)[:dims], device="meta", dtype=dtype).to(memory_format=FORMATS[dims])
    for read in views(whole):
        side = torch.empty(read.shape[1], device="meta", dtype=torch.promote_types(dtype, torch.float32))
        turned = read.transpose(0, 1).contiguous().transpose(0, 1)
        for gradient in (torch.empty_like(read), read, read.contiguous(), turned):
            for training in (False, True):
                given: dict[Any, tuple[Any, ...]] = {
                    ATEN.threshold_backward.default: (gradient, read, 0),
                    ATEN.leaky_relu_backward.default: (gradient, read, 0.1, True),
                    ATEN.leaky_relu_.default: (read, 0.1),
                    ATEN.relu_.default: (read,),
                    ATEN.native_batch_norm.default: (read, side, side, side, side, training, 0.1, 1e-5),
                    ATEN.native_batch_norm_backward.default: (
                        *(gradient, read, side, side, side, side, side, training, 1e-5),
                        [True, training, training],
                    ),
                }
                assert given.keys() == _SHAPES.keys()
                for operation, arguments in given.items():
                    assert seen(_SHAPES[operation](*arguments)) == seen(operation(*arguments)), operation


def test_a_batch_norm_whose_input_needs_no_gradient_makes_none() -> None:
    # PyTorch's shapes say that it does; its kernel does not.
    backward = ATEN.native_batch_norm_backward.default
    arguments = (*(torch.ones(2, 4, 5, 5),) * 2, *(torch.ones(4),) * 5, False, 1e-5, [False, True, True])
    assert seen(_SHAPES[backward](*arguments)) == seen(backward(*arguments))
