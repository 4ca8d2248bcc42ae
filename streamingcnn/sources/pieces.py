"""Decoded pieces of a file (the tiles or strips of a TIFF), the last used of them kept, by bytes.

A tile of the network and its neighbour read the same tiles of the file: their halos overlap. What is kept is bounded,
and goes with the handle of its process.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import numpy.typing as npt

__all__ = ["Pieces"]


class Pieces:
    """A bounded cache of arrays; several threads may use it.

    >>> import numpy as np
    >>> pieces = Pieces(limit=100)
    >>> for k in range(20):
    ...     _ = pieces.get(k, lambda: np.zeros(10, np.uint8))
    >>> pieces.bytes
    100

    Args:
        limit: the bytes that are kept; a piece that is larger is given and not kept.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self._kept: OrderedDict[Hashable, npt.NDArray[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """A piece, made if it is not kept; two threads that ask at once may both make it."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        piece = make()
        with self._lock:
            if key not in self._kept:
                self._kept[key] = piece
                self.bytes += piece.nbytes
            while self.bytes > self.limit:
                self.bytes -= self._kept.popitem(last=False)[1].nbytes
        return piece
