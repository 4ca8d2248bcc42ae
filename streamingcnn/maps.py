"""Stored maps: feature maps held between stages, read, written and added to by box.

One small interface with two makes, dense (one tensor; a box is a view of it) and paged (pages.py), and a third that
can only be read: a source of pixels outside memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from .ahead import Ahead, Clock, Reading
from .boxes import Box, full
from .layout import MEMORY_FORMATS
from .ops.rule import Value, along
from .places import DEVICE, Place
from .sources.source import Source, said_by

if TYPE_CHECKING:
    from .pages import PagedGradient, Table


class Map(Protocol):
    """What is read by box: a stored map of any make, or an input."""

    def read(self, box: Box) -> Tensor:
        """The pixels of a box, not to be written to."""
        ...

    @property
    def tensor(self) -> Tensor:
        """The whole map as an ordinary tensor."""
        ...

    def detached(self) -> Map:
        """The same pixels, by a tensor other than the one that :attr:`tensor` gave; itself, where that was a copy."""
        ...

    @property
    def version(self) -> int:
        """Counts the changes in place that a caller can make to them."""
        ...


class Sink(Protocol):
    """What takes a result tile by tile, and holds none of it in memory."""

    def has(self, box: Box) -> bool:
        """Whether a tile is there already."""
        ...

    def write(self, box: Box, tile: Tensor) -> None:
        """Take a tile; it stands for all that show the same page."""
        ...


def empty_like_tile(
    tile: Tensor,
    shape: tuple[int, ...],
    place: Place = DEVICE,
    dtype: torch.dtype | None = None,
    contiguous: bool = False,
) -> Tensor:
    """An uninitialised map in a place, with a tile's memory format and dtype, unless told otherwise, and device."""
    wanted = MEMORY_FORMATS.get(tile.dim())
    if contiguous or wanted is None or tile.is_contiguous() or not tile.is_contiguous(memory_format=wanted):
        wanted = torch.contiguous_format
    return place.empty(shape, tile.dtype if dtype is None else dtype, wanted, tile.device)


class SourceMap:
    """An input whose pixels are read from a source, again each time that a tile needs them; ahead where it can be."""

    def __init__(self, value: Value, source: Source, device: torch.device, reading: Reading | None = None) -> None:
        self.value, self.source, self.device = value, source, device
        self.reading = Reading() if reading is None else reading
        self._ahead: Ahead | None = None

    def expect(self, boxes: Iterator[Box]) -> None:
        """Say which boxes will be read next; they are read ahead until :meth:`rest`."""
        self.rest()
        threads = int(said_by(self.source, "threads", 1))
        if threads > 0:
            pixel_bytes = self.value.depth * self.value.dtype.itemsize
            self._ahead = Ahead(self.source.read, boxes, pixel_bytes, threads)

    def rest(self) -> None:
        """Read nothing ahead any more."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def read(self, box: Box) -> Tensor:
        with Clock(self.reading):
            pixels = self.source.read(box) if self._ahead is None else self._ahead.take(box)
        wanted = self.value.shape_at(box)
        if tuple(pixels.shape) not in (wanted, wanted[1:]) or pixels.dtype != self.value.dtype:
            raise ValueError(
                f"{self.source!r} gave {tuple(pixels.shape)} {pixels.dtype} for the box {box}; its own shape and dtype "
                f"say {wanted[wanted[:1] == (1,) :]} {self.value.dtype}"
            )
        return pixels.reshape(wanted).to(self.device)

    @property
    def tensor(self) -> Tensor:
        return self.read(full(self.value.extents))

    def detached(self) -> SourceMap:
        """Itself: what callers get is a copy."""
        return self

    @property
    def version(self) -> int:
        """Nobody can change them."""
        return 0


class DenseMap:
    """The whole feature map of a value in one tensor.

    >>> value = Value("x", (1, 1, 4, 4), torch.float32, (2, 3))
    >>> m = DenseMap(value)
    >>> m.write(((0, 4), (0, 2)), torch.zeros(1, 1, 4, 2))
    >>> m.write(((0, 4), (2, 4)), torch.ones(1, 1, 4, 2))
    >>> m.read(((1, 2), (1, 3))).flatten().tolist()
    [0.0, 1.0]
    """

    def __init__(
        self, value: Value, tensor: Tensor | None = None, place: Place = DEVICE, contiguous: bool = False
    ) -> None:
        assert value.axes is not None
        self.value, self.axes, self._tensor, self.place = value, value.axes, tensor, place
        #: Whether the map is contiguous, whatever its tiles are.
        self.contiguous = contiguous

    @property
    def tensor(self) -> Tensor:
        """The whole map on the device."""
        return self.place.read(self._written)

    def detached(self) -> DenseMap:
        """The same pixels, by a tensor of its own."""
        return DenseMap(self.value, self.tensor.detach())

    @property
    def version(self) -> int:
        """Counts the changes in place."""
        return self.tensor._version

    @property
    def _written(self) -> Tensor:
        assert self._tensor is not None, f"{self.value.name} was read before it was written"
        return self._tensor

    def read(self, box: Box) -> Tensor:
        """A box on the device; a view where the map lives there."""
        return self.place.read(along(self._written, self.axes, box))

    def write(self, box: Box, tile: Tensor) -> None:
        if self._tensor is None:
            if self.place.takes_tiles and box == full(self.value.extents) and not self.contiguous:
                self._tensor = tile
                return
            self._tensor = empty_like_tile(tile, self.value.shape, self.place, contiguous=self.contiguous)
        self.place.write(along(self._tensor, self.axes, box), tile)


class GradientMap:
    """The gradient of a stored map; it exists from its last consumer's backward to its producer's."""

    def __init__(self, value: Value, place: Place = DEVICE, contiguous: bool = False) -> None:
        assert value.axes is not None
        self.value, self.axes, self.place, self.contiguous = value, value.axes, place, contiguous
        self._tensor: Tensor | None = None
        self._owned = False

    @property
    def given(self) -> bool:
        """Whether any gradient has arrived."""
        return self._tensor is not None

    @property
    def tensor(self) -> Tensor:
        assert self._tensor is not None
        return self.place.read(self._tensor)

    def read(self, box: Box) -> Tensor:
        assert self._tensor is not None
        return self.place.read(along(self._tensor, self.axes, box))

    def add(self, box: Box, gradient: Tensor) -> None:
        """Add at a box. A first gradient over the whole map is taken as it is and copied only if more comes."""
        if self._tensor is None:
            if self.place.takes_tiles and box == full(self.value.extents) and not self.contiguous:
                self._tensor = gradient
                return
            made = empty_like_tile(gradient, self.value.shape, self.place, contiguous=self.contiguous)
            self._tensor, self._owned = made.zero_(), True
        if not self._owned:
            self._tensor, self._owned = self._tensor.clone(), True
        self.place.add(along(self._tensor, self.axes, box), gradient)


class Gradients:
    """Every gradient under way in one backward: of maps by box, of global values as a whole.

    Sums over tiles are float32 or wider and are cast once, at the end.
    """

    def __init__(self, places: Mapping[str, Place] | None = None, tables: Mapping[str, Table] | None = None) -> None:
        self.places, self.tables = places or {}, tables or {}
        #: The maps whose gradients are contiguous, whatever those of tiles are: what callers gave.
        self.contiguous: frozenset[str] = frozenset()
        self.maps: dict[str, GradientMap] = {}
        self.paged: dict[str, PagedGradient] = {}
        self.sums: dict[str, Tensor] = {}

    def clear(self) -> None:
        """Let go of everything."""
        for held in (self.maps, self.paged, self.sums):
            held.clear()

    def add_box(self, value: Value, box: Box, gradient: Tensor | None) -> None:
        if gradient is None:
            return
        if value.name in self.tables:
            self.paged_of(value).add(box, gradient)
        else:
            place = self.places.get(value.name, DEVICE)
            made = GradientMap(value, place, value.name in self.contiguous)
            self.maps.setdefault(value.name, made).add(box, gradient)

    def reach(self, values: Iterable[Value]) -> None:
        """Note values that a stage's tiles give gradients to, here or on another rank."""

    def settle(self, values: Iterable[Value]) -> None:
        """Complete the gradients of values that are popped next, where other ranks have a part in them."""

    def add_by_all(self, value: Value, gradient: Tensor | None) -> None:
        """Add a gradient that is complete by itself, and the same on every rank."""
        self.add(value, gradient)

    def paged_of(self, value: Value) -> PagedGradient:
        """The gradient of a paged map, begun if there is none yet."""
        if value.name not in self.paged:
            self.paged[value.name] = self.tables[value.name].gradient_of(value)
        return self.paged[value.name]

    def add(self, value: Value, gradient: Tensor | None, owned: bool = False) -> None:
        """Add a whole gradient, of a global value or of a map; one that is ``owned`` may be kept and written to."""
        if gradient is None:
            return
        if value.spatial:
            self.add_box(value, full(value.extents), gradient)
        elif value.name in self.sums:
            self.sums[value.name].add_(gradient)
        else:
            wide = gradient.dtype if gradient.dtype == torch.float64 else torch.float32
            self.sums[value.name] = gradient.to(wide, copy=not owned)

    def pop(self, value: Value) -> Tensor | None:
        """Take a whole gradient out, in no particular dtype."""
        if value.spatial:
            found = self.maps.pop(value.name, None)
            return None if found is None else found.tensor
        return self.sums.pop(value.name, None)

    def pop_given(self, value: Value, given: Tensor) -> Tensor | None:
        """Take out the gradient of a value that the caller gave."""
        return self.pop(value)

    def pop_map(self, value: Value) -> Callable[[Box], Tensor] | None:
        """Take the gradient of a map out, to be read by box: each box of its maker's tiles that runs, once."""
        if value.name in self.paged:
            return self.paged.pop(value.name).take
        found = self.maps.pop(value.name, None)
        return None if found is None else found.read
