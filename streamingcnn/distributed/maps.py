"""A rank's part of a map, and of its gradient.

    pixels that others need     v v                       sent when the map is made
    a map of 13 rows    | 0 1 2|3 4 5 6|7 8 9 ...
    rank 1 owns               [3 4 5 6]
    rank 1 holds            [2 3 4 5 6 7]                 2 and 7 come from ranks 0 and 2

A read inside what the rank owns never waits; the first read of a seam does. So tiles in the middle run while the
pixels travel. Gradients go the other way: what tiles gave to pixels of others is sent to their owners, who add it in
the order of the ranks, whoever was first.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..boxes import Box, contains, full, intersect, relative, sizes, volume
from ..maps import GradientMap, empty_like_tile
from ..ops.rule import Value, along
from .link import Link, Parcel, Pending
from .ownership import Message

__all__ = ["PartGradient", "PartMap", "whole"]


class PartMap:
    """What one rank holds of a map.

    Args:
        value: the map.
        own: the box that the rank owns.
        held: the box that it holds, its own among it.
        device: where the rank computes.
        tensor: the pixels of ``own``, where they are given and not written.
        contiguous: whether what is held is contiguous, whatever its tiles are.
    """

    def __init__(
        self,
        value: Value,
        own: Box,
        held: Box,
        device: torch.device,
        tensor: Tensor | None = None,
        contiguous: bool = False,
    ) -> None:
        assert value.axes is not None
        self.contiguous = contiguous
        self.value, self.axes, self.own, self.held, self.device = value, value.axes, own, held, device
        self._tensor: Tensor | None = None
        self._pending: Pending | None = None
        if tensor is not None and volume(own):
            self.write(own, tensor)

    def write(self, box: Box, tile: Tensor) -> None:
        """Put pixels of the own box."""
        if self._tensor is None:
            if box == self.held and not self.contiguous:
                self._tensor = tile
                return
            self._tensor = empty_like_tile(tile, self.value.shape_at(self.held), contiguous=self.contiguous)
        along(self._tensor, self.axes, relative(box, self.held)).copy_(tile)

    def _written(self) -> Tensor:
        if self._tensor is None:  # nothing of it is this rank's own
            shape = self.value.shape_at(self.held)
            self._tensor = torch.empty(shape, dtype=self.value.dtype, device=self.device)
        return self._tensor

    def exchange(self, link: Link, messages: Iterable[Message]) -> None:
        """Send what others need of the own box, and begin to receive the rest of what is held."""
        tensor, sent, received = self._written(), [], []
        for message in messages:
            if message.sender == link.rank:
                pixels = along(tensor, self.axes, relative(message.box, self.held))
                sent.append(Parcel(message.receiver, message.box, _flat(pixels)))
            elif message.receiver == link.rank:
                buffer = torch.empty(self.value.shape_at(message.box), dtype=tensor.dtype, device=tensor.device)
                received.append(Parcel(message.sender, message.box, buffer))
        if sent or received:
            self._pending = link.start(self.value.name, sent, received)

    def arrive(self) -> None:
        """Wait for what is on its way."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            # Tiles that ran before may have kept pixels beside these for backward; autograd, which counts changes of
            # the tensor as a whole, is not told of this one.
            pixels = self._written().data
            for parcel in pending.wait():
                along(pixels, self.axes, relative(parcel.box, self.held)).copy_(parcel.tensor)

    def read(self, box: Box) -> Tensor:
        """A box of what is held, as a view."""
        if not contains(self.own, box):
            self.arrive()
        return along(self._written(), self.axes, relative(box, self.held))

    @property
    def tensor(self) -> Tensor:
        """The whole map, where the rank holds it."""
        assert self.held == full(self.value.extents), f"{self.value.name} is not held as a whole"
        self.arrive()
        return self._written()

    def detached(self) -> PartMap:
        """The same pixels, by a tensor of its own."""
        made = PartMap(self.value, self.own, self.held, self.device)
        made._tensor = self._written().detach()
        return made

    @property
    def version(self) -> int:
        """Counts the changes in place of what is held."""
        return self._written()._version

    @property
    def part(self) -> Tensor:
        """The own box."""
        if not volume(self.own):
            return self._written().new_empty(self.value.shape_at(self.own))
        pixels = along(self._written(), self.axes, relative(self.own, self.held))
        return pixels if self.own == self.held else pixels.clone()


class PartGradient:
    """The gradient of one map on one rank."""

    def __init__(self, value: Value, own: Box, pulled: Box, device: torch.device) -> None:
        self.value, self.own, self.pulled, self.device = value, own, pulled, device
        local = Value(value.name, value.shape_at(pulled), value.dtype, value.axes)
        self._local = GradientMap(local)
        self._pending: Pending | None = None
        self._late: list[Box] = []

    def add(self, box: Box, gradient: Tensor) -> None:
        self._local.add(relative(box, self.pulled), gradient)

    def exchange(self, link: Link, messages: Iterable[Message]) -> None:
        """Send what belongs to others, and begin to receive what they have for this rank."""
        if not self._local.given:
            everything = full(sizes(self.pulled))
            zeros = torch.zeros(self.value.shape_at(self.pulled), dtype=self.value.dtype, device=self.device)
            self._local.add(everything, zeros)
        sent, received = [], []
        for message in messages:
            if message.sender == link.rank:
                sent.append(Parcel(message.receiver, message.box, _flat(self._at(message.box))))
            elif message.receiver == link.rank:
                buffer = torch.empty(self.value.shape_at(message.box), dtype=self.value.dtype, device=self.device)
                received.append(Parcel(message.sender, message.box, buffer))
        self._late = [parcel.box for parcel in received]
        if sent or received:
            self._pending = link.start(f"gradient of {self.value.name}", sent, received)

    def _at(self, box: Box) -> Tensor:
        return self._local.read(relative(box, self.pulled))

    def read(self, box: Box) -> Tensor:
        """A box of the own one, complete."""
        if self._pending is not None and any(intersect(box, late) for late in self._late):
            self.arrive()
        return self._at(box)

    def arrive(self) -> None:
        """Wait for what is on its way, and add it in the order of the ranks."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            for parcel in sorted(pending.wait(), key=lambda parcel: parcel.peer):
                self.add(parcel.box, parcel.tensor)

    @property
    def part(self) -> Tensor:
        """The own box, complete."""
        self.arrive()
        if not volume(self.own):
            return self._local.tensor.new_empty(self.value.shape_at(self.own))
        return self._at(self.own)


def whole(part: Tensor, value: Value, link: Link, boxes: tuple[Box, ...], device: torch.device) -> Tensor:
    """A map as a whole on every rank, from the box that each owns of it."""
    held = full(value.extents)
    gathered = PartMap(value, boxes[link.rank], held, device)
    if volume(boxes[link.rank]):
        gathered.write(boxes[link.rank], part)
    pairs = ((i, j) for i in range(link.size) for j in range(link.size) if i != j and volume(boxes[i]))
    gathered.exchange(link, [Message(i, j, boxes[i]) for i, j in pairs])
    return gathered.tensor


def _flat(pixels: Tensor) -> Tensor:
    """A copy of its own that lies in memory as any rank expects it."""
    return pixels.detach().clone(memory_format=torch.contiguous_format)
