"""Micrometres per pixel: what can be, what a slide's own is, and what to do without it.

A slide whose file says nothing, or 72 dots per inch (352 um/px: what an editor writes that does not know), must not be
taken for one that says 0.25. It is refused, with the ways out; nothing is guessed.
"""

from __future__ import annotations

from math import isfinite

__all__ = ["PLAUSIBLE", "check_mpp", "given_mpp", "missing_mpp", "plausible"]

#: No slide is scanned finer or coarser than this, in micrometres per pixel of its full image.
PLAUSIBLE = (0.02, 20.0)


def plausible(mpp: tuple[float, ...] | None) -> tuple[float, ...] | None:
    """The resolution of a full image, or None where it cannot be one of a slide.

    >>> plausible((0.25, 0.25)), plausible((352.8, 352.8))
    ((0.25, 0.25), None)
    """
    if mpp is None or not all(isfinite(size) and PLAUSIBLE[0] <= size <= PLAUSIBLE[1] for size in mpp):
        return None
    return mpp


def check_mpp(mpp: float, name: str) -> None:
    """Raise ValueError for a resolution that was given and cannot be one of a slide."""
    if not isinstance(mpp, (int, float)) or plausible((float(mpp),)) is None:
        raise ValueError(
            f"{name}={mpp}: needed are micrometres per pixel, between {PLAUSIBLE[0]:g} and {PLAUSIBLE[1]:g}; 0.25 is "
            "a slide scanned at 40x, 0.5 one at 20x"
        )


def given_mpp(slide_mpp: float | tuple[float, ...], space: int) -> tuple[float, ...]:
    """The resolution that a user gives in place of the file's, one number per axis, checked."""
    sizes = tuple(slide_mpp) if isinstance(slide_mpp, (tuple, list)) else (slide_mpp,) * space
    for size in sizes:
        check_mpp(size, "slide_mpp")
    if len(sizes) != space:
        raise ValueError(f"slide_mpp={slide_mpp}: needed is one number, or one for each of {space} axes")
    return tuple(float(size) for size in sizes)


def missing_mpp(path: object, wanted: float, stated: tuple[float, ...] | None) -> ValueError:
    """The error for an image that does not know its own resolution, with the three ways out."""
    says = "does not say how large its pixels are"
    if stated is not None:
        says = (
            f"says that its pixels are {stated[0]:.4g} um wide, which no scanner's are (25400 / {stated[0]:.4g} = "
            f"{25400 / stated[0]:.0f} dots per inch is a picture editor's guess)"
            if stated[0] > 0
            else f"says that its pixels are {stated[0]:.4g} um wide"
        )
    return ValueError(
        f"{path} {says}, so mpp={wanted:g} cannot be read from it. Three ways out: give the slide's own resolution in "
        "the column mpp of the case table; give it for this slide, slide_mpp=0.25 (--slide-mpp 0.25); or ask for a "
        "level in place of a resolution, level=0"
    )
