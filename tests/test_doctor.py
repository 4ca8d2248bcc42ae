"""`streamingcnn doctor`: its verdicts, and that nothing makes it ill."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from streamingcnn.available import Available
from streamingcnn.check import CheckResult, check
from streamingcnn.cli import doctor
from streamingcnn.cli.main import main


def test_a_whole_installation_has_no_fail_and_every_other_line_a_fix(capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.random.get_rng_state()
    assert main(["doctor"]) == 0
    assert torch.equal(torch.random.get_rng_state(), before)
    lines = capsys.readouterr().out.splitlines()
    verdicts = [line.split()[0] for line in lines[:-1]]
    assert set(verdicts) <= {"PASS", "WARN", "->"}
    assert verdicts.count("->") == verdicts.count("WARN")
    names = " ".join(lines)
    for name in ("torch", "GPU", "memory", "disk", "openslide-bin", "a slide", "exactness"):
        assert name in names
    assert lines[-1] == f"{verdicts.count('PASS')} PASS, {verdicts.count('WARN')} WARN, 0 FAIL"


def test_a_missing_library_is_a_warning_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor.version_of
    monkeypatch.setattr(doctor, "version_of", lambda name: "missing" if name == "nibabel" else real(name))
    (found,) = [each for each in doctor.libraries() if each.name == "nibabel"]
    assert found.verdict == "WARN"
    assert found.fix == "pip install 'streamingcnn[nifti]'"


def test_a_library_that_everything_needs_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "version_of", lambda _: "missing")
    found = {each.name: each for each in doctor.libraries()}
    assert found["tifffile"].verdict == "FAIL"
    assert found["tifffile"].fix == "pip install tifffile"


def test_an_old_torch_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.4.1")
    (found,) = [each for each in doctor.versions() if each.name == "torch"]
    assert found.verdict == "FAIL"
    assert "torch>=2.13" in found.fix


def test_too_little_memory_and_too_many_threads_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "available", lambda device: doctor_available(2**30))
    assert [each.verdict for each in doctor.memory()] == ["WARN"] * (1 + torch.cuda.device_count())
    monkeypatch.setattr(torch, "get_num_threads", lambda: 10_000)
    (found,) = doctor.processor()
    assert found.verdict == "WARN"
    assert "OMP_NUM_THREADS" in found.fix


def doctor_available(count: int) -> Available:
    return Available(count, "told")


def test_a_wrong_gradient_is_a_failure_and_so_is_a_look_that_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(*arguments: Any, **options: Any) -> CheckResult:
        result = check(*arguments, **options)
        object.__setattr__(result, "tolerance", 0.0)
        return result

    monkeypatch.setattr(doctor, "check", wrong)

    def ill(*_: object, **__: object) -> None:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(doctor, "make_slide", ill)
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "FAIL  exactness" in shown
    assert "FAIL  a slide          RuntimeError: no such thing" in shown
    assert "2 FAIL" in shown
