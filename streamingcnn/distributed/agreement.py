"""What all ranks of a partition must have in common before a step, in words and hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..graph import Graph
from ..part import Part
from ..plan.identity import graph_hash
from ..plan.stages import Stage

if TYPE_CHECKING:
    from ..plan.plan import Plan

__all__ = ["description"]


def description(
    graph: Graph, plan: Plan, needs: frozenset[str], leaves: Sequence[Any], training: bool
) -> dict[str, str]:
    """What all ranks of a partition must have in common, in words and hashes."""
    images = {p: v for p, v in graph.inputs.items() if v.spatial}
    given = [type(leaves[p]).__name__ if isinstance(leaves[p], (Tensor, Part)) else "Source" for p in images]
    stages = [(s.name, s.tile, s.way) for s in plan.steps if isinstance(s, Stage)]
    return {
        "image": ", ".join(f"{'x'.join(map(str, v.shape))} {v.dtype}" for v in images.values()),
        "given as": ", ".join(given),
        "mode": "training" if training else "evaluation",
        "network": graph_hash(graph)[:12],
        "plan": hashlib.sha256(repr(stages).encode()).hexdigest()[:12],
        "gradients": hashlib.sha256(repr(sorted(needs)).encode()).hexdigest()[:12],
    }
