"""One thread, one seed, and the version of torch on top of every report."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import streamingcnn.module


def pytest_report_header() -> str:
    return f"torch {torch.__version__}, {'CUDA' if torch.cuda.is_available() else 'CPU only'}"


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    # Maps are small here, and pytest-xdist has the other cores busy: two pools of threads fight for them.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def untried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrapping does not try a module on a likely image first, which takes as long as the capture that is looked at."""
    monkeypatch.setattr(streamingcnn.module, "refuse_early", lambda module: None)


@pytest.fixture(autouse=True)
def _leave_torch_as_it_was() -> Iterator[None]:
    """Fail a test after which torch behaves differently: a state that leaks breaks the user's own code."""

    def state() -> tuple[object, ...]:
        return (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.get_default_dtype(),
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_num_threads(),
        )

    before = state()
    yield
    assert state() == before
