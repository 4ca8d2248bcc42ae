"""What would plain PyTorch need for this step, and at which size does it fit?

Whoever streams an image does so because plain PyTorch cannot hold it, so its bytes cannot be measured by
running it. But shapes alone say what is kept: the step runs on the meta device, where every tensor has a
shape and no numbers, under the same counter that measures real runs. A ResNet at 65536x65536 takes a second.

Inputs are given as tensors or as shapes (N, C, *space), which stand for normal random numbers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from streamingcnn.memory import format_bytes

__all__ = ["fit", "free_bytes", "materialise", "shapes_of"]

#: The positional and the named inputs of a module; any pytree, with shapes or tensors at its leaves.
Inputs: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]


def is_shape(leaf: Any) -> bool:
    """Say whether a leaf is the shape of an image: (N, C, *space), at least three plain integers.

    >>> is_shape((1, 3, 512, 512)), is_shape((3, 3)), is_shape([1, 3, 512])
    (True, False, False)
    """
    return isinstance(leaf, tuple) and len(leaf) > 2 and all(type(size) is int for size in leaf)


def shapes_of(inputs: Inputs) -> Inputs:
    """Put a shape in the place of each floating-point image, and leave the rest as it is.

    >>> shapes_of(((torch.rand(1, 3, 8, 8), 7), {}))
    (((1, 3, 8, 8), 7), {})
    """

    def shape(leaf: Any) -> Any:
        image = isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() > 2
        return tuple(leaf.shape) if image else leaf

    replaced: Inputs = tree_map(shape, inputs)
    return replaced


def materialise(inputs: Inputs, *, dtype: torch.dtype | None = None, device: torch.device, seed: int = 0) -> Inputs:
    """Put normal random numbers of `seed` in the place of each shape, and cast floating-point tensors.

    >>> (image, scale), _ = materialise((((1, 3, 8, 8), 2), {}), device=torch.device("cpu"))
    >>> image.shape, scale
    (torch.Size([1, 3, 8, 8]), 2)

    On the meta device, which has no numbers, tensors are empty.
    """
    meta = device.type == "meta"
    generator = None if meta else torch.Generator(device).manual_seed(seed)

    def make(leaf: Any) -> Any:
        if is_shape(leaf):
            return torch.randn(leaf, dtype=dtype, device=device, generator=generator)
        if isinstance(leaf, Tensor):
            return leaf.detach().to(device, dtype if leaf.is_floating_point() else None)
        return leaf

    made: Inputs = tree_map(make, inputs, is_leaf=is_shape)
    return made


def fit(inputs: Inputs, limit: int, bytes_of: Callable[[Inputs], int]) -> tuple[Inputs, str | None]:
    """Halve the images until their step fits into `limit` bytes; return them, and a line that says so.

    >>> def bytes_of(inputs):
    ...     return 4 * inputs[0][0][2] ** 2
    >>> fit((((1, 3, 64, 64),), {}), 5000, bytes_of)
    ((((1, 3, 32, 32),), {}), 'asked for images of 64x64, too large ...: compared at 32x32')

    Tensors are cropped. Raises ValueError where the network does not take the smaller image.
    """
    asked, needed = inputs, bytes_of(inputs)
    asked_bytes = needed
    while needed > limit:
        space = _space(inputs)
        halved = tuple(size // 2 for size in space)
        smaller = _crop(inputs, space, halved)
        try:
            needed = bytes_of(smaller)
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"plain PyTorch needs {format_bytes(needed)} for images of {_by(space)}, "
                f"{format_bytes(limit)} are allowed, and the network does not take images of {_by(halved)} "
                f"({first_line(error)}); give a size that plain PyTorch can run"
            ) from None
        inputs = smaller
    if inputs is asked:
        return inputs, None
    return inputs, (
        f"asked for images of {_by(_space(asked))}, too large for plain PyTorch here "
        f"({format_bytes(asked_bytes)}; {format_bytes(limit)} allowed): compared at {_by(_space(inputs))}"
    )


def free_bytes(device: torch.device) -> int:
    """Say how many bytes are free on a device.

    >>> free_bytes(torch.device("cpu")) > 0
    True
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # not Linux, which does not tell what is free: half of what is there
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def first_line(error: BaseException) -> str:
    """Give the first line of an error's message: torch's own often has dozens.

    >>> first_line(RuntimeError("too small\\nat line 5"))
    'too small'
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _space(inputs: Inputs) -> tuple[int, ...]:
    for leaf in tree_leaves(inputs, is_leaf=is_shape):
        shape = tuple(leaf.shape) if isinstance(leaf, Tensor) else leaf
        if is_shape(shape):
            return tuple(shape[2:])
    raise ValueError("no input is an image (N, C, *space): there is nothing to stream")


def _crop(inputs: Inputs, space: tuple[int, ...], smaller: tuple[int, ...]) -> Inputs:
    def crop(leaf: Any) -> Any:
        if is_shape(leaf) and leaf[2:] == space:
            return (*leaf[:2], *smaller)
        for leading in (2, 1):  # (batch, channels, *space) or, as maps of classes are, (batch, *space)
            if isinstance(leaf, Tensor) and tuple(leaf.shape[leading:]) == space:
                return leaf[(*[slice(None)] * leading, *map(slice, smaller))]
        return leaf

    cropped: Inputs = tree_map(crop, inputs, is_leaf=is_shape)
    return cropped


def _by(space: Sequence[int]) -> str:
    return "x".join(map(str, space))
