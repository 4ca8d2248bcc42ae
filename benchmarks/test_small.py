"""Small cases for every day: `pytest benchmarks` times a step and checks that all ways do the same work."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.accuracy.__main__ import Case, errors
from benchmarks.measure import Measured, Run, read_csv, step, summarise, write_csv
from benchmarks.memory_vs_resolution import __main__ as climb
from benchmarks.networks import WAYS, prepare
from benchmarks.pages import fill
from benchmarks.peers.__main__ import speed
from benchmarks.peers.cases import answer
from benchmarks.plan.__main__ import Ask, asks, predictions, smallest, speeds
from streamingcnn.memory import LiveBytes

SMALL = {
    "resnet18": ((1, 3, 256, 256), 128),
    "unet3d": ((1, 1, 32, 32, 32), 16),
    "conv7x7": ((1, 3, 512, 512), 128),
}


def _gradients(network: str, way: str) -> list[Tensor]:
    shape, tile = SMALL[network]
    net, forward = prepare(network, way, tile)
    net.double()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return list(torch.autograd.grad(forward(x).square().mean(), list(net.parameters())))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("network", SMALL)
def test_step(benchmark: Any, network: str, way: str) -> None:
    shape, tile = SMALL[network]
    net, forward = prepare(network, way, tile)
    x = torch.randn(shape)

    def once() -> None:
        net.zero_grad(set_to_none=True)
        forward(x).mean().backward()

    with LiveBytes() as live:
        once()
    benchmark.extra_info["live_bytes"] = live.peak
    benchmark.pedantic(once, rounds=3, warmup_rounds=1)
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("way", WAYS[1:])
@pytest.mark.parametrize("network", SMALL)
def test_every_way_has_the_gradient_of_plain(network: str, way: str) -> None:
    plain, other = _gradients(network, "plain"), _gradients(network, way)
    for index, (a, b) in enumerate(zip(plain, other, strict=True)):
        assert (a - b).norm() <= 1e-10 * max(b.norm(), 1e-6 * max(g.norm() for g in plain)), index


def test_rows_of_a_slowed_machine_are_dropped() -> None:
    plain, other = Run("conv7x7", (1, 3, 64, 64), "plain"), Run("conv7x7", (1, 3, 64, 64), "checkpoint")
    one = step(plain)
    assert one.seconds is not None and one.live_bytes == summarise([one])[0].live_bytes
    results = [
        replace(one, run=run, round=number, seconds=seconds, product_seconds=product)
        for number, run, seconds, product in [
            (0, plain, 2.0, 1.0),
            (0, other, 4.0, 1.0),
            (1, plain, 1.0, 1.2),  # fast, but the machine was not itself: dropped
            (1, other, 3.0, 1.05),
        ]
    ]
    rows = summarise(results)
    assert [row.seconds for row in rows] == [2.0, 3.0]
    assert [row.ratio for row in rows] == [1.0, 1.5]
    assert rows[1].ratio_spread == (2.0, 2.0)
    assert [row.time for row in rows] == ["2.00 s", "3.00 s"]
    busy = [replace(result, product_seconds=2.0) if result.run == other else result for result in results]
    assert [row.time for row in summarise(busy)] == ["2.00 s", "~3.00 s"]


def test_what_did_not_end_says_why() -> None:
    plain, other = Run("conv7x7", (1, 3, 64, 64), "plain"), Run("conv7x7", (1, 3, 64, 64), "checkpoint")
    rows = summarise([Measured(plain, 0, ended="> 60 s"), replace(step(other), round=0)])
    assert rows[0].time == "> 60 s"
    assert (rows[1].ratio, rows[1].live_ratio) == (None, None)


def test_figures_go_into_their_places(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "a\n<!-- figure: one: by a command -->\nold\n<!-- /figure -->\nb\n<!-- figure: one-more -->\n<!-- /figure -->\n"
    )
    fill(page, "one", "new\\1\n")
    fill(page, "one", "newer\n")
    assert page.read_text().startswith("a\n<!-- figure: one: by a command -->\n\nnewer\n\n<!-- /figure -->\nb\n")
    assert page.read_text().endswith("<!-- figure: one-more -->\n<!-- /figure -->\n")
    with pytest.raises(ValueError, match="three"):
        fill(page, "three", "")


def test_budgets_are_kept_and_judged() -> None:
    plain = Run("conv7x7", (1, 3, 256, 256), "plain")
    least = smallest(plain)
    given = replace(plain, way="streamed", memory=str(least), asked="35% of plain")
    rows = summarise([step(plain), step(given)])
    assert rows[1].predicted_bytes is not None and rows[1].live_bytes is not None
    assert rows[1].live_bytes <= rows[1].predicted_bytes <= least
    fast, slow = (replace(rows[1], ratio=ratio) for ratio in (0.5, 5.0))
    assert "| met |" in predictions({"resnet18": rows})
    assert "| 1.00x | met |" in speeds({"resnet18": [rows[0], fast]})
    assert "| 1.00x | **missed** |" in speeds({"resnet18": [rows[0], slow]})
    assert "**missed**" in predictions(
        {"resnet18": [rows[0], replace(rows[1], predicted_bytes=rows[1].live_bytes - 1)]}
    )
    too_small = step(replace(given, memory="1000"))
    assert too_small.ended.startswith("needs ")
    assert asks(0.2, at_35=1.0, no_limit=0.9) == (Ask(float("inf"), 0.9), Ask(0.35, 1.0), Ask(0.2), Ask(0))


def test_peers_are_judged_by_plain_pytorch_in_float64() -> None:
    found = answer("batch", "streamed", torch.float64)
    assert isinstance(found, dict)
    assert set(found) == {"result", "convolution: weight", "convolution: bias"}
    assert max(found.values()) <= 1e-10
    rounded = answer("batch", "plain", torch.float32)
    assert isinstance(rounded, dict)
    assert 1e-9 < max(rounded.values()) < 1e-4


def test_a_peer_that_is_missing_says_how_to_get_it() -> None:
    if find_spec("lightstream") is not None:
        pytest.skip("lightstream is here")
    assert "benchmarks/peers/README.md" in str(answer("batch", "lightstream", torch.float64))


def test_the_bar_of_peers_asks_for_time_and_bytes() -> None:
    one = step(Run("conv7x7", (1, 3, 64, 64), "plain"))
    row = summarise([one])[0]
    peer = replace(row, run=replace(row.run, way="lightstream", tile=1280), seconds=7.0, live_bytes=1000)
    ours = replace(row, run=replace(row.run, way="streamed"), seconds=1.0, live_bytes=1000)
    assert speed([peer, ours]).endswith("7.0 times as fast at 100% of its live bytes; the bar is 6 times: met.")
    assert "**missed**" in speed([peer, replace(ours, live_bytes=1001)])
    assert "**missed**" in speed([peer, replace(ours, seconds=2.0)])


def test_measurements_are_read_as_they_were_written(tmp_path: Path) -> None:
    run = Run("resnet18", (1, 3, 64, 64), "streamed", "channels_last", None, "4096", "35% of plain", 2)
    seen = [
        Measured(run, 3, "ok", 1.5, 0.002, 10, 20, 11, 1.25),
        Measured(replace(run, tile=32, memory=None, asked=None), 0, "> 60 s"),
    ]
    write_csv(seen, tmp_path / "seen.csv")
    assert read_csv(tmp_path / "seen.csv") == seen


def test_streaming_is_about_as_accurate_as_plain() -> None:
    streamed, plain = errors(Case("unet3d", "", (1, 1, 24, 24, 24), 12))
    assert len(streamed) == len(plain) == 38 and 1e-8 < median(plain) < 1e-5
    assert 0.2 < median(a / b for a, b in zip(streamed, plain, strict=True)) < 3


def test_a_way_that_fails_is_not_tried_on_larger_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(climb, "ways_of", lambda network: [("plain", None)])
    layer = climb.Network("a convolution", "conv7x7")
    results = climb.climbed(layer, (64, 8192, 16384), rounds=1, limit=100, gib=1.5, threads=1)
    assert [(each.run.shape[-1], each.ended) for each in results] == [(64, "ok"), (8192, "out of memory")]
    lines = climb.table(layer, results).splitlines()
    assert lines[0] == "| image | plain |" and lines[3] == "| 8192 x 8192 | out of memory |"
    assert lines[2].startswith("| 64 x 64 | ") and "iB, " in lines[2]
