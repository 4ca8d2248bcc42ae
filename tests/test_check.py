"""The comparison itself: it must find a mistake, name it, and leave the user's module alone."""

from __future__ import annotations

import copy
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import streamingcnn.check
from streamingcnn import StreamingModule
from streamingcnn.check import CheckResult, check, compare, plain_bytes, relative_errors, run_step
from streamingcnn.cli.main import main

checking = sys.modules["streamingcnn.check"]  # the module; streamingcnn.check may also be the function


def trunk() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2, padding=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1)
    )


class Wrong(nn.Module):
    """A streamed module with a mistake: something of the step is off by one part in a thousand."""

    module: nn.Module

    def __init__(self, module: nn.Module, what: str) -> None:
        super().__init__()
        self.__dict__["module"] = module
        self._modules, self._parameters, self._buffers = module._modules, module._parameters, module._buffers
        self.what = what

    def forward(self, x: Tensor) -> Tensor:
        if self.what == "input gradient":
            x = x * 1.001 - x.detach() * 0.001
        y: Tensor = self.module(x)
        if self.what == "output":
            y = y + y.detach() * 0.001
        if self.what == "parameter gradient":
            bias = self.get_parameter("3.bias")
            y = y + 0.001 * (bias - bias.detach()).sum()
        if self.what == "buffer":
            self.get_buffer("1.running_mean").data.mul_(1.001)  # unseen by autograd, which has saved it
        return y


# The error.


def test_error_is_relative_to_plain() -> None:
    plain = {"a": torch.tensor([3.0, 4.0])}
    assert relative_errors({"a": torch.tensor([3.0, 4.5])}, plain) == {"a": pytest.approx(0.1)}
    assert relative_errors(plain, plain) == {"a": 0.0}


def test_error_of_a_gradient_of_zero_is_not_noise() -> None:
    """A bias in front of a normalisation has a true gradient of 0; what both find there is rounding noise."""
    plain = {"weight": torch.tensor([1.0]), "bias": torch.tensor([1e-9])}
    assert relative_errors({"weight": torch.tensor([1.0]), "bias": torch.tensor([-1e-9])}, plain)["bias"] == 0.0
    # Where one of the two is no noise, the floor keeps the error in proportion.
    wrong = {"weight": torch.tensor([1.0]), "bias": torch.tensor([1e-3])}
    assert relative_errors(wrong, plain)["bias"] == pytest.approx(1e3)
    small = {
        "weight": torch.tensor([1.0], dtype=torch.float64),
        "bias": torch.tensor([1e-9], dtype=torch.float64),
    }
    off = {
        "weight": torch.tensor([1.0], dtype=torch.float64),
        "bias": torch.tensor([2e-9], dtype=torch.float64),
    }
    assert relative_errors(off, small)["bias"] == pytest.approx(1e-3)


@pytest.mark.parametrize(
    "streamed, plain, expected",
    [
        (None, None, 0.0),
        (None, torch.zeros(2), 0.0),
        (torch.zeros(2), None, 0.0),
        (None, torch.ones(2), 1.0),
        (torch.ones(2), torch.ones(3), math.inf),
        (torch.tensor([math.nan]), torch.ones(1), math.inf),
        (torch.tensor([3]), torch.tensor([2]), 0.5),
        (torch.tensor([True]), torch.tensor([True]), 0.0),
        (torch.empty(0), torch.empty(0), 0.0),
    ],
)
def test_error_of_missing_and_odd_tensors(streamed: Any, plain: Any, expected: float) -> None:
    assert relative_errors({"a": streamed}, {"a": plain}, scale=1.0)["a"] == pytest.approx(expected)


def test_error_needs_the_same_names() -> None:
    with pytest.raises(ValueError, match="b"):
        relative_errors({"a": torch.ones(1)}, {"a": torch.ones(1), "b": torch.ones(1)})


@pytest.mark.parametrize("what", ["output", "input gradient", "parameter gradient", "buffer"])
def test_a_mistake_is_found_and_named(what: str) -> None:
    module = trunk().double()
    rows = compare(copy.deepcopy(module), Wrong(module, what), torch.randn(2, 3, 21, 30, dtype=torch.float64))
    wrong = [row for row in rows if row.error > 1e-10]
    assert wrong
    assert {row.kind for row in wrong} == {what}


def test_a_step_leaves_grad_and_generators_alone() -> None:
    module = trunk()
    before = torch.get_rng_state()
    run_step(module, torch.zeros(2, 3, 21, 30))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in module.parameters())


# check().


def test_check_of_an_exact_network() -> None:
    module = trunk()
    state = copy.deepcopy(module.state_dict())
    result = check(module, (2, 3, 45, 38), tile=16)
    assert result.ok
    assert result.worst.error <= 1e-10
    assert [(row.kind, row.name) for row in result.rows] == [
        ("output", ""),
        ("input gradient", ""),
        *(("parameter gradient", name) for name, _ in module.named_parameters()),
        *(("buffer", name) for name, _ in module.named_buffers()),
    ]
    assert result.plain.bytes > 0 < result.plain.seconds
    assert result.streamed.bytes > 0 < result.streamed.seconds
    # The user's module is as it was: in float32, untrained, without gradients.
    for name, tensor in module.state_dict().items():
        assert tensor.dtype == state[name].dtype
        assert torch.equal(tensor, state[name]), name
    assert all(parameter.grad is None for parameter in module.parameters())
    assert module.training


def test_report_shows_every_tensor_and_what_it_was_measured_at() -> None:
    text = str(check(trunk().eval(), torch.randn(1, 3, 45, 38), tile=16))
    for word in (
        "float64",
        "1x3x45x38",
        "tile 16",
        "eval",
        "output",
        "input gradient",
        "0.weight",
        "running_mean",
    ):
        assert word in text
    for word in ("time", "live bytes", "tolerance 1e-10", "ok"):
        assert word in text


@pytest.mark.parametrize("what", ["output", "input gradient", "parameter gradient", "buffer"])
def test_check_fails_where_the_streamed_module_is_wrong(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "StreamingModule", _WrongIn(what))
    result = check(trunk(), (2, 3, 21, 30), tile=16)
    assert not result.ok
    assert result.worst.kind == what
    assert not result.ties
    assert "BEYOND TOLERANCE" in str(result)
    assert str(result.worst) in str(result).splitlines()[-1]


class _WrongIn(type(nn.Module)):  # type: ignore[misc]
    """Stands in for the class StreamingModule: isinstance() is asked of it, and it is called."""

    def __new__(cls, what: str) -> Any:
        made = super().__new__(cls, "Streamed", (nn.Module,), {})
        made.what = what
        return made

    def __init__(cls, what: str) -> None: ...

    def __call__(cls, module: nn.Module, **_: Any) -> nn.Module:
        return Wrong(module, cls.what)


def test_ties_are_proven_and_not_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of equal values in a max another one takes the gradient; on input without ties all agrees."""

    class OtherTie(nn.Module):
        def __init__(self, module: nn.Module, **_: Any) -> None:
            super().__init__()
            self._modules = module._modules

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = self.get_submodule("0")(x.flip(3)).flip(3)
            return made

    monkeypatch.setattr(checking, "StreamingModule", OtherTie)
    pool = nn.Sequential(nn.MaxPool2d(2))
    result = check(pool, torch.ones(1, 1, 8, 8))
    assert result.ties
    assert result.ok
    assert "ties" in str(result)
    assert next(row for row in result.rows if row.kind == "input gradient").error > 0.1
    assert not check(pool, torch.randn(1, 1, 8, 8)).ties


def test_float32_has_a_tolerance_of_its_own() -> None:
    result = check(trunk(), (1, 3, 45, 38), tile=16, dtype=torch.float32)
    assert result.ok
    assert result.tolerance == 1e-4
    assert "float32" in str(result)
    assert not check(trunk(), (1, 3, 45, 38), tile=16, dtype=torch.float32, tolerance=0.0).ok


def test_a_size_too_large_for_plain_is_halved_and_said() -> None:
    module = trunk()
    limit = plain_bytes(module, (1, 3, 40, 48), dtype=torch.float64)
    result = check(module, (1, 3, 160, 192), tile=16, memory=limit)
    assert result.ok
    assert result.rows[1].shape == (1, 3, 40, 48)
    assert "160x192" in str(result)
    assert "compared at 40x48" in str(result)


def test_a_size_that_cannot_be_halved_is_an_error() -> None:
    module = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.Flatten(), nn.Linear(2 * 16 * 16, 1))
    with pytest.raises(ValueError, match=r"8x8(.|\n)*size"):
        check(module, (1, 3, 16, 16), tile=8, memory=1000)


def test_check_of_a_huge_shape_needs_no_memory_for_it() -> None:
    assert plain_bytes(trunk(), (1, 3, 65536, 65536)) > 2**37


def test_check_with_dropout_in_train_mode() -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.Dropout(0.5),
        nn.Conv2d(4, 4, 3),
        nn.Dropout2d(0.3),
        nn.Dropout(1.0),
        nn.Conv2d(4, 2, 3),
    )
    assert check(module, (2, 3, 30, 33), tile=8).ok


def test_check_with_named_inputs_and_several_results() -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor, *, gate: Tensor) -> dict[str, Tensor]:
            y = self.conv(x) * gate
            return {"map": y, "mean": y.mean((2, 3))}

    result = check(Several(), (1, 3, 30, 33), gate=torch.rand(1, 4, 1, 1), tile=8)
    assert result.ok
    names = [str(row) for row in result.rows]
    assert "output ['map']" in names
    assert "input gradient [1]['gate']" in names


@pytest.mark.parametrize(
    "arguments, kind, word",
    [
        ((StreamingModule(trunk()), (1, 3, 40, 40)), TypeError, "StreamingModule"),
        ((trunk(), (1, 3, 4000, 4000)), ValueError, "size"),
    ],
)
def test_wrong_use(arguments: tuple[Any, ...], kind: type[Exception], word: str) -> None:
    if kind is TypeError:
        with pytest.raises(kind, match=word):
            check(*arguments)
    else:
        with pytest.raises(kind, match=word):
            check(*arguments, memory=10)


def test_wrong_dtype() -> None:
    with pytest.raises(TypeError, match="int64"):
        check(trunk(), (1, 3, 40, 40), dtype=torch.int64)


# The command.


NETWORK_FILE = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))

class Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()
    @staticmethod
    def backward(ctx, g):
        return -g

class Cannot(nn.Module):
    def forward(self, x):
        return Reversal.apply(x)

def needs_an_argument(width):
    return nn.Conv2d(3, width, 3)

number = 7
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_networks_for_check.py").write_text(NETWORK_FILE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_networks_for_check", raising=False)
    return tmp_path


@pytest.mark.parametrize("place", ["my_networks_for_check", "my_networks_for_check.py"])
def test_command_prints_the_table(place: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"{place}:net", "--size", "1x3x41x38", "--tile", "16"]) == 0
    shown = capsys.readouterr().out
    assert "parameter gradient 0.weight" in shown
    assert "1x3x41x38" in shown


def test_command_fails_beyond_tolerance_and_names_the_worst(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["check", "my_networks_for_check:net", "--size", "1x3x41x38", "--tile", "16x8", "--tolerance", "0"])
    assert code == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("BEYOND TOLERANCE: worst error")
    assert "gradient" in last or "output" in last


@pytest.mark.parametrize(
    "factory, size, words",
    [
        ("my_networks_for_check", "1x3x40x40", ("MODULE.PATH:FACTORY",)),
        ("nowhere_at_all:net", "1x3x40x40", ("nowhere_at_all",)),
        ("my_networks_for_check:nothing", "1x3x40x40", ("nothing",)),
        ("my_networks_for_check:needs_an_argument", "1x3x40x40", ("width",)),
        ("my_networks_for_check:number", "1x3x40x40", ("int",)),
        ("my_networks_for_check:Cannot", "1x3x40x40", ("Reversal", "register_rule")),
        ("my_networks_for_check:net", "1x5x40x40", ("5", "3")),
        ("my_networks_for_check:net", "40x40", ("1x3x512x512",)),
    ],
)
def test_command_says_what_is_wrong(
    factory: str, size: str, words: tuple[str, ...], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", factory, "--size", size, "--tile", "16"]) == 2
    shown = capsys.readouterr().err
    for word in words:
        assert word in shown


def test_result_is_frozen() -> None:
    result = check(trunk(), (1, 3, 41, 38), tile=16)
    assert isinstance(result, CheckResult)
    with pytest.raises(AttributeError):
        result.tolerance = 1.0  # type: ignore[misc]


def test_check_is_a_name_of_the_package() -> None:
    assert streamingcnn.check is check
