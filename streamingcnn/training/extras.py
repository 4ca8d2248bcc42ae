"""Libraries that only metrics and reports need are imported where they are used; a missing one is named."""

from __future__ import annotations

from importlib.util import find_spec

__all__ = ["require"]

_PACKAGES = {"jinja2": "Jinja2", "matplotlib": "matplotlib", "sklearn": "scikit-learn"}


def require(*modules: str) -> None:
    """Raise ModuleNotFoundError, with what to install, unless every module can be imported.

    >>> require("sklearn", "matplotlib")
    """
    missing = [_PACKAGES[module] for module in modules if find_spec(module) is None]
    if missing:
        raise ModuleNotFoundError(
            f"{' and '.join(missing)} cannot be imported, and metrics, reports and pictures need them; "
            f"install with: pip install 'streamingcnn[demo]'"
        )
