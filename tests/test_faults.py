"""Ten kills or more at random moments over one training; `make faults` does two hundred over a longer one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import faults
from tests.forked import needs_fork


@needs_fork
@pytest.mark.timeout(300)
def test_ten_kills_lose_nothing(tmp_path: Path) -> None:
    result = faults(tmp_path, kills=10, epochs=12, inside=2)
    assert result.kills >= 10
    assert result.inside >= 2
    assert result.identical
