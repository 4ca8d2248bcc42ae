"""Which boxes of sources a stage's tiles will read, said before they run."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping

from .boxes import Box
from .maps import Map, SourceMap
from .ops.rule import Value
from .plan.stages import Stage


@contextlib.contextmanager
def reading_ahead(stage: Stage, maps: Mapping[str, Map], tiles: Iterable[Box]) -> Iterator[None]:
    """Have what a stage's tiles will read of sources read ahead, for as long as they run."""
    sources = [found for value in stage.frontier if isinstance(found := maps.get(value.name), SourceMap)]
    # Each source looks at the tiles by itself; they are few numbers each.
    for source, boxes in zip(sources, itertools.tee(tiles, len(sources)) if sources else (), strict=True):
        source.expect(_reads(stage, source.value, boxes))
    try:
        yield
    finally:
        for source in sources:
            source.rest()


def _reads(stage: Stage, value: Value, tiles: Iterable[Box]) -> Iterator[Box]:
    """The boxes of a value that tiles read, in their order."""
    for tile in tiles:
        for read, box in stage.program(tile).reads:
            if read is value:
                yield box
