"""Tomosynthesis volumes: a lesion is sharp in a few slices and a shadow in the others.

A scanner moves over an arc of a few degrees, so what lies in one slice is seen in its neighbours too, blurred and
fainter with every slice. Whoever adds all slices up, or takes their maximum, adds the texture of all of them to a
lesion that was sharp in one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from streamingcnn.synthetic.mammograms import Floats, _add, _breast, _line, _place, lesion, power_law

__all__ = ["Volume", "make_volume"]


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume that is rendered slice by slice.

    Attributes:
        size: slices, height and width.
        labels: (benign, malignant), 0 or 1.
        lesions: kind (0 benign, 1 malignant), slice, row, column and radius in pixels of each.
        contrast: how much a lesion's middle is brighter than what is around it, of 1, in the slices where it is sharp.
        lines: of two pixels that meet nowhere, in each slice; of a spicule's width, and as bright.
    """

    seed: int
    size: tuple[int, int, int]
    labels: tuple[int, int]
    lesions: tuple[tuple[int, int, float, float, float], ...]
    contrast: float = 0.22
    lines: int = 8

    def slice(self, z: int) -> Floats:
        """One slice, (H, W), 0 to 1; the same call gives the same pixels."""
        depth, plane = self.size[0], self.size[1:]
        outline, first, last = self._tissue
        # Two textures, turned into each other over the depth: neighbouring slices are alike, distant ones are not.
        turn = np.pi * z / max(depth, 8)
        texture = np.cos(turn) * first + np.sin(turn) * last
        image = (0.35 + 0.10 * texture).astype(np.float32)
        rng = np.random.default_rng([self.seed, z, 0x11E5])
        for _ in range(self.lines):
            place, angle, length = _place(outline, 0.0, rng), rng.uniform(0, np.pi), rng.uniform(16, 40)
            _line(image, place, angle, length, self.contrast, rng)
        for number, (kind, at, y, x, radius) in enumerate(self.lesions):
            stamp = lesion(radius, kind == 1, np.random.default_rng([self.seed, number]))
            away = max(0, abs(z - at) - 1)  # sharp in three slices
            fainter = np.float32(self.contrast * 0.6**away)
            _add(image, _blurred(stamp, 1.5 * away) * fainter, (y, x))
        image += rng.normal(0, 0.01, plane).astype(np.float32)
        made: NDArray[np.float32] = np.clip(image, 0.02, 1) * np.clip(outline, 0, 1).astype(np.float32)
        return made

    @cached_property
    def _tissue(self) -> tuple[NDArray[np.float64], Floats, Floats]:
        """What all slices have in common: the breast's outline and two textures."""
        rng = np.random.default_rng([self.seed, 0x70303])
        plane = self.size[1:]
        return _breast(plane, rng), power_law(plane, rng), power_law(plane, rng)

    def mask(self, z: int) -> NDArray[np.bool_]:
        """Where lesions are sharp in a slice, (2, H, W)."""
        made = np.zeros((2, *self.size[1:]), bool)
        y, x = np.indices(self.size[1:])
        for kind, at, row, column, radius in self.lesions:
            if abs(z - at) <= 1:
                made[kind] |= np.hypot(y - row, x - column) <= radius
        return made

    def array(self) -> Floats:
        """All slices, (D, H, W)."""
        return np.stack([self.slice(z) for z in range(self.size[0])])


def make_volume(
    seed: int,
    *,
    benign: bool = False,
    malignant: bool = False,
    size: tuple[int, int, int] = (24, 256, 192),
    diameters: tuple[float, float] = (24.0, 40.0),
    contrast: float = 0.22,
    lines: int = 8,
) -> Volume:
    """Draw a volume; the same arguments give the same one.

    >>> volume = make_volume(0, malignant=True, size=(6, 128, 96))
    >>> volume.labels, volume.slice(3).shape, len(volume.lesions)
    ((0, 1), (128, 96), 1)

    Args:
        seed: of everything.
        benign: whether it has a round lesion.
        malignant: whether it has one with spicules.
        size: slices, height and width.
        diameters: the smallest and largest lesion, in pixels.
        contrast, lines: of :class:`Volume`.
    """
    outline = _breast((size[1], size[2]), np.random.default_rng([seed, 0x70303]))
    rng = np.random.default_rng([seed, 0x1E510])
    lesions = []
    for kind, wanted in enumerate((benign, malignant)):
        radius, z = rng.uniform(*diameters) / 2, int(rng.integers(1, max(2, size[0] - 1)))
        y, x = _place(outline, 1.5 * radius, rng)
        if wanted:
            lesions.append((kind, z, y, x, radius))
    return Volume(seed, size, (int(benign), int(malignant)), tuple(lesions), contrast, lines)


def _blurred(stamp: Floats, sigma: float) -> Floats:
    if not sigma:
        return stamp
    wide = np.pad(stamp, stamp.shape[0] // 2)
    fy, fx = np.fft.fftfreq(wide.shape[0])[:, None], np.fft.rfftfreq(wide.shape[1])[None]
    spectrum = np.fft.rfft2(wide) * np.exp(-2 * (np.pi * sigma) ** 2 * (fy**2 + fx**2))
    return np.fft.irfft2(spectrum, wide.shape).astype(np.float32)
