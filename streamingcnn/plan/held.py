"""Which values of a stage hold memory while a tile runs, and which of them autograd keeps."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from ..graph import Local
from .reuse import overwriting
from .times import Array

__all__ = ["Held"]

#: What autograd saves of common operations: their result, or nothing. Of all others it saves the inputs.
SAVES_RESULT = {"relu", "sigmoid", "tanh", "exp", "sqrt", "rsqrt", "reciprocal", "softmax", "_softmax", "log_softmax",
                "_log_softmax", "elu", "leaky_relu", "hardtanh"}  # fmt: skip
SAVES_NOTHING = {"add", "sub", "neg", "cat", "slice", "permute", "transpose", "view", "constant_pad_nd", "pad",
                 "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d", "upsample_trilinear3d",
                 "reflection_pad2d", "replication_pad2d", "pixel_shuffle", "_to_copy", "clone", "select", "unsqueeze",
                 "squeeze", "split", "chunk"}  # fmt: skip
#: Operations whose results are views: they hold no bytes of their own.
VIEWS = {"slice", "permute", "transpose", "view", "select", "unsqueeze", "squeeze", "detach", "expand", "alias"}


class Held:
    """The memory behind the values of a stage.

    Args:
        nodes: its operations, in graph order.
        at: the positions of all values by name, those of the frontier first.
    """

    def __init__(self, nodes: tuple[Local, ...], at: Mapping[str, int]) -> None:
        self.nodes, self._at = nodes, at
        self._frontier = len(at) - len(nodes)

    @cached_property
    def memory(self) -> list[int]:
        """Per value the one whose memory it is: a view's, an overwritten input's, or its own."""
        over = overwriting(self.nodes)
        memory = list(range(len(self._at)))
        for k, node in enumerate(self.nodes, start=self._frontier):
            if node.op in VIEWS:
                memory[k] = memory[self._at[node.rule.reads[0].value.name]]
            elif node.value.name in over:
                memory[k] = memory[self._at[node.rule.reads[over[node.value.name]].value.name]]
        return memory

    @cached_property
    def owned(self) -> Array:
        """1 for values that hold memory of their own, and none of a stored map."""
        count = self._frontier
        return np.array([float(k >= count and memory == k) for k, memory in enumerate(self.memory)])

    @cached_property
    def saved(self) -> Array:
        """1 for values whose memory autograd keeps."""
        saved = np.zeros(len(self._at))
        for node in self.nodes:
            if node.op in SAVES_RESULT:
                saved[self.memory[self._at[node.value.name]]] = 1
            elif node.op not in SAVES_NOTHING and node.op not in VIEWS:
                for read in node.rule.reads:
                    saved[self.memory[self._at[read.value.name]]] = 1
        return saved * self.owned

    @cached_property
    def indices(self) -> Array:
        """Bytes per element of the positions that a max-pool saves beside its result."""
        return np.array([0.0] * self._frontier + [8.0 if "max_pool" in n.op else 0.0 for n in self.nodes])

    @cached_property
    def alive(self) -> Array:
        """By step and value: whether its memory lives during the step, when dead values are dropped at once."""
        last = list(range(len(self._at)))
        for k, node in enumerate(self.nodes, start=self._frontier):
            for read in node.rule.reads:
                last[self.memory[self._at[read.value.name]]] = k
            last[self.memory[k]] = max(last[self.memory[k]], k)
        steps = np.arange(len(self._at))[:, None]
        return ((np.arange(len(self._at)) <= steps) & (steps <= np.array(last))).astype(np.float64)
