"""The table of networks that must stream exactly: one row each, in groups, with what the group is about.

A row is a name, a function that builds a plain module, the shape (C, *space) of an image, and what it takes
to be tested: tilings, further inputs. Sizes are odd wherever the network allows. A row that once failed
stays.
"""

from __future__ import annotations

from . import (
    architectures,
    forwards,
    losses,
    noise,
    norms,
    parameters,
    pixels,
    resampling,
    tensors,
    whole_maps,
    windows,
)
from .network import Network, Tile

__all__ = ["BY_NAME", "NETWORKS", "Network", "Tile"]

NETWORKS = [
    *windows.ROWS,
    *resampling.ROWS,
    *pixels.ROWS,
    *architectures.BLOCKS,
    *norms.ROWS,
    *parameters.COMPUTED,
    *noise.ROWS,
    *whole_maps.HEADS,
    *losses.ROWS,
    *whole_maps.OPERATIONS,
    *tensors.ROWS,
    *parameters.UNUSUAL,
    *forwards.ROWS,
    *architectures.MONAI,
]

BY_NAME = {network.name: network for network in NETWORKS}
