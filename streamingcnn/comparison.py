"""Two modules, one step each, and how far apart everything is that the step leaves behind.

`torch.autograd.gradcheck` compares a gradient with finite differences, one scalar at a time: too slow for a
network and too coarse for our promise, which is that streaming gives *plain PyTorch's* gradient. So we run
one forward and backward of each module and compare tensor by tensor: outputs, input gradients, parameter
gradients, buffers.

    NOTE. The one error of this project.

        error(a, b) = |a - b| / max(|b|, 1e-6 x the largest norm of a parameter gradient)

    b is plain's tensor and |.| the Euclidean norm. Why the floor: the bias of a convolution in front of a
    train-mode normalisation has a true gradient of exactly 0. Both computations give rounding noise there,
    and noise over noise is an error near 1 that means nothing. The floor alone is not enough: a small
    gradient is a difference of large numbers (the scale of a layer in front of a batch norm is an example), and
    1e-6 x 1e-10, our bound, is half the last bit of the largest norm; plain itself is further off. So for a
    tensor below 1e-4 of the largest norm, a difference below 8 of its last bits (eps of b's dtype) counts as 0.
    In float64 a tensor below 512 of those bits is nothing but noise, of a sum over many pixels, and may differ by as
    many; in narrower numbers so many bits are no noise.
    Tests, `check` and the benchmarks all use this error, so their figures can be held against each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_unflatten

from streamingcnn.ops.noise import dropout_mask

__all__ = ["Row", "Step", "compare", "relative_errors", "rows_of", "run_step", "same_noise", "tensors_of"]

Kind = Literal["output", "input gradient", "parameter gradient", "buffer"]

#: What one forward and backward leaves behind: (kind, name) -> tensor. None: a gradient that never arrived.
Step: TypeAlias = dict[tuple[Kind, str], Tensor | None]

FLOOR = 1e-6
#: A tensor smaller than this share of the largest norm may differ by so many of its last bits.
SMALL, LAST_BITS = 1e-4, 8
#: A float64 tensor of no more than so many of its last bits is all noise, which grows with the root of the pixels.
NOISE_BITS = 512

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Row:
    """One tensor of the comparison: what it is, plain's norm of it, and the error of the streamed one."""

    kind: Kind
    name: str
    shape: tuple[int, ...]
    norm: float
    error: float

    def __str__(self) -> str:
        return self.kind if not self.name else f"{self.kind} {self.name}"


def relative_errors(
    streamed: Mapping[Key, Tensor | None], plain: Mapping[Key, Tensor | None], scale: float | None = None
) -> dict[Key, float]:
    """Give the project's error of every tensor in `streamed` against its namesake in `plain`.

    >>> plain = {"conv.weight": torch.tensor([3.0, 4.0]), "conv.bias": torch.tensor([0.0])}
    >>> streamed = {"conv.weight": torch.tensor([3.0, 4.5]), "conv.bias": torch.tensor([0.0])}
    >>> relative_errors(streamed, plain)
    {'conv.weight': 0.1, 'conv.bias': 0.0}

    The error is |a - b| / max(|b|, 1e-6 x scale), Euclidean norms over whole tensors, where `scale` is the
    largest norm of a parameter gradient; left out, it is the largest norm in `plain` (right where `plain`
    holds parameter gradients). None stands for a gradient of zero. A tensor of another shape, or NaN where
    plain has a number, has an infinite error. Raises ValueError when the names differ.
    """
    if streamed.keys() != plain.keys():
        only = streamed.keys() ^ plain.keys()
        raise ValueError(f"nothing to compare with: on one side only are {sorted(map(str, only))}")
    if scale is None:
        scale = max((_norm(tensor) for tensor in plain.values()), default=0.0)
    return {name: _error(streamed[name], plain[name], scale) for name in plain}


def run_step(
    module: nn.Module,
    *inputs: Any,
    seed: int = 0,
    input_gradients: bool = True,
    noise: AbstractContextManager[Any] | None = None,
    **named_inputs: Any,
) -> Step:
    """Run one forward and backward, and return everything that it leaves behind, by kind and name.

    >>> step = run_step(nn.Conv1d(1, 1, 3), torch.randn(1, 1, 9))
    >>> [f"{kind} {name}".strip() for kind, name in step]
    ['output', 'input gradient', 'parameter gradient weight', 'parameter gradient bias']

    Each floating-point output is multiplied by fixed normal random numbers (of `seed`) and summed, so that
    every pixel's gradient counts. Torch's generators are seeded too, and put back afterwards. Buffers are
    updated as in any step; no `.grad` is written. The forward runs inside `noise` (see `same_noise`).
    """
    leaves, arguments = _differentiable((inputs, named_inputs), input_gradients)
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(seed)
        with noise or nullcontext():
            outputs = tensors_of(module(*arguments[0], **arguments[1]))
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    graded = [output for output in outputs.values() if output.requires_grad]
    wanted = [*leaves.values(), *parameters.values()]
    gradients: Sequence[Tensor | None] = [None] * len(wanted)
    if graded and wanted:
        weights = [_weights(output, seed + i) for i, output in enumerate(graded)]
        gradients = torch.autograd.grad(graded, wanted, weights, allow_unused=True)
    step: Step = {("output", name): output.detach() for name, output in outputs.items()}
    step.update({("input gradient", n): g for n, g in zip(leaves, gradients, strict=False)})
    step.update({("parameter gradient", n): g for n, g in zip(parameters, gradients[len(leaves) :], strict=True)})
    step.update({("buffer", n): b.detach().clone() for n, b in module.named_buffers()})
    return step


def compare(plain: nn.Module, streamed: nn.Module, *inputs: Any, seed: int = 0, **named_inputs: Any) -> tuple[Row, ...]:
    """Run one step of each module on the same inputs, and return one row per tensor.

    >>> from copy import deepcopy
    >>> module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    >>> rows = compare(deepcopy(module), module, torch.randn(1, 1, 8, 8))
    >>> max(row.error for row in rows)
    0.0

    Both modules take the step: give copies where buffers must not change. Where the streamed module dropped
    pixels, the plain one drops the same (see `same_noise`).
    """
    step = run_step(streamed, *inputs, seed=seed, **named_inputs)
    reference = run_step(plain, *inputs, seed=seed, noise=same_noise(streamed), **named_inputs)
    return rows_of(step, reference)


def same_noise(streamed: nn.Module) -> AbstractContextManager[Any]:
    """Let plain modules drop the pixels that the streamed module dropped in its last forward.

    >>> with same_noise(nn.Identity()):  # nothing was dropped
    ...     F.dropout(torch.ones(2), p=0.0)
    tensor([1., 1.])

    A streamed dropout hashes (seed, layer, coordinates), so its mask does not depend on the tiling; plain
    PyTorch draws its own. Inside this context the k-th active dropout over a map multiplies by the mask of
    that seed and k, which is `dropout_mask`, a public function. Noise without space comes from torch in both.
    """
    seed = getattr(streamed, "last_seed", None)
    return nullcontext() if seed is None else _SameNoise(seed)


class _SameNoise(TorchFunctionMode):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.layer = 0

    def __enter__(self) -> _SameNoise:
        # The streamed forward drew its seed first; what follows in torch's generator is then the same.
        torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not F.dropout:
            return func(*args, **(kwargs or {}))
        return self.dropout(*args, **(kwargs or {}))

    def dropout(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        # A map has axes of space; a vector's noise is drawn by torch in both modules.
        if not training or p in (0.0, 1.0) or x.dim() < 3:
            self.layer += training and p == 1.0 and x.dim() > 2
            return F.dropout(x, p, training, inplace)
        mask = dropout_mask(self.seed, self.layer, tuple(x.shape), (), (), p)
        self.layer += 1
        scale = mask.to(x.device, x.dtype) / (1 - p)
        return x.mul_(scale) if inplace else x * scale


# ---------------------------------------------------------------------------------------------- one step


def _differentiable(arguments: Any, wanted: bool) -> tuple[dict[str, Tensor], Any]:
    """Alias every floating-point tensor as a leaf; return the leaves by name, and the arguments with them."""
    leaves: dict[str, Tensor] = {}

    def alias(path: tuple[Any, ...], leaf: Any) -> Any:
        if not (isinstance(leaf, Tensor) and leaf.is_floating_point()):
            return leaf
        leaf = leaf.detach()
        if wanted:
            leaves[keystr(path)] = leaf.requires_grad_()
        return leaf

    flat, spec = tree_flatten_with_path(arguments)
    arguments = tree_unflatten([alias(path, leaf) for path, leaf in flat], spec)
    if len(leaves) == 1:
        leaves = {"": next(iter(leaves.values()))}
    return leaves, arguments


def tensors_of(tree: Any) -> dict[str, Tensor]:
    """Name every tensor of a result by its place in it: "" alone, else "[0]" or "['logits']"."""
    flat = tree_flatten_with_path(tree)[0]
    tensors = {keystr(path): leaf for path, leaf in flat if isinstance(leaf, Tensor)}
    return {"": next(iter(tensors.values()))} if len(tensors) == 1 else tensors


def _weights(output: Tensor, seed: int) -> Tensor:
    """Give the fixed random numbers that an output is multiplied by before it is summed."""
    if output.is_meta:
        return torch.empty_like(output)
    generator = torch.Generator(output.device).manual_seed(seed)
    return torch.randn(output.shape, generator=generator, dtype=output.dtype, device=output.device)


def rows_of(streamed: Step, plain: Step) -> tuple[Row, ...]:
    """Give one row per tensor of two steps, with the error of the streamed one."""
    gradients = (tensor for (kind, _), tensor in plain.items() if kind == "parameter gradient")
    scale = max((_norm(tensor) for tensor in gradients), default=0.0)
    errors = relative_errors(streamed, plain, scale)
    return tuple(
        Row(key[0], key[1], () if b is None else tuple(b.shape), _norm(b), errors[key]) for key, b in plain.items()
    )


# --------------------------------------------------------------------------------------------- the error


def _norm(tensor: Tensor | None) -> float:
    if tensor is None or tensor.numel() == 0:
        return 0.0
    return float(torch.linalg.vector_norm(tensor.detach().to(torch.float64)))


def _error(a: Tensor | None, b: Tensor | None, scale: float) -> float:
    if a is None or b is None:
        present = a if b is None else b
        if present is None:
            return 0.0
        zeros = torch.zeros_like(present)
        a, b = (zeros, present) if a is None else (present, zeros)
    if a.shape != b.shape:
        return math.inf
    if torch.equal(a, b):
        return 0.0
    # In float64: the figure has no rounding of its own, and integers and bools can be subtracted.
    difference = _norm(a.detach().to(torch.float64) - b.detach().to(a.device, torch.float64))
    if not math.isfinite(difference):
        return math.inf
    norm = _norm(b)
    last_bit = torch.finfo(b.dtype).eps * scale if b.is_floating_point() else 0.0
    if norm < SMALL * scale and difference <= LAST_BITS * last_bit:
        return 0.0
    if b.dtype is torch.float64 and max(norm, difference) < NOISE_BITS * last_bit:
        return 0.0
    size = max(norm, FLOOR * scale)
    return difference / size if size > 0 else math.inf
