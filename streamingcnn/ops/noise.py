"""Dropout whose mask does not depend on the tiling.

One 64-bit seed per forward comes from torch's default generator. The mask at a pixel is an integer hash of (seed,
layer, batch, channel, global coordinates): the same for every tiling, for every number of ranks, and the same
again when a tile is computed again for its gradient. The hash is a sum of one random 32-bit word per axis, then
the finaliser of MurmurHash3, which mixes every input bit into every output bit.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..boxes import Box
from ..graph import GraphBuilder
from .registry import Lowered, lowers
from .rule import Call, Rule, Tile, same_everywhere

aten = torch.ops.aten
Words = npt.NDArray[np.uint64]


def _words(seed: int, layer: int, axis: int, low: int, high: int) -> Tensor:
    """One random 32-bit word per coordinate of an axis (splitmix64 of seed, layer, axis and coordinate)."""
    with np.errstate(over="ignore"):
        key = np.array([(seed ^ (layer * 0x9E3779B97F4A7C15) ^ (axis * 0xD1B54A32D192ED03)) % 2**64], np.uint64)
        for _ in range(2):
            key = _splitmix(key + np.uint64(0x9E3779B97F4A7C15))
        z = _splitmix(key + np.arange(low, high, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return torch.from_numpy((z >> np.uint64(32)).astype(np.uint32).view(np.int32).copy())


def _splitmix(z: Words) -> Words:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def torch_states(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Where torch's own generators stand, from which noise without space is drawn, and the seed of the rest.

    >>> torch.equal(torch_states(torch.device("cpu"))[0], torch.get_rng_state())
    True
    """
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def dropout_mask(
    seed: int,
    layer: int,
    shape: tuple[int, ...],
    axes: tuple[int, ...],
    box: Box,
    p: float,
    device: torch.device | None = None,
) -> Tensor:
    """The boolean mask (True: kept) of a dropout over one box of a map.

    >>> whole = dropout_mask(7, 0, (1, 2, 6, 8), (2, 3), ((0, 6), (0, 8)), 0.5)
    >>> part = dropout_mask(7, 0, (1, 2, 6, 8), (2, 3), ((1, 4), (5, 8)), 0.5)
    >>> bool((whole[:, :, 1:4, 5:8] == part).all())
    True

    Args:
        seed: the 64-bit seed of the forward (``net.last_seed``).
        layer: the number of the dropout in the graph, from 0 in the order of the forward.
        shape: the full shape of the map.
        axes: which of its dimensions are spatial.
        box: the box of the map the mask is for.
        p: the chance of a pixel to be dropped.
        device: where the mask is made; the CPU where left out. It is the same on every device.
    """
    intervals = dict(zip(axes, box, strict=True))
    rank = len(shape)
    total = torch.zeros((1,) * rank, dtype=torch.int32, device=device)
    for dim, extent in enumerate(shape):
        low, high = intervals.get(dim, (0, extent))
        view = [1] * rank
        view[dim] = -1
        total = total + _words(seed, layer, dim, low, high).to(total.device).view(view)
    total.bitwise_xor_((total >> 16) & 0xFFFF).mul_(0x85EBCA6B - 2**32)
    total.bitwise_xor_((total >> 13) & 0x7FFFF).mul_(0xC2B2AE35 - 2**32)
    total.bitwise_xor_((total >> 16) & 0xFFFF)
    return total >= round(p * 2**32) - 2**31 if p < 1 else torch.zeros_like(total, dtype=torch.bool)


@lowers(aten.dropout, aten.native_dropout)
def dropout(graph: GraphBuilder, call: Call) -> Lowered:
    several = call.target.overloadpacket is aten.native_dropout
    (x,) = call.spatial
    p, training = float(call["p"]), call["train"]
    if not training or p == 0.0:
        rule = Rule((same_everywhere(x),), lambda tile: tile.inputs[0], x.axes or (), shift_invariant=True)  # type: ignore[arg-type,return-value]
        same = graph.local(call, rule)
        return (same, None) if several else same
    number, seed = graph.next_noise()
    axes = x.axes or ()

    def compute(tile: Tile) -> Tensor:
        tensor = tile.inputs[0]
        assert tensor is not None
        if p == 1.0:
            return tensor * 0.0
        mask = dropout_mask(int(tile.get(seed)), number, x.shape, axes, tile.box, p, tensor.device)
        return tensor * mask.to(tensor.dtype).mul_(1 / (1 - p))

    value = graph.local(call, Rule((same_everywhere(x),), compute, axes, (seed,), work=300))
    return (value, None) if several else value
