"""The integer arithmetic on boxes, against sets of pixels."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamingcnn import boxes
from streamingcnn.boxes import Box

intervals = st.tuples(st.integers(0, 12), st.integers(1, 6)).map(lambda t: (t[0], t[0] + t[1]))
boxes_2d = st.tuples(intervals, intervals)


def pixels(box: Box) -> set[tuple[int, ...]]:
    return set(itertools.product(*(range(low, high) for low, high in box)))


@given(boxes_2d, boxes_2d)
def test_intersection_is_that_of_the_pixels(a: Box, b: Box) -> None:
    common = boxes.intersect(a, b)
    assert (pixels(common) if common else set()) == pixels(a) & pixels(b)


@given(boxes_2d, boxes_2d)
def test_contains_is_the_subset_of_pixels(a: Box, b: Box) -> None:
    assert boxes.contains(a, b) == (pixels(b) <= pixels(a))


@given(st.lists(boxes_2d, min_size=1, max_size=4))
def test_hull_is_the_smallest_box_around_all(parts: list[Box]) -> None:
    union = set().union(*map(pixels, parts))
    for axis, (low, high) in enumerate(boxes.hull(parts)):
        assert low == min(p[axis] for p in union)
        assert high == max(p[axis] for p in union) + 1


@given(st.lists(boxes_2d, max_size=5))
def test_merged_boxes_cover_all_and_do_not_overlap(parts: list[Box]) -> None:
    merged = boxes.merge(parts)
    assert all(any(boxes.contains(m, part) for m in merged) for part in parts)
    assert all(boxes.intersect(a, b) is None for a, b in itertools.combinations(merged, 2))


@given(st.tuples(st.integers(1, 30), st.integers(1, 30)), st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_a_grid_covers_every_pixel_once(extents: tuple[int, int], steps: tuple[int, int]) -> None:
    tiles = list(boxes.grid(extents, steps))
    assert len(tiles) == boxes.tiles_in(extents, steps)
    assert sum(map(boxes.volume, tiles)) == extents[0] * extents[1]
    assert set().union(*map(pixels, tiles)) == pixels(boxes.full(extents))


@pytest.mark.parametrize(
    ("interval", "extent", "clipped"),
    [((-2, 3), 5, (0, 3)), ((4, 9), 5, (4, 5)), ((7, 9), 5, (0, 0)), ((-4, 0), 5, (0, 0))],
)
def test_clip(interval: tuple[int, int], extent: int, clipped: tuple[int, int]) -> None:
    assert boxes.clip(interval, extent) == clipped
