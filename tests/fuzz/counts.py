"""What a run of random networks held: rules, neighbouring rules, and cases at the border."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise, product

from streamingcnn.graph import Graph, Local, Reduced, uses
from tests.fuzz.networks import Example

#: Operations of the captured graph, by the rule that serves them; what is not here is pointwise.
RULES = {
    "conv": "conv", "conv_transpose": "conv_transpose", "max_pool": "max_pool", "avg_pool": "avg_pool",
    "upsample_nearest": "nearest", "_upsample_nearest_exact": "nearest_exact", "upsample_linear": "linear_sampling",
    "upsample_bilinear": "linear_sampling", "upsample_trilinear": "linear_sampling",
    "upsample_bicubic": "cubic_sampling", "pixel_shuffle": "pixel_shuffle", "pixel_unshuffle": "pixel_unshuffle",
    "pad": "pad", "prelu": "prelu", "cat": "cat", "slice": "slice", "chunk": "split", "permute": "permute",
    "linear": "linear", "layer_norm": "layer_norm", "batch_norm": "frozen_norm",
    "_native_batch_norm_legit_functional": "batch_norm", "_native_batch_norm_legit_no_training": "frozen_norm",
    "instance_norm": "instance_norm", "group_norm": "group_norm", "dropout": "dropout", "native_dropout": "dropout",
    "softmax": "softmax", "mean": "mean",
}  # fmt: skip

#: Rules that work on channels last, between two permutations.
LAST = {"linear", "layer_norm"}
#: What both sides of a permutation have.
ANYWHERE = {"permute", "pointwise"}
ALL = frozenset(RULES.values()) | {"pointwise"}


def rule_of(node: Local | Reduced) -> str:
    return RULES.get(re.sub(r"(?<=[a-z_])[123]d$", "", node.op), "pointwise")


def possible(first: str, second: str) -> bool:
    """Whether the second rule can read what the first one makes."""
    if first == "mean":
        return False  # its result has no pixels
    if first in ANYWHERE or second in ANYWHERE:
        return True
    return (first in LAST) == (second in LAST)


class Counts:
    """How often each rule, each pair of neighbours and each case at the border occurred."""

    def __init__(self) -> None:
        self.rules, self.pairs, self.borders = Counter[str](), Counter[tuple[str, str]](), Counter[str]()

    def add(self, graph: Graph, case: Example) -> None:
        """Count one network."""
        self.borders.update(case.borders)
        for node in graph.nodes.values():
            if not isinstance(node, (Local, Reduced)):
                continue
            rule = rule_of(node)
            before = [graph.nodes[value.name] for value in uses(node)]
            chain = [rule, "frozen_norm"] if isinstance(node, Local) and node.parts and rule != "pointwise" else [rule]
            self.rules.update(chain)
            self.pairs.update(pairwise(chain))
            self.pairs.update((self._last(each), rule) for each in before if isinstance(each, Local))

    @staticmethod
    def _last(node: Local) -> str:
        return "frozen_norm" if node.parts and rule_of(node) != "pointwise" else rule_of(node)

    def merge(self, other: Counts) -> None:
        """Add what another process counted."""
        self.rules += other.rules
        self.pairs += other.pairs
        self.borders += other.borders

    def _all(self) -> tuple[Counter[str], Counter[tuple[str, str]], Counter[str]]:
        return self.rules, self.pairs, self.borders

    def missing(self, least: int) -> list[str]:
        """What occurred too rarely: rules and borders below `least`, and pairs that never did."""
        few = [f"{name}: {self.rules[name]}" for name in sorted(ALL) if self.rules[name] < least]
        few += [f"{name}: {count}" for name, count in sorted(self.borders.items()) if count < least]
        return few + [
            f"{a} before {b}: never"
            for a, b in product(sorted(ALL), repeat=2)
            if possible(a, b) and not self.pairs[a, b]
        ]

    def __str__(self) -> str:
        rows = ["rules"] + [f"{count:7d}  {name}" for name, count in self.rules.most_common()]
        rows += ["borders"] + [f"{count:7d}  {name}" for name, count in sorted(self.borders.items())]
        rare = sorted((count, pair) for pair, count in self.pairs.items())[:12]
        rows += [f"pairs of neighbours: {len(self.pairs)}, the rarest"]
        rows += [f"{count:7d}  {first} before {second}" for count, (first, second) in rare]
        return "\n".join(rows)
