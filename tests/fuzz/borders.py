"""The cases at the border of a map that a layer meets, by name; those of tiles and graphs are in networks.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

#: Every case that a layer can meet; those of tiles and graphs are in networks.py.
WINDOWS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def borders(layer: nn.Module, kind: str, before: Sequence[int], after: Sequence[int]) -> set[str]:
    """The names of the cases that a layer meets between maps of these sizes."""
    found = {
        "a result of one pixel along an axis": 1 in after and 1 not in before,
        "a map of one pixel along an axis": 1 in before,
    }
    if isinstance(layer, WINDOWS):
        found |= _windows(layer, before, after)
    if isinstance(layer, TRANSPOSED):
        pairs = list(zip(layer.stride, layer.kernel_size, layer.dilation, strict=True))
        found |= {
            "transposed: pixels that nothing reaches": any(s > (k - 1) * d + 1 for s, k, d in pairs),
            "transposed: rows behind the last": any(map(bool, layer.output_padding)),
            "transposed: the border cut off": any(map(bool, layer.padding)),
            "transposed: dilated": any(d > 1 and k > 1 for _, k, d in pairs),
        }
    if kind.endswith("_sampling") or kind in ("nearest", "nearest_exact"):
        how: dict[str, Any] = layer.how  # type: ignore[assignment]
        found |= {
            "sampling: fewer pixels": any(b < a for a, b in zip(before, after, strict=True)),
            "sampling: to a given size": "size" in how,
            "sampling: corners aligned": how.get("align_corners") is True,
            "sampling: corners not aligned": how.get("align_corners") is False,
        }
    if kind == "pad":
        amounts: list[int] = layer.amounts  # type: ignore[assignment]
        found |= {
            f"padding: {layer.padding_mode}": any(a > 0 for a in amounts),
            "padding: negative": any(a < 0 for a in amounts),
            "padding: unequal sides": any(amounts[k] != amounts[k + 1] for k in range(0, len(amounts), 2)),
        }
    return {name for name, holds in found.items() if holds}


def _windows(layer: Any, before: Sequence[int], after: Sequence[int]) -> dict[str, bool]:
    space = len(before)

    def per_axis(value: Any) -> tuple[int, ...]:
        return tuple(value) if isinstance(value, (tuple, list)) else (value,) * space

    kernel, stride, dilation = (per_axis(getattr(layer, n, 1)) for n in ("kernel_size", "stride", "dilation"))
    same = layer.padding == "same"
    reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
    padding = tuple((r - 1) // 2 for r in reach) if same else per_axis(layer.padding)
    axes = list(zip(before, after, kernel, stride, dilation, padding, reach, strict=True))
    ends = [((m - 1) * s + r, n, p) for n, m, _, s, _, p, r in axes]
    return {
        "window: pixels that nothing reads behind the last": any(end < n + p for end, n, p in ends),
        "window: over the far border (ceil_mode)": not same and any(end > n + 2 * p for end, n, p in ends),
        "window: stride over the kernel": any(s > r for *_, s, _, _, r in axes),
        "window: even kernel": any(k % 2 == 0 for _, _, k, *_ in axes),
        "window: dilated": any(d > 1 and k > 1 for _, _, k, _, d, *_ in axes),
        "window: padding as wide as the kernel": any(p >= r and p > 0 for *_, p, r in axes),
        "window: wider than the map": any(r > n for n, *_, r in axes),
        "window: unequal padding ('same', even)": same and any(r % 2 == 0 for *_, r in axes),
        "window: grouped": getattr(layer, "groups", 1) > 1,
        "window: border not counted": getattr(layer, "count_include_pad", True) is False and any(padding),
        "window: reflected": getattr(layer, "padding_mode", "") == "reflect" and any(padding),
        "window: replicated": getattr(layer, "padding_mode", "") == "replicate" and any(padding),
        "window: circular": getattr(layer, "padding_mode", "") == "circular" and any(padding),
    }
