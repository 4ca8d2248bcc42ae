"""The constants behind predicted seconds: how rates follow from what was measured, and that they are measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from streamingcnn.capture import capture
from streamingcnn.plan import calibrate as calibration
from streamingcnn.plan.calibrate import calibrate
from streamingcnn.plan.rates import BUILT_IN_RATES, FEW, SIZES
from streamingcnn.plan.times import Times, cache_file, forget, kind_of, times_of, units_of

LAYOUTS = tuple(BUILT_IN_RATES)


def of_convolution(channels: int, times: Times, space: int = 2) -> tuple[float, float]:
    """Seconds of a 3x3 convolution on a map of 8 MiB together with its result, forward and backward."""
    conv = nn.Conv2d if space == 2 else nn.Conv3d
    graph = capture(conv(channels, channels, 3, padding=1), (torch.empty(1, channels, *[8] * space),), {})
    (node,) = graph.locals.values()
    kind = kind_of(node)
    numbers = np.array([2.0**20])  # of the result; as many again are read
    units = np.array(units_of(node, kind, times))[:, None] * numbers
    ahead, back = times.seconds([kind], 8 * numbers, units, 8 * numbers).flat
    return ahead, back


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", FEW)
def test_a_convolution_takes_what_was_measured_with_few_channels_and_with_many(kind: str, layout: str) -> None:
    few, times = FEW[kind], Times(BUILT_IN_RATES[layout], lanes=16)
    for channels, measured in ((few.channels, few.kind), (few.many_channels, kind)):
        moved = np.array([float(SIZES[1])])
        units = moved * few.intensity(channels, times.lanes)
        both = np.stack([units, units])
        assert times.seconds([kind], moved, both, moved) == pytest.approx(both * times.rate([measured], moved))


def test_channels_are_padded_to_the_lanes_of_the_processor() -> None:
    times = Times(BUILT_IN_RATES["channels_last"], lanes=16)
    eight, sixteen, narrow = (
        of_convolution(8, times),
        of_convolution(16, times),
        of_convolution(8, Times(times.rates)),
    )
    # The same numbers with half the channels are half the multiply-adds, which take as long.
    assert eight == pytest.approx(sixteen, rel=0.35)
    assert all(mine > 1.3 * unpadded for mine, unpadded in zip(eight, narrow, strict=True))


def test_what_is_measured_is_kept_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(calibration, "SIZES", (1 << 14, 1 << 15, 1 << 16, 1 << 17))
    device = torch.device("cpu")
    forget()
    try:
        assert times_of(device).source == "built in"
        measured = calibrate(device, seconds=0.0)
        assert measured.source == str(cache_file(device))
        assert {layout: times_of(device, layout).source for layout in LAYOUTS} == dict.fromkeys(
            LAYOUTS, measured.source
        )
        for rate in measured.rates.values():
            assert all(one > 0 for one in (*rate.forward, *rate.backward))
        cache_file(device).write_text("{}")  # of another version
        forget()
        assert times_of(device).source == "built in"
    finally:
        forget()
