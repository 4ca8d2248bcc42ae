"""Tiles as compiled programs: one for each kind of tile that comes often, for forward and for backward.

A stage's tiles are few computations at many places (see signature.py): in the middle of a map all are alike, and each
border has its own.

    tiles of a stage    A B B B C      B comes nine times: compiled, once for forward and once for backward
                        D E E E F      D, E and F three times each: compiled
                        D E E E F      the four corners run as they are: compiling them takes longer than they do
                        D E E E F
                        G H H H I

What a tile does is traced to a graph of ATen operations on tensors without numbers, and torch.compile is given that:
our own Python is no part of it. Backward is traced whole, the tile computed again and its gradient, so that nothing
is computed there that no gradient needs, and nothing is saved in between.
"""

from __future__ import annotations

import itertools
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from .boxes import Box, split
from .ops.rule import Value
from .plan.stages import Program, Stage
from .sides import Sides
from .signature import walk
from .tile import run_tile

__all__ = ["Compiler"]

#: From how many tiles of a kind on it is compiled.
OFTEN = 3


class Compiler:
    """The compiled programs of a runner's stages; it stops compiling where the compiler is missing, with a warning.

    >>> compiler = Compiler()
    >>> compiler.works
    True
    """

    def __init__(self) -> None:
        #: Whether no attempt to compile has failed so far.
        self.works = True
        self._kinds: WeakKeyDictionary[Stage, _Kinds] = WeakKeyDictionary()
        self._known: dict[Hashable, Callable[..., Any]] = {}

    def forward(self, stage: Stage, box: Box, program: Program, reads: Sequence[Tensor], sides: Sides) -> Tensor | None:
        """The result of a tile, with its autograd graph where gradients are recorded; None: run it uncompiled."""
        key = self._key(stage, box, sides)
        if key is None:
            return None
        names, given = sides.tensors()

        def tile(*tensors: Tensor) -> Tensor:
            held = _held(program, tensors)
            return run_tile(program, held, _getting(names, tensors[len(program.reads) :]))

        made: Tensor | None = self._run((key, "forward", torch.is_grad_enabled()), tile, (*reads, *given))
        return made

    def backward(
        self,
        stage: Stage,
        box: Box,
        program: Program,
        reads: Sequence[Tensor],
        sides: Sides,
        gradient: Callable[[], Tensor],
    ) -> tuple[Tensor | None, ...] | None:
        """The gradients of a tile that is computed again: of those reads that want one, then of ``sides.leaves``."""
        key = self._key(stage, box, sides)
        if key is None:
            return None
        names, given = sides.tensors()
        wanted = [tensor.requires_grad for tensor in (*reads, *given)]
        places = {id(tensor): len(reads) + k for k, tensor in enumerate(given)}
        chosen = [k for k, tensor in enumerate(reads) if tensor.requires_grad]
        chosen += [places[id(leaf)] for leaf in sides.leaves]

        def tile(*tensors: Tensor) -> tuple[Tensor | None, ...]:
            with torch.enable_grad():
                leaves = [
                    tensor.detach().requires_grad_(want) for tensor, want in zip(tensors[:-1], wanted, strict=True)
                ]
                held = _held(program, leaves)
                result = run_tile(program, held, _getting(names, leaves[len(program.reads) :]))
                if not result.requires_grad:
                    return (None,) * len(chosen)
                return torch.autograd.grad(result, [leaves[k] for k in chosen], tensors[-1], allow_unused=True)

        with torch.no_grad():
            tensors = [tensor.detach() for tensor in (*reads, *given, gradient())]
            made: tuple[Tensor | None, ...] | None = self._run((key, "backward", *wanted), tile, tensors)
        return made

    def _key(self, stage: Stage, box: Box, sides: Sides) -> Hashable | None:
        """What a tile shares with those that one program serves; None where it is not worth one."""
        if not self.works or not sides.only_tensors:
            return None
        if stage not in self._kinds:
            self._kinds[stage] = _Kinds(stage)
        kind = self._kinds[stage].of(box)
        return None if kind is None else (id(self._kinds[stage]), kind)

    def _run(self, key: Hashable, tile: Callable[..., Any], tensors: Iterable[Tensor]) -> Any:
        tensors = tuple(tensors)
        known = self._known.get(key)
        if known is not None:
            return known(*tensors)
        try:
            compiled = torch.compile(_traced(tile, tensors), dynamic=False)
            made = compiled(*tensors)
        except Exception as error:
            if not _of_the_compiler(error):
                raise
            self.works = False
            reason = next(line for line in str(error).splitlines() if line.strip())
            warnings.warn(
                "compile=True, and torch.compile does not work here, so tiles run uncompiled: "
                f"{type(error).__name__}: {reason}. It needs a C++ compiler (g++, clang or MSVC) for the CPU and "
                "Triton for CUDA; compile=False leaves this warning out",
                stacklevel=2,
            )
            return None
        self._known[key] = compiled
        return made


class _Kinds:
    """The kinds of a stage's tiles, and which of them come often."""

    def __init__(self, stage: Stage) -> None:
        self._along = [
            {interval: walk(stage, axis, interval)[0] for interval in split(extent, step)}
            for axis, (extent, step) in enumerate(zip(stage.target.extents, stage.tile, strict=True))
        ]
        counts = [Counter(line.values()) for line in self._along]
        self._often = {
            kind
            for kind in itertools.product(*counts)
            if _product(count[one] for count, one in zip(counts, kind, strict=True)) >= OFTEN
        }

    def of(self, box: Box) -> Hashable | None:
        """The kind of a tile, where it comes often."""
        kind = tuple(line[interval] for line, interval in zip(self._along, box, strict=True))
        return kind if kind in self._often else None


def _product(counts: Iterable[int]) -> int:
    total = 1
    for count in counts:
        total *= count
    return total


def _held(program: Program, tensors: Sequence[Tensor]) -> dict[tuple[str, Box], Tensor]:
    return {(value.name, box): tensor for (value, box), tensor in zip(program.reads, tensors, strict=False)}


def _getting(names: Sequence[str], tensors: Sequence[Tensor]) -> Callable[[Any], Any]:
    held = dict(zip(names, tensors, strict=True))

    def get(argument: Any) -> Any:
        return held[argument.name] if isinstance(argument, Value) else argument

    return get


def _traced(tile: Callable[..., Any], tensors: Sequence[Tensor]) -> torch.fx.GraphModule:
    """A tile's ATen operations; ``detach`` of what is given has no place in them, since autograd sees the whole."""
    traced: torch.fx.GraphModule = make_fx(tile, tracing_mode="fake")(*[tensor.detach() for tensor in tensors])
    return traced


def _of_the_compiler(error: Exception) -> bool:
    """Whether an exception says that the compiler failed, and not the computation."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor", "torch._functorch"))
