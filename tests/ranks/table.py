"""The networks of the table, each over several ranks."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from streamingcnn import Partition, StreamingModule
from streamingcnn.errors import UnsupportedModuleError

from .case import Case, worst

if TYPE_CHECKING:
    from tests.networks import Network


def table(names: list[str]) -> Iterator[Case]:
    """Every network of the table, divided along one axis after the other; into a grid where there are four ranks."""
    from tests.networks import NETWORKS  # with MONAI, two seconds that the other tasks do not need

    chosen = [network for network in NETWORKS if not names or network.name in names]
    return (divided(k, network) for k, network in enumerate(chosen))


def divided(k: int, network: Network) -> Case:
    """A network over the ranks; its number says along which axes, with which weights, batch and tile."""
    ranks, space = dist.get_world_size(), len(network.image) - 1
    batch, tile = network.cases()[k % len(network.cases())]
    axes, parts = [k % space], [ranks]
    if ranks == 4 and space > 1:
        axes, parts = [(k + 1) % space, k % space], [2, 2]
    weights = [(1, 5, 2, 3)[:count] for count in parts] if k % 3 == 0 else None
    torch.manual_seed(k)
    module = network.make()
    image, more = network.inputs(batch)
    extents = "x".join(map(str, network.image[1:]))
    case: Case = {"case": f"{network.name}-{batch}-{tile} {extents} on axes {axes} in {(*parts,)}, weights {weights}"}
    try:
        net = StreamingModule(module, tile=tile, partition=Partition(None, axes, parts, weights, timeout=60))
        return {**case, "error": worst(copy.deepcopy(module), net, image, **more)}
    except UnsupportedModuleError as error:
        return {**case, "refused": str(error)}
