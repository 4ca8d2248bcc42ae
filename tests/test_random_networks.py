"""Random networks of every rule: streamed is plain, by two plans; `make fuzz` runs more of them."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.counts import ALL
from tests.fuzz.draw import FromHypothesis
from tests.fuzz.networks import example
from tests.fuzz.run import chunk, failure

#: Plain PyTorch's, of a copy that it makes.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


@settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
@given(st.data())
def test_streamed_is_plain(data: st.DataObject) -> None:
    """Hypothesis likes what is small and odd."""
    case = example(FromHypothesis(data))
    wrong = failure(case)
    assert wrong is None, f"{wrong}\n{case}"


def test_seeds_hold_every_rule() -> None:
    """Seeds draw all kinds of layers alike; the first ones hold every rule already."""
    counts, failed = chunk(0, 150)
    assert not failed, "\n".join(failed)
    assert set(counts.rules) == ALL
