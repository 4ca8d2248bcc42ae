"""Tomosynthesis volumes: a lesion is sharp in a few slices and a shadow in the others.

A scanner moves over an arc of a few degrees, so what lies in one slice is seen in its neighbours too, blurred and
fainter with every slice. Whoever adds all slices up, or takes their maximum, adds the texture of all of them to a
lesion that was sharp in one.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    """

    seed: int
    size: tuple[int, int, int]
    labels: tuple[int, int]
    lesions: tuple[tuple[int, int, float, float, float], ...]
    contrast: float = 0.22

    def slice(self, z: int) -> Floats:
        """One slice, (H, W), 0 to 1; the same call gives the same pixels."""
        depth, *size = self.size
        rng = np.random.default_rng([self.seed, 0x70303])
        plane = (size[0], size[1])
        outline = _breast(plane, rng)
        # Two textures, turned into each other over the depth: neighbouring slices are alike, distant ones are not.
        turn = np.pi * z / max(depth, 8)
        texture = np.cos(turn) * power_law(plane, rng) + np.sin(turn) * power_law(plane, rng)
        image = (0.35 + 0.10 * texture).astype(np.float32)
        lines = np.random.default_rng([self.seed, z, 0x11E5])
        for _ in range(8):
            _line(image, _place(outline, 0.0, lines), lines.uniform(0, np.pi), lines.uniform(16, 40), 0.22, lines)
        for number, (kind, at, y, x, radius) in enumerate(self.lesions):
            stamp = lesion(radius, kind == 1, np.random.default_rng([self.seed, number]))
            away = max(0, abs(z - at) - 1)  # sharp in three slices
            fainter = np.float32(self.contrast * 0.6**away)
            _add(image, _blurred(stamp, 1.5 * away) * fainter, (y, x))
        image += lines.normal(0, 0.01, plane).astype(np.float32)
        made: NDArray[np.float32] = np.clip(image, 0.02, 1) * np.clip(outline, 0, 1).astype(np.float32)
        return made

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
) -> Volume:
    """Draw a volume; the same arguments give the same one.

    >>> volume = make_volume(0, malignant=True, size=(6, 128, 96))
    >>> volume.labels, volume.slice(3).shape, len(volume.lesions)
    ((0, 1), (128, 96), 1)
    """
    outline = _breast((size[1], size[2]), np.random.default_rng([seed, 0x70303]))
    rng = np.random.default_rng([seed, 0x1E510])
    lesions = []
    for kind, wanted in enumerate((benign, malignant)):
        radius, z = rng.uniform(*diameters) / 2, int(rng.integers(1, max(2, size[0] - 1)))
        y, x = _place(outline, 1.5 * radius, rng)
        if wanted:
            lesions.append((kind, z, y, x, radius))
    return Volume(seed, size, (int(benign), int(malignant)), tuple(lesions))


def _blurred(stamp: Floats, sigma: float) -> Floats:
    if not sigma:
        return stamp
    wide = np.pad(stamp, stamp.shape[0] // 2)
    fy, fx = np.fft.fftfreq(wide.shape[0])[:, None], np.fft.rfftfreq(wide.shape[1])[None]
    spectrum = np.fft.rfft2(wide) * np.exp(-2 * (np.pi * sigma) ** 2 * (fy**2 + fx**2))
    return np.fft.irfft2(spectrum, wide.shape).astype(np.float32)
