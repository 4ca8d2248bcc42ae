"""Compiled tiles: the same numbers, and the same without a compiler."""

from __future__ import annotations

import shutil
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.utils import fresh_cache

from streamingcnn import StreamingModule

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "cl"))), reason="torch.compile needs a C++ compiler"
)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.GELU(), nn.Conv2d(4, 3, 3, padding=1, bias=False)
    return nn.Sequential(*layers).double().eval()


def step(net: nn.Module, x: Tensor) -> list[Tensor]:
    """The result, and the gradients of the image and of every parameter."""
    net.zero_grad()
    x = x.detach().requires_grad_()
    y = net(x)
    y.square().sum().backward()
    return [t.detach().clone() for t in (y, x.grad, *(p.grad for p in net.parameters())) if t is not None]


@needs_compiler
@pytest.mark.timeout(600)
def test_compiled_tiles_are_exact() -> None:
    """16 tiles, of which the four in the middle share one program; the others run as they are."""
    net, x = network(), torch.randn(1, 2, 64, 64, dtype=torch.float64)
    streamed = StreamingModule(net, tile=16, stored=[], compile=True)
    plain = step(net, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        first, second = step(streamed, x), step(streamed, x)
    (runner,) = streamed._runners.values()
    assert runner.compiler is not None and runner.compiler.works
    assert len(runner.compiler._known) == 2, "one program for forward and one for backward"
    for one, other in zip(plain, first, strict=True):
        assert (one - other).norm() <= 1e-12 * one.norm()
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_without_a_compiler_tiles_run_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    net, x = network(), torch.randn(1, 2, 60, 60, dtype=torch.float64)
    streamed = StreamingModule(net, tile=15, stored=[], compile=True)
    with fresh_cache(), pytest.warns(UserWarning, match="torch.compile does not work here, so tiles run uncompiled"):
        got = step(streamed, x)
    for one, other in zip(step(net, x), got, strict=True):
        assert (one - other).norm() <= 1e-12 * one.norm()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(streamed, x)
