"""Layers joined to a graph: every layer reads maps made before it, and every network is one that PyTorch takes."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tests.fuzz.borders import borders
from tests.fuzz.draw import Draw, chance
from tests.fuzz.layers import JOINS, LAYERS, NORMS, fits, kinds

#: Pixels along an axis of the image, by number of axes.
SIZES = {1: (9, 40), 2: (9, 30), 3: (7, 12)}
#: No map of a random network has more numbers than this.
LARGEST = 60_000


class Wired(nn.Module):
    """Layers, the maps that each of them reads, and the maps that are results."""

    def __init__(self, layers: list[nn.Module], reads: list[tuple[int, ...]], results: tuple[int, ...]) -> None:
        super().__init__()
        self.layers, self.reads, self.results = nn.ModuleList(layers), reads, results

    def forward(self, x: Tensor) -> Any:
        maps = [x]
        for layer, reads in zip(self.layers, self.reads, strict=True):
            maps.append(layer(*(maps[k] for k in reads)))
        found = tuple(maps[k] for k in self.results)
        return found if len(found) > 1 else found[0]


@dataclass
class Example:
    """A network, an image, and two ways to cut it."""

    net: Wired
    kinds: list[str]
    image: Tensor
    tile: tuple[int, ...]
    other: tuple[int, ...] | str
    norms: int
    borders: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        layers = enumerate(zip(self.kinds, self.net.reads, strict=False), 1)
        wires = ", ".join(f"{k}: {kind} of {reads}" for k, (kind, reads) in layers)
        how = f"results {self.net.results}, image {tuple(self.image.shape)}, tiles {self.tile} and {self.other}"
        return f"{self.net}\n{wires}\n{how}"


def example(draw: Draw) -> Example:
    """Draw a network of one to six layers, an image for it and its tiles."""
    torch.manual_seed(draw.integer(0, 9))
    space = draw.one_of((1, 2, 2, 2, 3))
    sizes = tuple(draw.integer(*SIZES[space]) for _ in range(space))
    image = torch.randn(draw.integer(1, 2), draw.integer(1, 4), *sizes, dtype=torch.float64)
    if space == 2 and chance(draw, 4):
        image = image.to(memory_format=torch.channels_last)
    names = kinds(space)
    maps, layers, reads, chosen = [image], list[nn.Module](), list[tuple[int, ...]](), list[str]()
    seen: set[str] = set()
    for _ in range(draw.integer(1, 8)):
        kind = draw.one_of(names)
        read = [len(maps) - 1 if not chance(draw, 4) else draw.integer(0, len(maps) - 1)]
        if kind in JOINS:
            read.append(draw.integer(0, len(maps) - 1))
        x = maps[read[0]]
        if not fits(kind, tuple(x.shape)):
            continue
        if kind == "together" and x.shape[1] != maps[read[1]].shape[1]:
            read[1] = read[0]
        layer = LAYERS[kind](draw, space, x.shape[1]).double()
        made = _run(layer, [maps[k] for k in read])
        if made is None:
            continue
        seen |= borders(layer, kind, x.shape[2:], made.shape[2:])
        seen |= {"a map read twice by one layer"} if len(read) > 1 and read[0] == read[1] else set()
        maps.append(made)
        layers.append(layer)
        reads.append(tuple(read))
        chosen.append(kind)
    used = {k for each in reads for k in each}
    seen |= {"a map read by two layers"} if sum(map(len, reads)) > len(used) else set()
    last = len(maps) - 1
    results: tuple[int, ...] = (last,)
    if last > 1 and chance(draw, 5):
        results = tuple(sorted({last, draw.integer(1, last)}))
        seen |= {"two results"} if len(results) == 2 else set()
    net = Wired(layers or [nn.Identity()], reads or [(0,)], results if layers else (1,))
    tile = tuple(draw.integer(1, size + 3) for size in sizes)
    other: tuple[int, ...] | str = tuple(draw.integer(1, size) for size in sizes)
    if chance(draw, 12):
        other = "the smallest plan"
    elif chance(draw, 6) and not any(kind in NORMS for kind in chosen):
        other = "shared tiles"  # with norms, what must cancel is too large to tell
    if layers and chance(draw, 6):
        parameters = list(net.parameters())
        if parameters:
            parameters[draw.integer(0, len(parameters) - 1)].requires_grad_(False)
            seen.add("a frozen parameter")
    return Example(
        net, chosen, image, tile, other, sum(kind in NORMS for kind in chosen), seen | _of_tiles(tile, sizes, image)
    )


def _run(layer: nn.Module, maps: list[Tensor]) -> Tensor | None:
    """What plain PyTorch makes of it; None where it takes no such maps, or leaves nothing to look at."""
    try:
        with torch.no_grad():
            made: Tensor = copy.deepcopy(layer)(*maps)
    except (RuntimeError, ValueError, NotImplementedError):
        return None
    ok = 0 < made.numel() <= LARGEST and bool(torch.isfinite(made).all()) and float(made.abs().max()) < 1e4
    return made if ok else None


def _of_tiles(tile: tuple[int, ...], sizes: tuple[int, ...], image: Tensor) -> set[str]:
    pairs = list(zip(tile, sizes, strict=True))
    cases = {
        "tiles of one pixel": any(t == 1 for t in tile),
        "a tile larger than the image": all(t >= n for t, n in pairs),
        "a last tile that is smaller": any(t < n and n % t for t, n in pairs),
        "tiles of unequal sides": len(set(tile)) > 1,
        "a batch of two": image.shape[0] == 2,
        "one channel": image.shape[1] == 1,
        "channels last in memory": image.dim() == 4 and image.shape[1] > 1 and not image.is_contiguous(),
    }
    return {name for name, holds in cases.items() if holds}
