"""CT-like volumes of an abdomen, with a liver and small lesions in it, whose truth is known to the voxel.

                 front                  a slice, seen from the feet as a radiologist sees it
              . - ~ ~ ~ - .
          /  L L L L . . .   \\          L  liver           label 1
         |  L L l L L  . . S  |         l  its lesions     label 2: as dark as what is beside the liver
         |  L L L L  .  . S S |         S  spleen, and K, the kidneys: as bright as the liver, label 0;
          \\   . K . V . K .  /             they have lesions of the same kind, which are label 0 too
              ' - . _ . - '             V  spine
                 back

A lesion is a few voxels wide and no darker than much else: what it lies in tells it from the rest. So a network has to
see small things and large ones at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["CLASSES", "Abdomen", "make_abdomen"]

#: The classes, in the order of the labels.
CLASSES = ("background", "liver", "lesion")
#: Hounsfield units of what there is.
AIR, FAT, LIVER, SPLEEN, KIDNEY, BONE, LESION = -1000, -90, 110, 115, 120, 400, 20
#: Their standard deviation within anything.
NOISE = 25.0

Floats = NDArray[np.float32]
#: Middle and half-axes along z, y and x, in shares of the volume; y grows to the back, x to the patient's left.
_SPLEEN = ((0.50, 0.52, 0.77), (0.26, 0.16, 0.09))
_KIDNEYS = (((0.40, 0.68, 0.34), (0.22, 0.09, 0.08)), ((0.42, 0.68, 0.66), (0.22, 0.09, 0.08)))
_LIVER = (((0.55, 0.46, 0.30), (0.34, 0.24, 0.17)), ((0.62, 0.36, 0.47), (0.20, 0.12, 0.20)))


@dataclass(frozen=True, eq=False)
class Abdomen:
    """A volume and its truth.

    Attributes:
        image: Hounsfield units, (D, H, W) int16.
        label: 0 background, 1 liver, 2 lesion of the liver, (D, H, W) uint8.
    """

    image: NDArray[np.int16]
    label: NDArray[np.uint8]


def make_abdomen(seed: int, size: tuple[int, int, int] = (64, 96, 96), lesions: int = 6) -> Abdomen:
    """Draw a volume; the same arguments give the same one.

    >>> made = make_abdomen(0, size=(32, 48, 48))
    >>> made.image.shape, made.image.dtype, sorted({int(k) for k in made.label.flat})
    ((32, 48, 48), dtype('int16'), [0, 1, 2])

    Args:
        seed: of everything.
        size: depth, height and width in voxels.
        lesions: how many in the liver; half as many again lie in the spleen and the kidneys, and are no class.
    """
    rng = np.random.default_rng([seed, 0xABD0])
    grid: tuple[Floats, ...] = tuple(
        np.ogrid[tuple(slice(0.5 / n, 1, 1 / n) for n in size)]  # the middles of voxels, in shares of the volume
    )
    z, y, x = _warped(grid, rng)
    hounsfield = np.full(size, AIR, np.float32)
    hounsfield[_away(y, x, (0.5, 0.5), (0.40, 0.46)) < 1] = FAT
    hounsfield[_away(y, x, (0.76, 0.5), (0.07, 0.07)) < 1] = BONE
    others = np.zeros(size, bool)
    for (middle, half), value in ((_SPLEEN, SPLEEN), (_KIDNEYS[0], KIDNEY), (_KIDNEYS[1], KIDNEY)):
        organ = _away(z, y, x, _near(middle, rng), half) < 1
        hounsfield[organ] = value
        others |= organ
    liver = np.zeros(size, bool)
    for middle, half in _LIVER:
        liver |= _away(z, y, x, _near(middle, rng), half) < 1
    liver &= ~others
    hounsfield[liver] = LIVER
    label = liver.astype(np.uint8)
    for within, count, is_class in ((liver, lesions, True), (others, (lesions + 1) // 2, False)):
        for ball in _balls(within, count, rng):
            hounsfield[ball] = LESION
            label[ball] = 2 if is_class else 0
    hounsfield += rng.normal(0, NOISE, size).astype(np.float32)
    return Abdomen(np.rint(hounsfield).astype(np.int16), label)


def _warped(grid: tuple[Floats, ...], rng: np.random.Generator) -> list[Floats]:
    """Coordinates that waver by a few hundredths, so that no organ is an ellipsoid."""
    made = []
    for k, axis in enumerate(grid):
        turned = sum(
            np.sin(2 * np.pi * rng.uniform(0.6, 1.8) * other + rng.uniform(0, 2 * np.pi))
            for j, other in enumerate(grid)
            if j != k
        )
        made.append((axis + 0.015 * turned).astype(np.float32))
    return made


def _away(*given: NDArray[np.float32] | tuple[float, ...]) -> Floats:
    """How far each voxel is from the middle of an ellipsoid: 1 on its surface. Coordinates, middle, half-axes."""
    *coordinates, middle, half = given
    return np.sqrt(sum(((c - m) / h) ** 2 for c, m, h in zip(coordinates, middle, half, strict=True)))  # type: ignore[no-any-return]


def _near(middle: tuple[float, ...], rng: np.random.Generator) -> tuple[float, ...]:
    return tuple(share + rng.uniform(-0.02, 0.02) for share in middle)


def _balls(within: NDArray[np.bool_], count: int, rng: np.random.Generator) -> list[NDArray[np.bool_]]:
    """Small balls whose middles lie in an organ, cut off where it ends."""
    places = np.argwhere(within)
    axes = np.ogrid[tuple(slice(0, n) for n in within.shape)]
    radii = (max(1.5, 0.03 * min(within.shape)), max(2.5, 0.07 * min(within.shape)))
    made = []
    for _ in range(count if len(places) else 0):
        middle, radius = places[rng.integers(len(places))], rng.uniform(*radii)
        squares = sum((axis - m) ** 2 for axis, m in zip(axes, middle, strict=True))
        made.append((squares <= radius**2) & within)
    return made
