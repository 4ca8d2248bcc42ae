"""Every kind of layer that has a rule, with its parameters drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import EllipsisType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.fuzz.draw import Draw, chance

CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
MAX, AVG = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
BATCH, INSTANCE = (
    (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)
MODES = ("zeros", "reflect", "replicate", "circular")


class Function(nn.Module):
    """A function of maps as a layer; its parts are submodules, and what was drawn can be read."""

    def __init__(self, run: Callable[..., Tensor], said: str = "", **parts: nn.Module) -> None:
        super().__init__()
        self.run, self.said = run, said
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, *maps: Tensor) -> Tensor:
        return self.run(self, *maps)

    def extra_repr(self) -> str:
        return self.said


def filters(draw: Draw, groups: int) -> int:
    """A number of channels that the groups divide; often four or more, which a pixel shuffle needs."""
    return draw.one_of([n for n in (1, 2, 3, 4, 4, 4, 6, 8, 8, 16) if n % groups == 0] or [groups])


def conv(draw: Draw, space: int, channels: int) -> nn.Module:
    kernel = tuple(draw.integer(1, 4) for _ in range(space))
    stride = tuple(draw.integer(1, 3) for _ in range(space))
    mode = draw.one_of((*MODES, "same"))
    padding: Any = tuple(draw.integer(0, k) for k in kernel)
    if mode == "same":
        padding, stride, mode = "same", (1,) * space, draw.one_of(MODES)
    groups = draw.one_of([g for g in range(1, channels + 1) if channels % g == 0])
    out = filters(draw, groups)
    dilation = tuple(draw.integer(1, 2) for _ in range(space))
    bias = not chance(draw, 3)
    make: Callable[..., nn.Module] = CONV[space - 1]
    return make(channels, out, kernel, stride, padding, dilation, groups=groups, bias=bias, padding_mode=mode)


def conv_transpose(draw: Draw, space: int, channels: int) -> nn.Module:
    kernel = tuple(draw.integer(1, 4) for _ in range(space))
    stride = tuple(draw.integer(1, 3) for _ in range(space))
    dilation = draw.integer(1, 2)
    padding = tuple(draw.integer(0, k - 1) for k in kernel)
    extra = tuple(draw.integer(0, max(s, dilation) - 1) for s in stride)
    groups = draw.one_of([1, channels])
    out = filters(draw, groups)
    make: Callable[..., nn.Module] = TRANSPOSED[space - 1]
    return make(channels, out, kernel, stride, padding, extra, groups=groups, dilation=dilation)


def max_pool(draw: Draw, space: int, channels: int) -> nn.Module:
    kernel = draw.integer(1, 4)
    stride, padding = draw.integer(1, 3), draw.integer(0, kernel // 2)
    return MAX[space - 1](kernel, stride, padding, draw.integer(1, 2), ceil_mode=chance(draw, 2))


def avg_pool(draw: Draw, space: int, channels: int) -> nn.Module:
    kernel = draw.integer(1, 4)
    stride, padding = draw.integer(1, 3), draw.integer(0, kernel // 2)
    return AVG[space - 1](kernel, stride, padding, ceil_mode=chance(draw, 2), count_include_pad=chance(draw, 2))


def interpolate(modes: tuple[str, str, str]) -> Callable[[Draw, int, int], nn.Module]:
    def build(draw: Draw, space: int, channels: int) -> nn.Module:
        how: dict[str, Any] = {"mode": modes[space - 1]}
        if "linear" in how["mode"] or "cubic" in how["mode"]:
            how["align_corners"] = chance(draw, 2)
        if chance(draw, 3):
            how["size"] = tuple(draw.integer(1, 24 if space < 3 else 9) for _ in range(space))
        else:
            how["scale_factor"] = draw.one_of((0.5, 0.7, 1.3, 1.5, 2.0))

        def run(_: Any, x: Tensor) -> Tensor:
            result = F.interpolate(x, **how)
            kept = [a == b for a, b in zip(x.shape[2:], result.shape[2:], strict=True)]
            wrong = any(kept) if "nearest" in how["mode"] else all(kept) and "cubic" in how["mode"]
            if wrong and how.get("scale_factor", 1.0) != 1.0:
                # Torch moves pixels by the factor on the way forward and not on the way back.
                raise ValueError("an axis keeps its size under a factor")
            return result

        layer = Function(run, str(how))
        layer.how = how  # type: ignore[assignment]
        return layer

    return build


def pad(draw: Draw, space: int, channels: int) -> nn.Module:
    mode = draw.one_of(("constant", "reflect", "replicate", "circular"))
    low = -2 if mode == "constant" else 0
    amounts = [draw.integer(low, 4) for _ in range(2 * space)]
    value = draw.one_of((0.0, 1.5)) if mode == "constant" else None
    layer = Function(lambda _, x: F.pad(x, amounts, mode, value), f"{amounts} {mode} {value}")
    layer.padding_mode, layer.amounts = mode, amounts  # type: ignore[assignment]
    return layer


ACTIVATIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    F.silu, F.gelu, torch.tanh, torch.sigmoid, F.softplus, F.elu, F.relu, torch.sin,
    lambda x: x * 0.5 + 1, lambda x: x.clamp(-1, 1),
)  # fmt: skip


def pointwise(draw: Draw, space: int, channels: int) -> nn.Module:
    k = draw.integer(0, len(ACTIVATIONS) - 1)
    return Function(lambda _, x: ACTIVATIONS[k](x), f"activation {k}")


def written(draw: Draw, space: int, channels: int) -> nn.Module:
    """Activations in place, on a value of their own."""
    k = draw.integer(0, 2)
    return Function(
        lambda _, x: (x * 1.5).add_(0.1) if k == 0 else F.relu(x + 0.1, True) if k == 1 else (x - 1).tanh_()
    )


def prelu(draw: Draw, space: int, channels: int) -> nn.Module:
    return nn.PReLU(draw.one_of((1, channels)))


def channels_last(draw: Draw, space: int, channels: int) -> nn.Module:
    """One to three layers over the last dimension, as ConvNeXt has them."""
    parts: list[nn.Module] = []
    for _ in range(draw.integer(1, 3)):
        kind = draw.one_of(("linear", "layer_norm", "act"))
        width = (
            channels
            if not parts
            else next((p.out_features for p in reversed(parts) if isinstance(p, nn.Linear)), channels)
        )
        if kind == "linear":
            parts.append(nn.Linear(width, draw.integer(1, 6)))
        else:
            parts.append(nn.LayerNorm(width) if kind == "layer_norm" and width > 1 else nn.SiLU())
    last = (0, *range(2, space + 2), 1)
    first = (0, space + 1, *range(1, space + 1))
    return Function(lambda net, x: net.parts(x.permute(last)).permute(first), parts=nn.Sequential(*parts))


def batch_norm(draw: Draw, space: int, channels: int) -> nn.Module:
    return BATCH[space - 1](channels, momentum=draw.one_of((0.1, None)), affine=not chance(draw, 4))


def frozen_norm(draw: Draw, space: int, channels: int) -> nn.Module:
    norm = BATCH[space - 1](channels)
    with torch.no_grad():
        norm.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
        norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]

    def run(net: Any, x: Tensor) -> Tensor:
        n = net.norm
        return F.batch_norm(x, n.running_mean, n.running_var, n.weight, n.bias, False, 0.0, n.eps)

    return Function(run, "frozen", norm=norm)


def instance_norm(draw: Draw, space: int, channels: int) -> nn.Module:
    return INSTANCE[space - 1](channels, affine=chance(draw, 2), track_running_stats=chance(draw, 4))


def group_norm(draw: Draw, space: int, channels: int) -> nn.Module:
    return nn.GroupNorm(draw.one_of([g for g in range(1, channels + 1) if channels % g == 0]), channels)


def dropout(draw: Draw, space: int, channels: int) -> nn.Module:
    return nn.Dropout(draw.one_of((0.3, 0.6, 0.0)))


def softmax(draw: Draw, space: int, channels: int) -> nn.Module:
    if channels % 2 == 0:
        return Function(lambda _, x: x.softmax(1), "softmax over channels")
    return Function(lambda _, x: x.softmax(1) + 0.1 * x, "softmax over channels + 0.1 x")


def squeeze_excite(draw: Draw, space: int, channels: int) -> nn.Module:
    axes = tuple(range(2, space + 2))
    gate = CONV[space - 1](channels, channels, 1)
    return Function(lambda net, x: x * torch.sigmoid(net.gate(x.mean(axes, keepdim=True))), gate=gate)


def some_channels(draw: Draw, space: int, channels: int) -> nn.Module:
    start, step = draw.integer(0, channels - 1), draw.integer(1, 2)
    return Function(lambda _, x: x[:, start::step], f"[:, {start}::{step}]")


def halves(draw: Draw, space: int, channels: int) -> nn.Module:
    def run(_: Any, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1) if channels % 2 == 0 else (x, x)
        return b if channels % 4 == 0 else a + torch.tanh(b)

    return Function(run, "chunk, b" if channels % 4 == 0 else "chunk, a + tanh(b)")


def crop(draw: Draw, space: int, channels: int) -> nn.Module:
    ends = [(draw.integer(0, 2), draw.integer(0, 2)) for _ in range(space)]
    return Function(
        lambda _, x: x[(..., *(slice(a, x.shape[2 + k] - b) for k, (a, b) in enumerate(ends)))], f"crop {ends}"
    )


def shuffle(draw: Draw, space: int, channels: int) -> nn.Module:
    return nn.PixelShuffle(2)


def unshuffle(draw: Draw, space: int, channels: int) -> nn.Module:
    return nn.PixelUnshuffle(2)


def cut_to_meet(maps: tuple[Tensor, ...]) -> list[Tensor]:
    """The parts of several maps that all of them have."""
    sizes = [min(each) for each in zip(*(m.shape[2:] for m in maps), strict=True)]
    place: tuple[slice | EllipsisType, ...] = (..., *(slice(0, size) for size in sizes))
    return [m if m.shape[2:] == tuple(sizes) else m[place] for m in maps]


def together(draw: Draw, space: int, channels: int) -> nn.Module:
    """Two maps of equal channels: their sum, product or maximum."""
    k = draw.integer(0, 2)
    join = (torch.add, torch.mul, torch.maximum)[k]
    return Function(lambda _, *maps: join(*cut_to_meet(maps)), join.__name__)


def cat(draw: Draw, space: int, channels: int) -> nn.Module:
    return Function(lambda _, *maps: torch.cat(cut_to_meet(maps), 1), "cat")


Build = Callable[[Draw, int, int], nn.Module]

#: By name, how each kind of layer is drawn.
LAYERS: dict[str, Build] = {
    "conv": conv, "conv_transpose": conv_transpose, "max_pool": max_pool, "avg_pool": avg_pool,
    "nearest": interpolate(("nearest",) * 3), "nearest_exact": interpolate(("nearest-exact",) * 3),
    "linear_sampling": interpolate(("linear", "bilinear", "trilinear")), "pad": pad, "pointwise": pointwise,
    "written": written, "prelu": prelu, "channels_last": channels_last, "batch_norm": batch_norm,
    "frozen_norm": frozen_norm, "instance_norm": instance_norm, "group_norm": group_norm, "dropout": dropout,
    "softmax": softmax, "squeeze_excite": squeeze_excite, "some_channels": some_channels, "halves": halves,
    "crop": crop, "together": together, "cat": cat,
    "cubic_sampling": interpolate(("", "bicubic", "")), "pixel_shuffle": shuffle, "pixel_unshuffle": unshuffle,
}  # fmt: skip

#: What there is for images only.
FLAT = ("cubic_sampling", "pixel_shuffle", "pixel_unshuffle")
#: What is drawn more often than once: it has many cases, or often does not fit.
OFTEN = {
    "conv": 4, "pad": 3, "max_pool": 2, "avg_pool": 2, "conv_transpose": 2, "channels_last": 2, "pixel_shuffle": 3,
    "pixel_unshuffle": 5, "halves": 2, "softmax": 2,
}  # fmt: skip

NORMS = ("batch_norm", "instance_norm", "group_norm")
#: Kinds that join two maps.
JOINS = ("together", "cat")


def kinds(space: int) -> list[str]:
    """The names of the layers to draw from."""
    return [name for name in LAYERS for _ in range(OFTEN.get(name, 1)) if space == 2 or name not in FLAT]


def fits(kind: str, shape: tuple[int, ...]) -> bool:
    """Whether a kind of layer makes sense for a map; torch says the rest."""
    batch, channels, *sizes = shape
    if kind == "instance_norm" and batch == 1:
        # Torch's own gradient is wrong there for a gradient that is not contiguous, such as a permutation's.
        return False
    if kind == "pixel_shuffle":
        return channels % 4 == 0
    if kind == "pixel_unshuffle":
        return all(size % 2 == 0 for size in sizes) and channels <= 8
    if kind in NORMS:
        # One pixel has no statistics, and over a few all is rounding.
        return math.prod(sizes) >= 9
    return True
