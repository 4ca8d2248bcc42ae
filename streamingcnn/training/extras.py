"""Libraries that only some commands need are imported where they are used; a missing one is named."""

from __future__ import annotations

from importlib.util import find_spec

__all__ = ["require"]

#: The module: the name to install it by, and the extra of setup.cfg that brings it.
_PACKAGES = {
    "jinja2": ("Jinja2", "demo"),
    "matplotlib": ("matplotlib", "demo"),
    "openpyxl": ("openpyxl", "train"),
    "skimage": ("scikit-image", "slides"),
    "scipy": ("SciPy", "slides"),
    "sklearn": ("scikit-learn", "demo"),
    "tensorboard": ("tensorboard", "train"),
}


def require(*modules: str) -> None:
    """Raise ModuleNotFoundError, with what to install, unless every module can be imported.

    >>> require("sklearn", "matplotlib")
    """
    missing = [_PACKAGES[module] for module in modules if find_spec(module) is None]
    if missing:
        names = " and ".join(name for name, _ in missing)
        extras = ",".join(sorted({extra for _, extra in missing}))
        raise ModuleNotFoundError(
            f"{names} cannot be imported, and what was asked for needs it; "
            f"install with: pip install 'streamingcnn[{extras}]'"
        )
