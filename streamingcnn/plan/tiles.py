"""The tiles worth considering for a map: equal cuts of every axis, strips, slabs, and shapes between."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

__all__ = ["candidate_tiles"]

#: Steps of a tile grid that are considered: an axis is cut into so many tiles.
CUTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 96, 128, 192, 256)
#: The fewest pixels along an axis that a tile is cut to.
NARROWEST = 4


@lru_cache(maxsize=256)
def candidate_tiles(extents: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Tiles to consider: equal cuts of every axis, strips, slabs, and shapes between; the largest first."""
    steps = [
        list(
            dict.fromkeys(-(-extent // cut) for cut in CUTS if cut == 1 or -(-extent // cut) >= min(NARROWEST, extent))
        )
        for extent in extents
    ]
    found: dict[tuple[int, ...], None] = {}

    def step(axis: int, k: int) -> int:
        return steps[axis][max(0, min(k, len(steps[axis]) - 1))]

    last = max(map(len, steps))
    for k in range(last):
        for behind in _BEHIND[len(extents)]:
            # Axis a is cut as often as the first one, less by so many places; None: not cut at all.
            found[tuple(step(a, 0 if less is None else k - less) for a, less in enumerate(behind))] = None
    return sorted(found, key=lambda tile: (_count(extents, tile), tile))


_BEHIND: dict[int, tuple[tuple[int | None, ...], ...]] = {
    1: ((0,),),
    2: ((0, 0), (0, 2), (0, 4), (0, None), (2, 0), (1, 0), (0, 1)),
    3: ((0, 0, 0), (0, 0, 2), (0, 2, 2), (2, 0, 0), (2, 2, 0), (0, 0, None), (0, None, None), (1, 1, 0), (3, 3, 0),
        (0, 2, 0), (0, 2, None), (4, 4, 0)),
}  # fmt: skip


def _count(extents: Iterable[int], tile: Iterable[int]) -> int:
    count = 1
    for extent, step in zip(extents, tile, strict=True):
        count *= -(-extent // step)
    return count
