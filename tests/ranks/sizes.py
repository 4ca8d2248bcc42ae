"""The networks of the table at other sizes, each over several ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from streamingcnn.comparison import run_step

from .case import Case
from .table import divided

if TYPE_CHECKING:
    from tests.networks import Network

#: By number of axes: shorter than many receptive fields, primes, unlike each other; some ranks have no pixels of them.
SIZES: dict[int, tuple[tuple[int, ...], ...]] = {1: ((17,),), 2: ((17, 61), (61, 17)), 3: ((15, 33, 9),)}


def sizes(names: list[str]) -> Iterator[Case]:
    """Every network of the table that plain PyTorch can run at such a size: 17, 17 x 61 and 15 x 33 x 9."""
    from tests.networks import NETWORKS

    for k, network in enumerate(each for each in NETWORKS if not names or each.name in names):
        given = SIZES[len(network.image) - 1]
        resized = resize(network, given[k // 2 % len(given)])
        try:
            image, more = resized.inputs(1)
            run_step(resized.make(), image, **more)
        except (
            RuntimeError,
            ValueError,
            AssertionError,
            IndexError,
        ) as error:  # of plain PyTorch: made for another size
            yield {"case": network.name, "unfit": str(error).splitlines()[0]}
            continue
        yield divided(k, resized)


def resize(network: Network, extents: tuple[int, ...]) -> Network:
    """The network at another size of its image, and of further inputs that are as large: targets of a loss."""
    return replace(
        network,
        image=(network.image[0], *extents),
        more=lambda batch: _resized(network.more(batch), network.image[1:], extents),
    )


def _resized(more: dict[str, Any], old: tuple[int, ...], new: tuple[int, ...]) -> dict[str, Any]:
    """Maps of the old extents cut off, or repeated, to the new ones."""
    made: dict[str, Any] = pytree.tree_map_only(Tensor, partial(_fitted, old=old, new=new), more)
    return made


def _fitted(tensor: Tensor, old: tuple[int, ...], new: tuple[int, ...]) -> Tensor:
    if tuple(tensor.shape[-len(old) :]) != old:
        return tensor
    for axis, (before, after) in enumerate(zip(old, new, strict=True)):
        tensor = tensor.index_select(axis - len(old), torch.arange(after) % before)
    return tensor
