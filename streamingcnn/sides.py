"""The global values of a stage, as its tiles see them.

    parameter, statistic, ...  --alias-->  w'  --------------------------------> every tile
                                           w' --(once per stage)--> prepared --> every tile

Tiles differentiate by aliases, so that no hook of the user's fires once per tile. What a rule makes from global
values alone (filters with a batch norm folded in) is made once here, under a small autograd graph of its own; the
tiles' gradients are summed in front of it and pulled through it once.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from .layout import brought_to_channels_last, filters_of, in_channels_last
from .maps import Gradients
from .ops.rule import Value, replace_values
from .plan.stages import Stage


class Sides:
    """The global values of one stage in one forward or backward.

    Args:
        stage: whose tiles ask for them.
        env: the values of the step by name.
        needs: the names of the values that need a gradient; empty where nothing is recorded.
    """

    def __init__(self, stage: Stage, env: dict[str, Any], needs: Collection[str]) -> None:
        self._held: dict[str, Any] = {}
        self._trained: list[tuple[Value, Tensor]] = []
        self._made: list[tuple[Tensor, Tensor]] = []
        # What was made of filters stands in their place; the others are for its making alone.
        filters = filters_of(stage.nodes) if brought_to_channels_last(stage.graph) else frozenset()
        for value in stage.side:
            given = env[value.name]
            alias = leaf(in_channels_last(given) if value.name in filters else given, value.name in needs)
            self._held[value.name] = alias
            if value.name in needs:
                self._trained.append((value, alias))
        with torch.set_grad_enabled(bool(needs)):
            for value, run, arguments in stage.prepared:
                made = run(*replace_values(arguments, self.get))
                made = in_channels_last(made) if value.name in filters else made
                self._held[value.name] = alias = leaf(made, made.requires_grad)
                if made.requires_grad:
                    self._made.append((made, alias))
        #: What a tile's gradient is asked for: the aliases, and what was made of them.
        self.leaves = tuple(alias for _, alias in self._trained) + tuple(alias for _, alias in self._made)
        self._sums: list[Tensor | None] = [None] * len(self.leaves)

    def get(self, argument: Any) -> Any:
        """What rules ask global values of."""
        return self._held[argument.name] if isinstance(argument, Value) else argument

    @property
    def only_tensors(self) -> bool:
        """Whether every global value is a tensor: a number could be another one in the next step."""
        return all(isinstance(held, Tensor) for held in self._held.values())

    def tensors(self) -> tuple[list[str], list[Tensor]]:
        """The names of the global values, and their aliases."""
        return list(self._held), list(self._held.values())

    def add(self, pulled: tuple[Tensor | None, ...]) -> None:
        """Add one tile's gradients, in the order of ``leaves``. Sums are float32 or wider."""
        sums, more = [], []
        for k, gradient in enumerate(pulled):
            total = self._sums[k]
            if gradient is None:
                continue
            if total is None:
                wide = gradient.dtype if gradient.dtype == torch.float64 else torch.float32
                self._sums[k] = gradient.to(wide, copy=True)
            else:
                sums.append(total)
                more.append(gradient)
        if sums:
            torch._foreach_add_(sums, more)

    def pull(self, gradients: Gradients, retain: bool) -> None:
        """Give the sums on: through what was made once, to the values themselves."""
        count = len(self._trained)
        for (value, _), total in zip(self._trained, self._sums[:count], strict=True):
            gradients.add(value, total, owned=True)
        pairs = [
            (made, total.to(made.dtype))
            for (made, _), total in zip(self._made, self._sums[count:], strict=True)
            if total is not None
        ]
        self._sums = [None] * len(self.leaves)
        if pairs:
            made, totals = zip(*pairs, strict=True)
            wanted = tuple(alias for _, alias in self._trained)
            pulled = torch.autograd.grad(made, wanted, totals, retain_graph=retain, allow_unused=True)
            for (value, _), gradient in zip(self._trained, pulled, strict=True):
                gradients.add(value, gradient)


def leaf(tensor: Any, needed: bool) -> Any:
    """An alias to differentiate by, where a gradient is needed."""
    if not isinstance(tensor, Tensor):
        return tensor
    alias = tensor.detach()
    return alias.requires_grad_() if needed else alias
