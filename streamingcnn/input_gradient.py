"""The gradient of a number with respect to an image that is never whole in memory.

A tensor has a gradient of its own size; a source of 100,000 x 100,000 pixels cannot have one. But each block of pixels
is complete as soon as the last tile that reads it was pulled back, and may then be handed over and forgotten::

    tiles of the first stage, in their order     1  2  3  4
                                                 5  6  7  8     after tile 6: the block between 1, 2, 5 and 6
                                                                is complete; blocks below and right of it are not

So of the image's gradient there is never more than some rows of tiles. Everything else is a step as any other.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from streamingcnn.boxes import Box, intersect, relative, sizes
from streamingcnn.given import device_of, values_given
from streamingcnn.graph import Graph, requiring
from streamingcnn.maps import Gradients
from streamingcnn.module import StreamingModule
from streamingcnn.ops.rule import Value
from streamingcnn.plan.stages import Stage
from streamingcnn.record import Record
from streamingcnn.runner import Runner
from streamingcnn.signature import Sharing, share
from streamingcnn.sources.source import Source, constant_blocks_of

__all__ = ["input_gradient"]

#: Pixels along the side of the blocks that are handed over.
_BLOCK = 512


def input_gradient(
    net: StreamingModule,
    source: Source,
    score: Callable[[Any], Tensor],
    take: Callable[[Box, Tensor], object],
    block: int = _BLOCK,
) -> Any:
    """Hand over the gradient of a number at every pixel of a source, block by block, each once.

    Example::

        heat = torch.zeros(source.shape[1:])
        def take(box, gradient):                                  # gradient: (1, 3, rows, columns)
            heat[tuple(slice(*interval) for interval in box)] = gradient[0].abs().sum(0)
        input_gradient(net.eval(), ScaledSource(slide), lambda logits: logits[0, 1], take)

    The numbers are those of ``torch.autograd.grad`` on the image as a tensor. Pixels that a source says are constant
    (everything outside a `MaskedSource`'s mask) stand for others like them; they are handed over as zeros.

    Args:
        net: the streamed network; its mode stays as it is, parameters receive no gradient.
        source: one image of floating-point pixels (:class:`~streamingcnn.sources.ScaledSource` makes some).
        score: of the network's result, the number (a scalar tensor).
        take: called with a box and the gradient in it, with all channels.
        block: pixels along the side of the boxes, whose corners are multiples of it.

    Returns:
        What the network gave for the image.

    Raises:
        ValueError: the source has whole numbers for pixels, or the network does not depend on them.
    """
    if not source.dtype.is_floating_point:
        raise ValueError(f"{source!r} has {source.dtype} pixels, which have no gradient; wrap it in ScaledSource")
    with torch.enable_grad():
        graph, plan, _, content = net._planned((source,), {})
    tensors, fixed = values_given(net.module, graph, [source])
    runner = Runner(
        graph, list(plan.steps), requiring(graph, {graph.image.name}), device_of(net.module).type, net._offload.folder
    )
    sharing = share(runner.steps, graph.image, content)
    if graph.noises:
        fixed["seed"] = int(torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64))
    record = Record()
    made = runner.forward({**fixed, **{v.name: t.detach() for v, t in tensors.items()}}, record, sharing)
    leaves = {
        value: made[value.name].detach().requires_grad_(made[value.name].is_floating_point())
        for value in runner.outputs
    }
    result = pytree.tree_unflatten([leaves.get(o, o) for o in graph.outputs], graph.output_spec)
    with torch.enable_grad():
        wanted = [value for value, leaf in leaves.items() if leaf.requires_grad and value.name in runner.needs]
        if not wanted:
            raise ValueError("the network's result does not depend on the image")
        pulled = torch.autograd.grad(score(result), [leaves[value] for value in wanted], allow_unused=True)
    gradients = _Blocks(graph, runner, record, sharing, _without_constants(source, take), block)
    for value, gradient in zip(wanted, pulled, strict=True):
        gradients.add(value, gradient)
    runner.backward(record, gradients, False)
    gradients.finish()
    return pytree.tree_map_only(Tensor, Tensor.detach, result)


def _without_constants(source: Source, take: Callable[[Box, Tensor], object]) -> Callable[[Box, Tensor], object]:
    """Hand over zeros for the pixels that a source says are constant."""
    blocks = constant_blocks_of(source)
    if blocks is None:
        return take

    def cleared(box: Box, gradient: Tensor) -> object:
        at = [np.arange(low, high) // step for (low, high), step in zip(box, blocks.steps, strict=True)]
        varied = torch.from_numpy(blocks.labels[np.ix_(*at)] < 0)
        return take(box, gradient * varied.to(gradient.device))

    return cleared


class _Blocks(Gradients):
    """The gradients under way, with the image's in blocks that go as soon as they are complete."""

    def __init__(
        self,
        graph: Graph,
        runner: Runner,
        record: Record,
        sharing: Sharing,
        take: Callable[[Box, Tensor], object],
        block: int,
    ) -> None:
        super().__init__(record.places, sharing.tables)
        self.image, self.take, self.block = graph.image, take, block
        #: How many more times a block will be added to.
        self.left: Counter[tuple[int, ...]] = Counter()
        self.begun: dict[tuple[int, ...], Tensor] = {}
        self.done: set[tuple[int, ...]] = set()
        #: Boxes that stand for several places: none of their pixels has a gradient of its own.
        self.shared: set[Box] = set()
        for stage in runner.steps:
            if isinstance(stage, Stage) and graph.image in stage.frontier:
                self._expect(stage, sharing)

    def _expect(self, stage: Stage, sharing: Sharing) -> None:
        for box, count in sharing.tiles(stage):
            boxes = [box for value, box in stage.program(box).reads if value == self.image] if stage.nodes else [box]
            for part in boxes:
                self.left.update(self._touched(part))
                if count > 1:
                    self.shared.add(part)

    def add_box(self, value: Value, box: Box, gradient: Tensor | None) -> None:
        if value != self.image:
            super().add_box(value, box, gradient)
            return
        for at in self._touched(box):
            if gradient is not None and box not in self.shared:
                own = self._box_of(at)
                common = intersect(own, box)
                assert common is not None
                if at not in self.begun:
                    wide = torch.promote_types(gradient.dtype, torch.float32)
                    self.begun[at] = gradient.new_zeros((*gradient.shape[:2], *sizes(own)), dtype=wide)
                self.begun[at][_index(common, own)] += gradient[_index(common, box)]
            self.left[at] -= 1
            if not self.left[at]:
                self._hand_over(at)

    def finish(self) -> None:
        """Hand over what no tile will add to: blocks of zeros, and those whose last tiles had no gradient."""
        counts = (range(-(-extent // self.block)) for extent in self.image.extents)
        for at in itertools.product(*counts):
            if at not in self.done:
                self._hand_over(at)

    def _hand_over(self, at: tuple[int, ...]) -> None:
        box = self._box_of(at)
        self.done.add(at)
        gradient = self.begun.pop(at, None)
        shape = self.image.shape_at(box)
        self.take(box, torch.zeros(shape, dtype=self.image.dtype) if gradient is None else gradient)

    def _box_of(self, at: tuple[int, ...]) -> Box:
        return tuple(
            (n * self.block, min((n + 1) * self.block, extent))
            for n, extent in zip(at, self.image.extents, strict=True)
        )

    def _touched(self, box: Box) -> Iterator[tuple[int, ...]]:
        """The blocks that a box has pixels of."""
        return itertools.product(*(range(low // self.block, -(-high // self.block)) for low, high in box))


def _index(part: Box, within: Box) -> tuple[Any, ...]:
    return (..., *(slice(low, high) for low, high in relative(part, within)))
