"""Libraries that only some of the package needs are imported where they are used; a missing one is named."""

from __future__ import annotations

from importlib.util import find_spec
from typing import NamedTuple

__all__ = ["require"]


class _Extra(NamedTuple):
    """What a module is for, the name to install it by, and the extra of setup.cfg that brings it."""

    what: str
    package: str
    extra: str


_EXTRAS = {
    "jinja2": _Extra("reports", "Jinja2", "demo"),
    "matplotlib": _Extra("pictures", "matplotlib", "demo"),
    "nibabel": _Extra("NIfTI volumes", "nibabel", "nifti"),
    "openpyxl": _Extra("XLSX tables", "openpyxl", "train"),
    "pydicom": _Extra("DICOM mammograms", "pydicom", "dicom"),
    "scipy": _Extra("statistics", "SciPy", "slides"),
    "skimage": _Extra("masks and outlines", "scikit-image", "slides"),
    "sklearn": _Extra("scores", "scikit-learn", "demo"),
    "wsidicom": _Extra("DICOM slides that OpenSlide does not read", "wsidicom", "dicom"),
    "zarr": _Extra("zarr arrays", "zarr", "zarr"),
}


def require(*modules: str) -> None:
    """Raise ModuleNotFoundError, with what to install, unless every module can be imported.

    >>> require("numpy", "torch")
    """
    missing = [_EXTRAS[module] for module in modules if find_spec(module) is None]
    if missing:
        what, packages = (" and ".join(part) for part in list(zip(*missing, strict=True))[:2])
        extras = ",".join(sorted({extra for _, _, extra in missing}))
        raise ModuleNotFoundError(
            f"{what} need {packages}, which cannot be imported; install with: pip install 'streamingcnn[{extras}]'"
        )
