"""Ten kills or more at random moments over one training; `make faults` does two hundred over a longer one."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from tests.faults import faults


@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.timeout(300)
def test_ten_kills_lose_nothing(tmp_path: Path) -> None:
    result = faults(tmp_path, kills=10, epochs=12, inside=2)
    assert result.kills >= 10
    assert result.inside >= 2
    assert result.identical
