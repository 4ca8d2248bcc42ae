"""The states of the generators that a network may draw from, as a checkpoint can hold them."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

__all__ = ["generators", "set_generators"]


def generators() -> dict[str, Any]:
    """The states of torch's, NumPy's and Python's generators.

    >>> state = generators()
    >>> first = torch.rand(2), np.random.rand(), random.random()
    >>> set_generators(state)
    >>> torch.equal(first[0], torch.rand(2)), (np.random.rand(), random.random()) == first[1:]
    (True, True)
    """
    kind, keys, *rest = np.random.get_state(legacy=True)
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": [version, list(internal), gauss],
    }


def set_generators(state: dict[str, Any]) -> None:
    """Put back what :func:`generators` gave."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
