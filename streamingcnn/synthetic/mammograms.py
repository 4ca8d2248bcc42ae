r"""Mammograms whose label can be seen in lines of two pixels only.

A breast on black, filled with a texture of a power spectrum that falls as 1/f^3, as that of real parenchyma does. What
is benign and what is malignant have the same size, the same contrast, and the same mean at every distance from their
middle; they differ in ONE thing, the margin::

          benign            malignant
          . . . . .         \ . | . /      #  the lesion, soft at its margin
          . o # o .         . o # o .      \  a spicule, two pixels wide: brighter than the mean at its distance,
          . # # # .         - # # # -         and the rest of the ring darker
          . o # o .         . o # o .
          . . . . .         / . | . \

At a quarter of the resolution a spicule is half a pixel and the two are alike. In every image, with or without lesions,
stand distractors: soft blobs, and single lines of two pixels that meet nowhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["CLASSES", "Mammogram", "lesion", "make_mammogram", "power_law"]

#: The classes, in the order of labels and masks.
CLASSES = ("benign", "malignant")
#: Width of a spicule in pixels.
SPICULE = 2.0

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Mammogram:
    """An image and its truth.

    Attributes:
        image: (H, W), 0 outside the breast, else 0 to 1.
        masks: (2, H, W), where benign and malignant lesions are.
        labels: (benign, malignant), 0 or 1.
    """

    image: Floats
    masks: NDArray[np.bool_]
    labels: tuple[int, int]


def make_mammogram(
    seed: int,
    *,
    benign: bool = False,
    malignant: bool = False,
    size: tuple[int, int] = (512, 384),
    diameters: tuple[float, float] = (32.0, 58.0),
    contrast: float = 0.35,
) -> Mammogram:
    """Draw a mammogram; the same arguments give the same image, to the bit.

    >>> made = make_mammogram(0, malignant=True, size=(256, 192))
    >>> made.image.shape, made.labels, bool(made.masks[1].any())
    ((256, 192), (0, 1), True)

    Args:
        seed: of everything.
        benign: whether it has a round lesion.
        malignant: whether it has one with spicules.
        size: height and width in pixels.
        diameters: the smallest and largest lesion, in pixels.
        contrast: how much a lesion's middle is brighter than what is around it, of 1.
    """
    rng = np.random.default_rng([seed, 0x3A330])
    outline = _breast(size, rng)
    image = (0.35 + 0.07 * power_law(size, rng)).astype(np.float32)
    y, x = np.indices(size, dtype=np.float32)
    for _ in range(4):  # soft blobs, of any size and faint
        at, radius = _place(outline, 0.0, rng), rng.uniform(*diameters)
        away = np.hypot(y - at[0], x - at[1])
        image += np.float32(rng.uniform(0.2, 0.5) * contrast) * np.exp(-((away / radius) ** 2))
    for _ in range(8):  # lines of a spicule's width that meet nowhere
        _line(image, _place(outline, 0.0, rng), rng.uniform(0, np.pi), rng.uniform(*diameters), contrast, rng)
    masks = np.zeros((2, *size), bool)
    taken: list[tuple[float, float]] = []
    for kind, wanted in enumerate((benign, malignant)):
        # Drawn whether it is wanted or not, so that the rest of the image is the same either way.
        radius = rng.uniform(*diameters) / 2
        at = _place(outline, 1.5 * radius, rng, apart=taken, distance=2 * diameters[1])
        stamp = lesion(radius, kind == 1, rng)
        if wanted:
            taken.append(at)
            _add(image, stamp * np.float32(contrast), at)
            masks[kind] = np.hypot(y - at[0], x - at[1]) <= radius
    image += rng.normal(0, 0.01, size).astype(np.float32)
    fade = np.clip(outline, 0, 1).astype(np.float32)
    return Mammogram(np.clip(image, 0.02, 1) * fade, masks, (int(benign), int(malignant)))


def power_law(size: tuple[int, int], rng: np.random.Generator, exponent: float = 3.0) -> Floats:
    """A random texture of mean 0 and variance 1 whose power falls with frequency as ``1 / f^exponent``.

    >>> texture = power_law((64, 48), np.random.default_rng(0))
    >>> texture.shape, abs(float(texture.mean())) < 1e-5, abs(float(texture.std()) - 1) < 1e-5
    ((64, 48), True, True)
    """
    spectrum = np.fft.rfft2(rng.standard_normal(size))
    frequency = np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1])[None])
    frequency[0, 0] = np.inf
    # Waves longer than a quarter of the image would make one side of it bright.
    spectrum /= np.maximum(frequency, 4 / max(size)) ** (exponent / 2)
    spectrum[0, 0] = 0
    made = np.fft.irfft2(spectrum, size)
    even: Floats = (made / made.std()).astype(np.float32)
    return even


def lesion(radius: float, spiculated: bool, rng: np.random.Generator) -> Floats:
    """A lesion of height 1 on 0, in the middle of a square; half its height at ``radius`` pixels.

    >>> rng = np.random.default_rng(0)
    >>> round_one, other = lesion(16, False, rng), lesion(16, True, rng)
    >>> at = np.hypot(*(np.indices(other.shape) - other.shape[0] // 2)).astype(int)
    >>> same = [abs(float((other - round_one)[at == k].mean())) < 1e-6 for k in range(24)]
    >>> all(same), bool(np.abs(other - round_one).max() > 0.3)
    (True, True)
    """
    half = int(np.ceil(2 * radius))
    y, x = np.indices((2 * half + 1, 2 * half + 1)) - half
    away = np.hypot(y, x)
    made = 1 / (1 + np.exp((away - radius) / (0.04 * radius)))
    # Drawn for round lesions too, so that what comes after is the same.
    angles = (np.arange(14) + rng.uniform(-0.3, 0.3, 14)) * 2 * np.pi / 14
    if spiculated:
        lines = np.zeros_like(made)
        for angle in angles:
            along, beside = y * np.sin(angle) + x * np.cos(angle), y * np.cos(angle) - x * np.sin(angle)
            lines = np.maximum(lines, np.clip(SPICULE / 2 + 0.5 - np.abs(beside), 0, 1) * (along > 0))
        ring = away.astype(int)
        count = np.bincount(ring.ravel())
        mean = np.bincount(ring.ravel(), lines.ravel()) / count
        where = np.exp(-(((away - 1.15 * radius) / (0.35 * radius)) ** 2))
        # The window is constant within a ring, so that each ring keeps its mean exactly.
        where = (np.bincount(ring.ravel(), where.ravel()) / count)[ring]
        made = made + 0.8 * where * (lines - mean[ring]) * (away <= half)
    return made.astype(np.float32)


def _breast(size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float64]:
    """1 inside, 0 outside, falling over the last 3 % of the way to the skin; the chest is on the left."""
    y, x = np.indices(size)
    high, wide = rng.uniform(0.40, 0.46) * size[0], rng.uniform(0.70, 0.88) * size[1]
    angle = np.arctan2(y - size[0] / 2, np.maximum(x, 1))
    wobble = 1 + 0.03 * np.sin(3 * angle + rng.uniform(0, 6)) + 0.02 * np.sin(5 * angle + rng.uniform(0, 6))
    distance = np.hypot((y - size[0] / 2) / high, x / wide) / wobble
    inside: NDArray[np.float64] = np.clip((1 - distance) / 0.03, 0, 1)
    return inside


def _place(
    outline: NDArray[np.float64],
    margin: float,
    rng: np.random.Generator,
    apart: list[tuple[float, float]] | None = None,
    distance: float = 0.0,
) -> tuple[float, float]:
    """A point inside the breast, so far from its border, and from other points where there is room."""
    size = outline.shape
    best = (size[0] / 2, size[1] / 4)
    for attempt in range(200):
        y, x = rng.uniform(margin, size[0] - margin), rng.uniform(margin, max(margin + 1, size[1] - margin))
        ends = [(y + margin * a, x + margin * b) for a, b in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))]
        fits = all(outline[min(max(int(a), 0), size[0] - 1), min(max(int(b), 0), size[1] - 1)] >= 1 for a, b in ends)
        clear = attempt >= 150 or all(np.hypot(y - a, x - b) >= distance for a, b in apart or [])
        if fits and clear:
            return float(y), float(x)
    return best


def _line(
    image: Floats, at: tuple[float, float], angle: float, length: float, contrast: float, rng: np.random.Generator
) -> None:
    half = int(np.ceil(length / 2)) + 2
    y, x = np.indices((2 * half + 1, 2 * half + 1)) - half
    along, beside = y * np.sin(angle) + x * np.cos(angle), y * np.cos(angle) - x * np.sin(angle)
    stamp = np.clip(SPICULE / 2 + 0.5 - np.abs(beside), 0, 1) * np.clip(length / 2 - np.abs(along), 0, 1)
    _add(image, (stamp * contrast * rng.uniform(0.4, 0.8)).astype(np.float32), at)


def _add(image: Floats, stamp: Floats, at: tuple[float, float]) -> None:
    """Add a stamp with its middle at a point; what is beyond the image is dropped."""
    half = stamp.shape[0] // 2
    top, left = round(at[0]) - half, round(at[1]) - half
    y = slice(max(top, 0), min(top + stamp.shape[0], image.shape[0]))
    x = slice(max(left, 0), min(left + stamp.shape[1], image.shape[1]))
    image[y, x] += stamp[y.start - top : y.stop - top, x.start - left : x.stop - left]
