"""Paged maps: a stored map as a table from blocks to pages, like virtual memory.

A slide is mostly glass. Its feature maps say the same of every part of the glass, so a map of them is mostly one tile
over and over. A paged map keeps that tile once:

    blocks of the map        pages
    0 0 0 0                  0: the background in the middle
    0 1 2 0                  1: tissue
    0 3 4 0                  2: tissue           ...

The blocks are the tiles of the stage that wrote the map. Two blocks share a page only where they are the same
computation on the same pixels (see signature.py), so the gradients of all of them add up in that one page before it
is pulled back once: the pull-back is linear, so the sum of the pull-backs is the pull-back of the sum.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .boxes import Box, full, relative, volume
from .maps import empty_like_tile
from .ops.rule import Value, along

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Table:
    """Which page each block of a map shows.

    >>> table = Table((5, 4), (2, 4), np.array([[7], [7], [9]]))
    >>> [(page, part) for page, part, block in table.parts(((3, 5), (1, 2)))]
    [(7, ((3, 4), (1, 2))), (9, ((4, 5), (1, 2)))]

    Attributes:
        extents: of the map, in its pixels.
        steps: the sizes of a block; the last one of an axis may be smaller.
        pages: a page's number for each block, one axis of the array per axis of the map.
    """

    extents: tuple[int, ...]
    steps: tuple[int, ...]
    pages: Integers

    def block(self, place: tuple[int, ...]) -> Box:
        """The box of a block."""
        return tuple(
            (k * step, min((k + 1) * step, extent))
            for k, step, extent in zip(place, self.steps, self.extents, strict=True)
        )

    def parts(self, box: Box) -> Iterator[tuple[int, Box, Box]]:
        """The parts of a box that lie in different blocks: page, part, and the block that the part lies in."""
        ranges = (range(low // s, -(-high // s)) for (low, high), s in zip(box, self.steps, strict=True))
        for place in itertools.product(*ranges):
            block = self.block(place)
            part = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(box, block, strict=True))
            yield int(self.pages[place]), part, block

    def map_of(self, value: Value, contiguous: bool = False) -> PagedMap:
        """An empty map laid out by this table; as a whole it is ``contiguous`` whatever its pages are."""
        return PagedMap(value, self, contiguous)

    def gradient_of(self, value: Value) -> PagedGradient:
        """The gradient of a map laid out by this table, zero so far."""
        return PagedGradient(value, self)

    def elements(self) -> int:
        """The pixels of all pages together."""
        _, first = np.unique(self.pages, return_index=True)
        places = zip(*np.unravel_index(first, self.pages.shape), strict=True)
        return sum(volume(self.block(tuple(int(k) for k in place))) for place in places)


class PagedMap:
    """A stored map that keeps each page once; read and written by box like a dense one.

    >>> value = Value("x", (1, 1, 4), torch.float32, (2,))
    >>> m = PagedMap(value, Table((4,), (2,), np.array([5, 5])))
    >>> m.write(((0, 2),), torch.tensor([[[1.0, 2.0]]]))
    >>> m.read(((1, 4),)).flatten().tolist()
    [2.0, 1.0, 2.0]
    """

    def __init__(self, value: Value, table: Table, contiguous: bool = False) -> None:
        assert value.axes is not None
        self.value, self.axes, self.table, self.contiguous = value, value.axes, table, contiguous
        self.pages: dict[int, Tensor] = {}

    def read(self, box: Box) -> Tensor:
        """The pixels of a box: a view where it lies in one block, else put together."""
        parts = list(self.table.parts(box))
        if len(parts) == 1:
            page, part, block = parts[0]
            return along(self.pages[page], self.axes, relative(part, block))
        return self._together(box, parts)

    def _together(self, box: Box, parts: list[tuple[int, Box, Box]], contiguous: bool = False) -> Tensor:
        """The pixels of a box, put together of its parts."""
        made = empty_like_tile(self.pages[parts[0][0]], self.value.shape_at(box), contiguous=contiguous)
        for page, part, block in parts:
            piece = along(self.pages[page], self.axes, relative(part, block))
            along(made, self.axes, relative(part, box)).copy_(piece)
        return made

    def write(self, box: Box, tile: Tensor) -> None:
        """Write a block."""
        ((page, part, block),) = self.table.parts(box)
        assert part == block == box, f"{box} is no block of {self.value.name}"
        own = tile.untyped_storage().nbytes() == tile.numel() * tile.element_size()
        self.pages[page] = tile if own else tile.clone()  # a view would hold what it is cut from

    @property
    def tensor(self) -> Tensor:
        """The whole map, as an ordinary dense tensor."""
        everything = full(self.value.extents)
        if self.contiguous:
            return self._together(everything, list(self.table.parts(everything)), contiguous=True)
        return self.read(everything)

    def detached(self) -> PagedMap:
        """Itself: what callers get is a copy."""
        return self

    @property
    def version(self) -> int:
        """Nobody can change them."""
        return 0


class PagedGradient:
    """The gradient of a paged map: a page's is the sum over all blocks that show it."""

    def __init__(self, value: Value, table: Table) -> None:
        assert value.axes is not None
        self.value, self.axes, self.table = value, value.axes, table
        self.pages: dict[int, Tensor] = {}
        self.device = torch.device("cpu")

    def add(self, box: Box, gradient: Tensor) -> None:
        """Add at a box, to the pages of its blocks; in float32 or wider, since many blocks may share one."""
        self.device = gradient.device
        for page, part, block in self.table.parts(box):
            piece = along(gradient, self.axes, relative(part, box))
            if page not in self.pages:
                made = self._page(block, gradient)
                self.pages[page] = made.copy_(piece) if part == block else made.zero_()
                if part == block:
                    continue
            along(self.pages[page], self.axes, relative(part, block)).add_(piece)

    def reserve(self, box: Box, gradient: Tensor) -> None:
        """Have the pages of a box without adding to them: for a rehearsal, which looks at bytes only."""
        for page, _, block in self.table.parts(box):
            if page not in self.pages:
                self.pages[page] = self._page(block, gradient)

    def _page(self, block: Box, gradient: Tensor) -> Tensor:
        wide = gradient.dtype if gradient.dtype == torch.float64 else torch.float32
        return empty_like_tile(gradient, self.value.shape_at(block), dtype=wide)

    def take(self, box: Box) -> Tensor:
        """The gradient of a block's page, which is then let go; zeros where none has arrived."""
        ((page, _, block),) = self.table.parts(box)
        found = self.pages.pop(page, None)
        if found is None:
            return torch.zeros(self.value.shape_at(block), dtype=self.value.dtype, device=self.device)
        return found.to(self.value.dtype)
