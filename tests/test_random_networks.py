"""Random chains and graphs of rules, random sizes and tilings: streamed is plain, to the project's bound."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from streamingcnn import StreamingModule
from streamingcnn.comparison import compare

BOUND = 1e-10


class Sampled(nn.Module):
    """Interpolation as a layer."""

    def __init__(self, factor: float, mode: str) -> None:
        super().__init__()
        self.factor, self.mode = factor, mode

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=self.factor, mode=self.mode)


class Branches(nn.Module):
    """Two ways from one map, added or concatenated where their sizes meet."""

    def __init__(self, left: nn.Module, right: nn.Module, joined: str) -> None:
        super().__init__()
        self.left, self.right, self.joined = left, right, joined

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.left(x), self.right(x)
        size = [min(m, n) for m, n in zip(a.shape[2:], b.shape[2:], strict=True)]
        index = (slice(None), slice(None), *(slice(0, s) for s in size))
        a, b = a[index], b[index]
        return a + b if self.joined == "add" else torch.cat([a, b], 1)[:, ::2]


CONV = {1: nn.Conv1d, 2: nn.Conv2d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d}
NORM = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d}
NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.GroupNorm)
MAX, AVG = {1: nn.MaxPool1d, 2: nn.MaxPool2d}, {1: nn.AvgPool1d, 2: nn.AvgPool2d}


@st.composite
def layers(draw: st.DrawFn, space: int, channels: int, normalise: bool) -> nn.Module:
    kinds = ["conv", "conv", "conv", "transposed", "max", "avg", "act", "sample"]
    kind = draw(st.sampled_from(kinds + ["instance", "group"] * normalise))
    if kind == "conv":
        kernel, mode = draw(st.integers(1, 4)), draw(st.sampled_from(["zeros", "zeros", "reflect", "circular"]))
        return CONV[space](
            channels, channels, kernel,
            stride=draw(st.integers(1, 3)), padding=draw(st.integers(0, min(kernel, 2))), padding_mode=mode,
            dilation=draw(st.integers(1, 2)), groups=draw(st.sampled_from([1, channels])),
        )  # fmt: skip
    if kind == "transposed":
        return TRANSPOSED[space](channels, channels, draw(st.integers(1, 4)), stride=draw(st.integers(1, 3)))
    if kind in ("max", "avg"):
        kernel = draw(st.integers(1, 3))
        pool = MAX if kind == "max" else AVG
        return pool[space](
            kernel, draw(st.integers(1, 3)), draw(st.integers(0, kernel // 2)), ceil_mode=draw(st.booleans())
        )
    if kind == "instance":
        return NORM[space](channels, affine=True)
    if kind == "group":
        return nn.GroupNorm(2, channels)
    if kind == "sample":
        mode = draw(st.sampled_from(["nearest", "nearest-exact", {1: "linear", 2: "bilinear"}[space]]))
        return Sampled(draw(st.sampled_from([0.6, 1.5, 2.0])), mode)
    return draw(st.sampled_from([nn.SiLU(), nn.GELU(), nn.PReLU(channels), nn.Tanh()]))


@st.composite
def networks(draw: st.DrawFn, space: int) -> nn.Module:
    """A chain of layers and branches with at most one normalisation.

    A layer between two normalisations has parameters whose true gradient is 0 but for eps; the relative error of
    what is left is rounding noise in plain PyTorch too (1.1e-10 was seen), and says nothing.
    """
    channels = 4
    parts: list[nn.Module] = []
    normalised = False
    for _ in range(draw(st.integers(1, 4))):
        part = draw(layers(space, channels, not normalised))
        normalised |= isinstance(part, NORMS)
        if draw(st.integers(0, 3)) == 0:
            other = draw(layers(space, channels, not normalised))
            normalised |= isinstance(other, NORMS)
            part = Branches(part, other, draw(st.sampled_from(["add", "cat"])))
        parts.append(part)
    return nn.Sequential(*parts)


def runs(net: nn.Module, x: Tensor) -> bool:
    """Whether plain PyTorch takes the network at this size, and leaves something to look at."""
    try:
        y = copy.deepcopy(net)(x)
    except (RuntimeError, ValueError):
        return False
    # One pixel has no statistics, and the gradient of a normalisation over a few is all noise.
    return min(y.shape) > 0 and y[0, 0].numel() > 8 and bool(torch.isfinite(y).all())


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
@given(st.data())
def test_streamed_is_plain(data: st.DataObject) -> None:
    space = data.draw(st.sampled_from([1, 2]), label="space")
    net = data.draw(networks(space), label="network").double()
    size = [data.draw(st.integers(14, 34), label="size") for _ in range(space)]
    torch.manual_seed(0)
    x = torch.randn(data.draw(st.integers(1, 2)), 4, *size, dtype=torch.float64)
    if not runs(net, x):
        return
    tile = data.draw(st.integers(1, 20), label="tile")
    rows = compare(copy.deepcopy(net), StreamingModule(net, tile=tile), x)
    worst = max(rows, key=lambda row: row.error)
    assert worst.error <= BOUND, f"{worst} of {net} at {tuple(x.shape)}, tile {tile}: {worst.error:.1e}"
