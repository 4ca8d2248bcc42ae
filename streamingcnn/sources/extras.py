"""Libraries that only some formats need are imported where they are used; a missing one is named."""

from __future__ import annotations

from importlib.util import find_spec

__all__ = ["needed"]

#: By module: what it is for, and the extra that installs it.
_EXTRAS = {
    "nibabel": ("NIfTI volumes", "nifti"),
    "zarr": ("zarr arrays", "zarr"),
    "wsidicom": ("DICOM slides that OpenSlide does not read", "dicom"),
}


def needed(module: str) -> None:
    """Raise ModuleNotFoundError, with what to install, unless a module can be imported.

    >>> needed("numpy")
    """
    if find_spec(module) is None:
        what, extra = _EXTRAS[module]
        raise ModuleNotFoundError(
            f"{what} need {module}, which is not installed; install with: pip install 'streamingcnn[{extra}]'"
        )
