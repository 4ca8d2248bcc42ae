"""A slide of any size: pieces of tissue on glass, rendered tile by tile.

Nine tenths of a real slide are glass, and the pieces on it are sections of one block. A slide of 65536 x 65536 pixels
with 3 % of tissue is nine pieces of 4352 pixels::

    . . . . . . . . .
    . o . . o . . o .        o  a piece: a small slide of its own, drawn from its own seed
    . . . . . . . . .        .  glass: one shade, and a little dust, so that no two tiles of it are quite alike
    . o . . o . . o .
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, sqrt

import numpy as np
from numpy.typing import NDArray

from streamingcnn.synthetic.slides import TILE, Slide, Tiled, make_slide

__all__ = ["OnGlass", "make_large_slide"]

#: Specks of dust in a tile of glass.
_DUST = 24
#: The share of a piece's square that is tissue, about.
_FILLED = 0.75


@dataclass(frozen=True)
class OnGlass(Tiled):
    """Pieces of tissue on glass; :meth:`tiles` renders them.

    Example::

        slide = make_large_slide(seed=0, size=(65536, 65536), tissue=0.03)
        write_slide(slide, Path("large.tif"))

    Attributes:
        size: height and width in pixels, multiples of 256.
        pieces: each a slide and the pixel of its upper left corner, (y, x), multiples of 256.
    """

    size: tuple[int, int]
    pieces: tuple[tuple[Slide, tuple[int, int]], ...]
    seed: int

    def tile(self, row: int, column: int) -> NDArray[np.uint8]:
        """One tile of pixels, (256, 256, 3)."""
        for piece, (y, x) in self.pieces:
            inner = row - y // TILE, column - x // TILE
            if all(0 <= k < count for k, count in zip(inner, piece.grid, strict=True)):
                return piece.tile(*inner)
        white = np.rint(self.pieces[0][0].white * 255).astype(np.uint8)
        made = np.broadcast_to(white, (TILE, TILE, 3)).copy()
        draw = np.random.default_rng([self.seed, row, column])
        made[tuple(draw.integers(0, TILE, (2, _DUST)))] -= draw.integers(1, 9, (_DUST, 1), dtype=np.uint8)
        return made

    def tissue_mask(self, step: int = TILE) -> NDArray[np.bool_]:
        """Which squares of so many pixels hold tissue, (height / step, width / step)."""
        mask = np.zeros([ceil(extent / step) for extent in self.size], bool)
        for piece, corner in self.pieces:
            for top in range(0, piece.size[0], TILE):
                places = np.argwhere(piece.tissue_rows(top, top + TILE)) + np.add(corner, (top, 0))
                mask[tuple((places // step).T)] = True
        return mask


def make_large_slide(seed: int, size: tuple[int, int], tissue: float = 0.03, pieces: int = 9) -> OnGlass:
    """Draw a slide of glass with pieces of tissue on it; the same arguments give the same slide, to the bit.

    Example::

        make_large_slide(seed=0, size=(65536, 65536))

    Args:
        seed: of the pieces and their places.
        size: height and width in pixels of 0.5 um, multiples of 256.
        tissue: the share of the slide that is tissue, about.
        pieces: how many there are.

    Raises:
        ValueError: the size is no such multiple, or the pieces do not fit.
    """
    side = ceil(sqrt(tissue * size[0] * size[1] / pieces / _FILLED) / TILE) * TILE
    columns = ceil(sqrt(pieces))
    rows = ceil(pieces / columns)
    room = size[0] // rows, size[1] // columns
    if any(extent % TILE for extent in size) or side > min(room) or side < 2 * TILE:
        raise ValueError(
            f"{pieces} pieces of {side} x {side} pixels on a slide of {size}: sizes must be multiples of {TILE}, and "
            f"each piece needs at least {2 * TILE} pixels and at most its share of the slide, {room}"
        )
    draw = np.random.default_rng([seed, 0x61A55])
    placed: list[tuple[Slide, tuple[int, int]]] = []
    for k in range(pieces):
        piece = make_slide(seed + k, tumour=False, size=(side, side))
        corner = [
            (place * extent + int(draw.integers(0, extent - side + 1))) // TILE * TILE
            for place, extent in zip(divmod(k, columns), room, strict=True)
        ]
        white = placed[0][0].white if placed else piece.white
        placed.append((replace(piece, white=white), (corner[0], corner[1])))
    return OnGlass(size, tuple(placed), seed)
