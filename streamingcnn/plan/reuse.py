"""Which operations of a stage write their result over one of their inputs.

    conv --> a --relu--> b --> next          a and b may be one piece of memory: nobody else reads a, the
                                             convolution's gradient does not need it, and relu's needs only b

That saves a pass over memory and, in backward, half of what a tile's autograd graph keeps. It is decided from the
graph alone, so every tile of a stage does the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..graph import Local
from ..ops.axes import Same


def overwriting(nodes: Sequence[Local]) -> dict[str, int]:
    """By name the nodes that may write over an input, and over which of their reads.

    The input must be made inside the stage (a stored map is never written to) by an operation whose result is its
    own, be read here alone, and be of the result's shape and dtype.
    """
    fresh = {node.value.name: node.value for node in nodes if node.rule.fresh}
    readers: dict[str, int] = {}
    for node in nodes:
        for read in node.rule.reads:
            readers[read.value.name] = readers.get(read.value.name, 0) + 1
    found = {}
    for node in nodes:
        for k, (read, over) in enumerate(zip(node.rule.reads, node.rule.over, strict=False)):
            before = fresh.get(read.value.name)
            if (
                over is not None
                and before is not None
                and readers[before.name] == 1
                and (before.shape, before.dtype, before.axes) == (node.value.shape, node.value.dtype, node.value.axes)
                and all(isinstance(axis, Same) for axis in read.maps)
            ):
                found[node.value.name] = k
                break
    return found
