"""Slides in the manner of CAMELYON whose label can be seen in single nuclei only.

A demonstration of training on whole slides proves nothing if a thumbnail gives the label away. Here a lesion
differs from the tissue around it in ONE thing, the inside of its nuclei::

        normal nucleus             atypical nucleus
          . # # .                 . o o o o .          #  chromatin of a disc, radius about 3 px
          # # # #                 o .     . o          o  a ring of chromatin, 3 to 4.6 px
          # # # #                 o .  @  . o          @  a nucleolus
          . # # .                 . o o o o .

Both kinds have the same number per area and the same summed absorbance. As light falls off exponentially
with absorbance, that alone would leave a lesion a little darker or lighter after averaging; how an atypical
nucleus divides between ring and nucleolus is such that the light let through is the same too. Atypical nuclei
are scattered in every slide, and cellularity, nuclear stain and eosin drift over the tissue on the scale of
a lesion, so that neither finding one atypical nucleus nor finding a patch of another shade decides.

Everything follows from the seed. A slide is a short record (a table of nuclei, a few waves, some polygons);
its pixels are rendered tile by tile, always to the same values, so the image need never exist as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["TILE", "Slide", "make_slide"]

#: Side of a rendered tile in pixels; the written TIFF has the same tiles.
TILE = 256
#: Micrometres per pixel of every synthetic slide.
MPP = 0.5
#: The largest share of a slide's tissue that its lesions may cover.
LESION_SHARE = 0.06

_NORMAL_RADIUS = 3.0
_RING_RADII = (3.0, 4.6)
_NUCLEOLUS_RADIUS = 1.3
#: Share of an atypical nucleus' absorbance in its nucleolus; with it both kinds let the same light through.
_NUCLEOLUS_SHARE = 0.5
#: Absorbance of a nucleus, summed over its pixels (a disc of radius 3 with 0.8 in each).
_ABSORBANCE = 22.0
#: Pixels from the middle of a stamp to its side; holds the largest nucleus.
_STAMP = 7
#: Pixels between neighbours on the lattice of nuclei.
_CELL = 11
_ATYPICAL_IN_LESION = 0.95
_ATYPICAL_ELSEWHERE = (0.003, 0.012)
#: Standard deviation of the camera's noise, of 255.
_NOISE = 1.0

Floats = NDArray[np.floating]
Polygon = NDArray[np.float64]


@dataclass(frozen=True)
class Waves:
    """A smooth random field: a sum of plane waves with unit variance, evaluated on any grid of points.

    ``cos(a y + b x + p)`` splits into products of functions of y and of x, so a tile of the field is one
    small matrix product.
    """

    frequency: Floats
    phase: Floats

    @classmethod
    def draw(cls, rng: np.random.Generator, wavelength: tuple[float, float], count: int = 24) -> Waves:
        length = np.exp(rng.uniform(math.log(wavelength[0]), math.log(wavelength[1]), count))
        angle = rng.uniform(0.0, 2 * math.pi, count)
        frequency = 2 * math.pi / length * np.stack([np.sin(angle), np.cos(angle)])
        return cls(frequency, rng.uniform(0, 2 * math.pi, count))

    def on_grid(self, y: Floats, x: Floats) -> Floats:
        """Values at every pair of a y and an x, (len(y), len(x))."""
        along_y = y[:, None] * self.frequency[0] + self.phase
        along_x = x[:, None] * self.frequency[1]
        product = np.cos(along_y) @ np.cos(along_x).T - np.sin(along_y) @ np.sin(along_x).T
        return np.asarray(product * math.sqrt(2 / len(self.phase)))

    def at(self, points: Floats) -> Floats:
        """Values at points (n, 2) given as (y, x)."""
        wave = np.cos(points @ self.frequency + self.phase)
        return np.asarray(wave.sum(1) * math.sqrt(2 / len(self.phase)))


class Tiled:
    """An image that is rendered tile by tile."""

    size: tuple[int, int]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        return self.size[0] // TILE, self.size[1] // TILE

    def tiles(self) -> Iterator[NDArray[np.uint8]]:
        """Every tile, row after row."""
        rows, columns = self.grid
        for row in range(rows):
            for column in range(columns):
                yield self.tile(row, column)

    def tile(self, row: int, column: int) -> NDArray[np.uint8]:
        """One tile of pixels, (256, 256, 3)."""
        raise NotImplementedError


@dataclass(frozen=True)
class Slide(Tiled):
    """The record of one synthetic slide; :meth:`tile` and :meth:`pixels` render it.

    Example::

        slide = make_slide(seed=7, tumour=True)
        slide.pixels()                # (1024, 1024, 3) uint8
        slide.lesion_mask().mean()    # share of the slide that is lesion

    Attributes:
        size: height and width in pixels, multiples of 256.
        tumour: whether there are lesions.
        nuclei: (n, 4) centre y, centre x, size relative to the mean, summed absorbance.
        atypical: (n,) which nuclei are atypical.
        lesions: outlines, each (points, 2) as (x, y) in pixels of the full slide.
    """

    size: tuple[int, int]
    tumour: bool
    seed: int
    nuclei: Floats
    atypical: NDArray[np.bool_]
    lesions: tuple[Polygon, ...]
    tissue: Waves
    eosin: Waves
    fibres: Waves
    stains: Floats = field(repr=False)
    eosin_strength: float
    white: Floats = field(repr=False)

    def tile(self, row: int, column: int) -> NDArray[np.uint8]:
        """One tile of pixels, (256, 256, 3)."""
        y = np.arange(TILE) + row * TILE + 0.5
        x = np.arange(TILE) + column * TILE + 0.5
        inside = _soft_step(_tissue_on_grid(self.tissue, self.size, y, x) * 60)
        eosin = self.eosin_strength * (1 + 0.22 * self.eosin.on_grid(y, x) + 0.18 * self.fibres.on_grid(y, x))
        absorbed = (
            self.nuclear_absorbance(row, column)[..., None] * self.stains[0]
            + (inside * np.clip(eosin, 0.05, None))[..., None] * self.stains[1]
        )
        noise = np.random.default_rng([self.seed, row, column]).normal(0, _NOISE, (TILE, TILE, 3))
        light = self.white * 10.0**-absorbed * 255 + noise
        pixels: NDArray[np.uint8] = np.clip(np.rint(light), 0, 255).astype(np.uint8)
        return pixels

    def nuclear_absorbance(self, row: int, column: int) -> Floats:
        """What the nuclei absorb in one tile, (256, 256), in units of the haematoxylin vector."""
        tile_origin = np.array([row * TILE, column * TILE])
        tile_centres = self.nuclei[:, :2] - tile_origin
        near = np.all((tile_centres > -_STAMP) & (tile_centres < TILE + _STAMP), axis=1)
        padded = np.zeros((TILE + 4 * _STAMP, TILE + 4 * _STAMP))
        if near.any():
            corner = np.floor(tile_centres[near]).astype(np.int64) - _STAMP
            stamps = _stamps(tile_centres[near] - corner, self.nuclei[near, 2], self.atypical[near])
            stamps *= self.nuclei[near, 3, None, None]
            reach = np.arange(2 * _STAMP + 1)
            rows = (corner[:, 0, None] + reach + 2 * _STAMP)[:, :, None]
            columns = (corner[:, 1, None] + reach + 2 * _STAMP)[:, None, :]
            np.add.at(padded, (rows, columns), stamps)
        return padded[2 * _STAMP : -2 * _STAMP, 2 * _STAMP : -2 * _STAMP]

    def pixels(self) -> NDArray[np.uint8]:
        """The whole slide, (height, width, 3)."""
        rows, columns = self.grid
        tiles = np.stack(list(self.tiles())).reshape(rows, columns, TILE, TILE, 3)
        return np.ascontiguousarray(tiles.swapaxes(1, 2).reshape(*self.size, 3))

    def tissue_mask(self) -> NDArray[np.bool_]:
        """Where there is tissue, (height, width)."""
        return self.tissue_rows(0, self.size[0])

    def tissue_rows(self, top: int, bottom: int) -> NDArray[np.bool_]:
        """Where there is tissue in some rows, (bottom - top, width)."""
        y, x = np.arange(top, bottom) + 0.5, np.arange(self.size[1]) + 0.5
        return _tissue_on_grid(self.tissue, self.size, y, x) > 0

    def lesion_mask(self) -> NDArray[np.bool_]:
        """Where there is a lesion, (height, width)."""
        y, x = np.meshgrid(np.arange(self.size[0]) + 0.5, np.arange(self.size[1]) + 0.5, indexing="ij")
        points = np.stack([x.ravel(), y.ravel()], axis=1)
        mask = np.zeros(len(points), dtype=bool)
        for outline in self.lesions:
            mask |= _inside(points, outline)
        return mask.reshape(self.size)


def make_slide(seed: int, tumour: bool, size: tuple[int, int] = (1024, 1024)) -> Slide:
    """Draw one slide; the same arguments give the same slide, to the bit.

    Example::

        make_slide(seed=0, tumour=True, size=(2048, 2048))

    ``size`` is height and width in pixels of 0.5 um, multiples of 256 and at least 512.

    Raises:
        ValueError: the size is not such a multiple.
    """
    if any(extent % TILE or extent < 2 * TILE for extent in size):
        raise ValueError(
            f"size={size}: a synthetic slide is made of whole tiles of {TILE} pixels, at least two along "
            f"each axis; use {tuple(max(2 * TILE, math.ceil(extent / TILE) * TILE) for extent in size)}"
        )
    rng = np.random.default_rng([seed, int(tumour)])
    tissue = Waves.draw(rng, (0.35 * min(size), 0.9 * min(size)), count=10)
    nuclei = _draw_nuclei(rng, tissue, size)
    lesions = _draw_lesions(rng, tissue, size) if tumour else ()

    in_lesion = np.zeros(len(nuclei), dtype=bool)
    for outline in lesions:
        in_lesion |= _inside(nuclei[:, 1::-1], outline)
    scattered = rng.uniform(*_ATYPICAL_ELSEWHERE)
    atypical = rng.random(len(nuclei)) < np.where(in_lesion, _ATYPICAL_IN_LESION, scattered)

    vectors = np.array([[0.65, 0.70, 0.29], [0.10, 0.60, 0.28]]) * rng.uniform(0.85, 1.15, (2, 3))
    strengths = rng.uniform(0.8, 1.2, 2)
    return Slide(
        size=size,
        tumour=tumour,
        seed=seed,
        nuclei=nuclei,
        atypical=atypical,
        lesions=lesions,
        tissue=tissue,
        eosin=Waves.draw(rng, (80, 300)),
        fibres=Waves.draw(rng, (9, 30)),
        stains=vectors * [[strengths[0]], [1.0]],
        eosin_strength=float(0.28 * strengths[1]),
        white=rng.uniform(0.92, 0.97) * rng.uniform(0.985, 1.0, 3),
    )


def _tissue_on_grid(tissue: Waves, size: tuple[int, int], y: Floats, x: Floats) -> Floats:
    """Positive in the tissue, one lobed piece in the middle of the slide, at every pair of a y and an x."""
    down, across = _off_centre(y, size[0]), _off_centre(x, size[1])
    return 1 - down[:, None] - across + 0.22 * tissue.on_grid(y, x)


def _tissue_at(tissue: Waves, size: tuple[int, int], points: Floats) -> Floats:
    """The same at points (n, 2) given as (y, x)."""
    down, across = _off_centre(points[:, 0], size[0]), _off_centre(points[:, 1], size[1])
    return np.asarray(1 - down - across + 0.22 * tissue.at(points))


def _off_centre(position: Floats, extent: int) -> Floats:
    return np.abs((position / extent - 0.5) / 0.46) ** 3


def _draw_nuclei(rng: np.random.Generator, tissue: Waves, size: tuple[int, int]) -> Floats:
    """Nuclei on a shaken lattice, thinned by cellularity; size and stain drift and vary."""
    lattice = np.stack(
        np.meshgrid(*(np.arange(_CELL / 2, extent, _CELL) for extent in size), indexing="ij"), axis=-1
    ).reshape(-1, 2)
    centres = lattice + rng.uniform(-0.36 * _CELL, 0.36 * _CELL, lattice.shape)
    cellularity = np.clip(0.78 + 0.16 * Waves.draw(rng, (90, 300)).at(centres), 0.35, 1.0)
    # Whole nuclei only: one that the slide's edge cuts would absorb less than its kind.
    whole = np.all((centres > _STAMP) & (centres < np.array(size) - _STAMP), axis=1)
    present = whole & (_tissue_at(tissue, size, centres) > 0.02) & (rng.random(len(centres)) < cellularity)
    centres = centres[present]
    uptake = np.exp(0.12 * Waves.draw(rng, (90, 300)).at(centres) + 0.12 * rng.normal(size=len(centres)))
    scale = rng.uniform(0.92, 1.08, len(centres))
    return np.column_stack([centres, scale, _ABSORBANCE * uptake])


def _stamps(stamp_centres: Floats, scale: Floats, atypical: NDArray[np.bool_]) -> Floats:
    """The absorbance of single nuclei, (n, 15, 15), each summing to 1 whatever its kind."""
    reach = np.arange(2 * _STAMP + 1) + 0.5
    distance = np.hypot(
        reach[None, :, None] - stamp_centres[:, 0, None, None],
        reach[None, None, :] - stamp_centres[:, 1, None, None],
    )
    distance /= scale[:, None, None]
    stamps = _summing_to_one(_disc(distance, _NORMAL_RADIUS))
    far = distance[atypical]
    ring = _summing_to_one(_disc(far, _RING_RADII[1]) - _disc(far, _RING_RADII[0]))
    nucleolus = _summing_to_one(_disc(far, _NUCLEOLUS_RADIUS))
    stamps[atypical] = (1 - _NUCLEOLUS_SHARE) * ring + _NUCLEOLUS_SHARE * nucleolus
    return stamps


def _disc(distance: Floats, radius: float) -> Floats:
    return _soft_step(radius - distance)


def _soft_step(signed_distance: Floats) -> Floats:
    """0 outside, 1 inside, with an edge one pixel wide."""
    step: Floats = np.clip(signed_distance + 0.5, 0, 1)
    return step


def _summing_to_one(stamps: Floats) -> Floats:
    return np.asarray(stamps / stamps.sum((1, 2), keepdims=True))


def _draw_lesions(rng: np.random.Generator, tissue: Waves, size: tuple[int, int]) -> tuple[Polygon, ...]:
    """2 to 4 lesions of 40 to 64 px radius inside the tissue, apart, together within the share allowed."""
    y, x = np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5
    level = _tissue_on_grid(tissue, size, y, x)
    allowed = LESION_SHARE * (level > 0).sum()
    wanted = int(rng.integers(3, 5))
    lesions: list[Polygon] = []
    circles: list[tuple[float, float, float]] = []
    for _ in range(2000):
        if len(lesions) == wanted:
            break
        radius = rng.uniform(48, 64)
        centre = rng.uniform([0, 0], size)
        outline = _outline(rng, centre, radius)
        corner = np.rint(outline[:, ::-1]).astype(int)
        if (corner < 0).any() or (corner >= size).any() or (level[corner[:, 0], corner[:, 1]] < 0.05).any():
            continue
        if any(math.hypot(centre[0] - a, centre[1] - b) < 1.3 * (radius + r) for a, b, r in circles):
            continue
        area = sum(_area(each) for each in lesions) + _area(outline)
        if area > allowed:
            if lesions:
                break
            continue
        lesions.append(outline)
        circles.append((centre[0], centre[1], radius))
    if not lesions:
        raise ValueError(f"no lesion fits into the tissue of a {size[0]}x{size[1]} slide; use a larger size")
    return tuple(lesions)


def _outline(rng: np.random.Generator, centre: Floats, radius: float) -> Polygon:
    """A wavy closed line around the centre (y, x), as (points, 2) of (x, y)."""
    angle = np.linspace(0, 2 * math.pi, 72, endpoint=False)
    wobble = sum(rng.uniform(0, 0.16) / k * np.cos(k * angle + rng.uniform(0, 2 * math.pi)) for k in range(2, 6))
    far = radius * (1 + np.asarray(wobble))
    return np.stack([centre[1] + far * np.cos(angle), centre[0] + far * np.sin(angle)], axis=1)


def _area(outline: Polygon) -> float:
    x, y = outline.T
    return float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2)


def _inside(points: Floats, outline: Polygon) -> NDArray[np.bool_]:
    """Which points (n, 2) as (x, y) lie inside: rays to the right cross the line oddly often."""
    near = np.all((points >= outline.min(0)) & (points <= outline.max(0)), axis=1)
    x, y = points[near, 0, None], points[near, 1, None]
    start, end = outline, np.roll(outline, -1, axis=0)
    crosses = (start[:, 1] > y) != (end[:, 1] > y)
    with np.errstate(divide="ignore", invalid="ignore"):
        at_x = start[:, 0] + (y - start[:, 1]) * (end[:, 0] - start[:, 0]) / (end[:, 1] - start[:, 1])
    inside = np.zeros(len(points), dtype=bool)
    inside[near] = (crosses & (x < at_x)).sum(1) % 2 == 1
    return inside
