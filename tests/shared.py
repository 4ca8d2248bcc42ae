"""Small real data beside the project: a test that needs it skips where it is absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

#: SHARED_DATA names the folder where it lies elsewhere.
FOLDERS = (os.environ.get("SHARED_DATA"), Path(__file__).resolve().parents[2] / "shared" / "data")


def shared(name: str) -> Path:
    """The path of a shared file; skips the test where there is none."""
    for folder in FOLDERS:
        if folder and (Path(folder) / name).exists():
            return Path(folder) / name
    pytest.skip(f"{name} is not here; set SHARED_DATA to the folder of the shared data")
