"""The traps of the design (its section 13), each met once in a trial; the number is in the test's name.

Traps that a network shows by itself are rows of `networks/`: interpolation (10), a bias in front of a
normalisation (11), burnt-in sizes (14), windows that see padding alone (15), pytrees (16).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import streamingcnn
from streamingcnn import StreamingModule, check
from streamingcnn.check import compare, relative_errors, run_step
from tests.blocks import StochasticDepth

BOUND = 1e-10


def trunk() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.LeakyReLU(0.1),
        nn.Dropout(0.0),
        StochasticDepth(nn.Conv2d(4, 4, 3, padding=1), 0.0),
        nn.Conv2d(4, 2, 3, stride=2),
    ).double()


def pair(build: Callable[[], nn.Module] = trunk, tile: int = 12) -> tuple[nn.Module, StreamingModule]:
    module = build()
    return copy.deepcopy(module), StreamingModule(module, tile=tile)


def image(*shape: int) -> Tensor:
    return torch.randn(*(shape or (2, 3, 33, 41)), dtype=torch.float64)


def assert_same_step(plain: nn.Module, streamed: nn.Module, x: Tensor, bound: float = BOUND) -> None:
    worst = max(compare(plain, streamed, x), key=lambda row: row.error)
    assert worst.error <= bound, worst


def test_01_a_parameter_hook_fires_once_and_sees_the_whole_gradient() -> None:
    plain, net = pair()
    calls = []

    def clamp(gradient: Tensor) -> Tensor:
        calls.append(gradient.norm())
        return gradient.clamp(-0.5, 0.5)

    x = image()
    for module in (plain, net):
        module.get_parameter("0.weight").register_hook(clamp)
        module(x).sum().backward()
    assert len(calls) == 2
    torch.testing.assert_close(
        net.get_parameter("0.weight").grad, plain.get_parameter("0.weight").grad, rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("name", ["0.weight", "5.weight"])
def test_02_a_weight_changed_before_backward_is_plains_error(name: str) -> None:
    for module in pair():
        y = module(image())
        with torch.no_grad():
            module.get_parameter(name).add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_02_an_image_changed_before_backward_is_plains_error() -> None:
    for module in pair():
        x = image()
        y = module(x)
        x.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_03_double_backward_is_refused_and_loses_no_term_silently() -> None:
    _, net = pair()
    x = image().requires_grad_()
    y = net(x)
    with pytest.raises(RuntimeError, match=r"create_graph"):  # noqa: PT012 - at the first or at the second
        (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        (gradient.square().sum() + y.sum()).backward()


def test_03_torch_func_is_refused() -> None:
    _, net = pair()
    net.eval()
    with pytest.raises(RuntimeError, match=r"torch\.func|functorch"):
        torch.func.grad(lambda x: net(x).sum())(image())


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return -g


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.use_reentrant = use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = checkpoint(self.conv, x, use_reentrant=self.use_reentrant)
        return torch.tanh(result)


class Reversal(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Reverse.apply(x)  # type: ignore[no-any-return,no-untyped-call]


def around(layer: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), layer, nn.Conv2d(4, 2, 3)).double()


@pytest.mark.parametrize(
    "layer, word",
    [(Reversal(), "Reverse"), (Checkpointed(True), "use_reentrant=False")],
    ids=["autograd_function", "reentrant_checkpoint"],
)
def test_04_what_capture_would_lose_is_refused_by_name(layer: nn.Module, word: str) -> None:
    with pytest.raises(streamingcnn.UnsupportedModuleError, match=word) as caught:
        StreamingModule(around(layer), tile=12)(image())
    assert "'1'" in str(caught.value)


def test_04_a_backward_hook_of_a_submodule_is_refused_by_name() -> None:
    module = trunk()
    module[2].register_full_backward_hook(lambda *_: None)
    with pytest.raises(streamingcnn.UnsupportedModuleError, match=r"'2'(.|\n)*backward hook"):
        StreamingModule(module, tile=12)(image())


def test_04_a_checkpoint_without_reentrance_is_accepted() -> None:
    plain, net = pair(lambda: around(Checkpointed(False)))
    assert_same_step(plain, net, image())


def _sub(index: int) -> Callable[[nn.Module], Any]:
    return lambda module: module.get_submodule(str(index))


CHANGES: dict[str, Callable[[nn.Module], Any]] = {
    "batch_norm_momentum": lambda m: setattr(_sub(1)(m), "momentum", 0.7),
    "batch_norm_eps": lambda m: setattr(_sub(1)(m), "eps", 0.5),
    "slope": lambda m: setattr(_sub(2)(m), "negative_slope", 0.9),
    "dropout_p": lambda m: setattr(_sub(3)(m), "p", 0.5),
    "drop_path_rate": lambda m: setattr(_sub(4)(m), "p", 0.999),
    "one_module_in_eval": lambda m: _sub(1)(m).eval(),
    "frozen": lambda m: _sub(0)(m).requires_grad_(False),
    "one_bias_frozen": lambda m: _sub(5)(m).bias.requires_grad_(False),
    "forward_hook": lambda m: _sub(2)(m).register_forward_hook(lambda mod, args, y: 2 * y),
    "forward_pre_hook": lambda m: _sub(5)(m).register_forward_pre_hook(lambda mod, args: (args[0] * 3,)),
    "another_weight_object": lambda m: setattr(
        _sub(5)(m), "weight", nn.Parameter(torch.ones(2, 4, 3, 3, dtype=torch.float64))
    ),
    "another_module": lambda m: setattr(m, "2", nn.Tanh()),
    "another_kernel": lambda m: setattr(_sub(5)(m), "stride", (1, 1)),
    "parametrised": lambda m: torch.nn.utils.parametrizations.weight_norm(_sub(5)(m)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_05_a_changed_attribute_is_a_new_capture(change: Callable[[nn.Module], Any]) -> None:
    module = trunk()
    plain, net = copy.deepcopy(module), StreamingModule(module, tile=12)
    x = image()
    assert_same_step(plain, net, x)
    for changed in (plain, module):
        change(changed)
    assert_same_step(plain, net, x)


def test_05_the_way_of_running_is_part_of_the_key() -> None:
    """Autocast, grad mode and memory format of one call are not those of the next."""
    plain, net = pair(lambda: trunk().float())
    x = torch.randn(2, 3, 33, 41)
    for module in (plain, net):
        with torch.autocast("cpu", torch.bfloat16):
            assert module(x).dtype == torch.bfloat16
        with torch.no_grad():
            assert not module(x).requires_grad
        assert module(x).dtype == torch.float32
    last = x.contiguous(memory_format=torch.channels_last)
    assert_same_step(plain, net, x, bound=1e-4)
    assert_same_step(plain, net, last, bound=1e-4)


class Counts(nn.Module):
    """Keeps plain Python state in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.shapes: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        self.last_shape = tuple(x.shape)
        return x * 2


class Remembers(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        self.cam = x * 2
        return self.cam


def test_06_a_tensor_remembered_in_forward_is_refused_and_not_left_behind() -> None:
    module = around(Remembers())
    with pytest.raises(streamingcnn.UnsupportedModuleError, match=r"'1'(.|\n)*cam"):
        StreamingModule(module, tile=12)(image())
    assert not hasattr(module[1], "cam")


def test_06_attributes_come_out_of_a_capture_as_they_went_in() -> None:
    module = around(Counts())
    before = [dict(vars(m)) for m in module.modules()]
    StreamingModule(module, tile=12)(image())
    for m, attributes in zip(module.modules(), before, strict=True):
        assert not any("Fake" in type(value).__name__ for value in vars(m).values())
        assert attributes.keys() <= vars(m).keys()


def test_06_a_capture_that_fails_leaves_the_module_as_it_was() -> None:
    class Breaks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            self.seen = x
            raise ValueError("no such image")

    module = around(Breaks())
    with pytest.raises(ValueError, match="no such image"):
        StreamingModule(module, tile=12)(image())
    assert not hasattr(module[1], "seen")
    assert all(type(p) is nn.Parameter for p in module.parameters())


@pytest.mark.parametrize(
    "norm",
    [
        lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        lambda: nn.BatchNorm2d(4),
        lambda: nn.BatchNorm2d(4, momentum=None),
        lambda: nn.GroupNorm(2, 4),
    ],
    ids=["instance", "batch", "cumulative", "group"],
)
def test_07_autocast_leaves_no_casts_behind(norm: Callable[[], nn.Module]) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3), norm(), nn.ReLU(), nn.Conv2d(4, 2, 3))

    plain, net = pair(build)
    x = torch.randn(2, 3, 33, 41)
    steps = []
    for module in (plain, net):
        with torch.autocast("cpu", torch.bfloat16):
            steps.append(run_step(module, x))
    errors = relative_errors(steps[1], steps[0])
    assert max(e for (kind, _), e in errors.items() if kind == "buffer" or kind == "output") < 2e-2, errors
    net.load_state_dict(plain.state_dict())
    assert_same_step(plain, net, x, bound=1e-4)


def test_07_cumulative_momentum_is_read_live_in_every_step() -> None:
    plain, net = pair(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=None)).double())
    for _ in range(4):
        assert_same_step(plain, net, image())
    assert net.get_submodule("1").momentum is None


def test_08_bfloat16_gradients_are_summed_in_float32() -> None:
    """1,024 tiles: a bfloat16 accumulator stops growing once it is 256 times what it adds."""
    module = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 1, 3, padding=1))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.abs_().add_(0.1)
    x = torch.rand(1, 1, 256, 256)
    module, x = module.bfloat16(), x.bfloat16()
    exact = copy.deepcopy(module).double()
    net = StreamingModule(module, tile=8)
    exact(x.double()).sum().backward()
    net(x).sum().backward()
    for (name, a), b in zip(net.named_parameters(), exact.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert a.grad.dtype == torch.bfloat16
        error = (a.grad.double() - b.grad).norm() / b.grad.norm()
        assert error < 1e-2, (name, error)


def test_09_the_wrapper_shares_what_the_module_holds() -> None:
    module = trunk()
    net = StreamingModule(module, tile=12)
    net(image())
    module.register_buffer("late", torch.zeros(1))
    module.append(nn.Conv2d(2, 2, 1).double())
    assert "late" in net.state_dict()
    assert "6.weight" in dict(net.named_parameters())
    assert list(net.state_dict()) == [*dict(net.named_parameters()), *dict(net.named_buffers())] or set(
        net.state_dict()
    ) == {*dict(net.named_parameters()), *dict(net.named_buffers())}
    plain = copy.deepcopy(module)
    assert_same_step(plain, net, image())


def test_12_ties_in_a_max_are_called_ties() -> None:
    """A constant background: which of equal pixels takes the gradient is a matter of rounding."""
    module = nn.Sequential(
        nn.Conv2d(1, 4, 5, padding=2), nn.MaxPool2d(3, 2, 1), nn.Conv2d(4, 4, 3), nn.MaxPool2d(3, 2, 1)
    )
    x = torch.full((1, 1, 64, 72), 0.37, dtype=torch.float64)
    x[:, :, 20:40, 30:50] = torch.randn(20, 20, dtype=torch.float64)
    result = check(module, x, tile=12)
    assert result.ok, result
    for row in result.rows:
        if row.kind != "input gradient":
            assert row.error <= BOUND, row
    if result.ties:
        assert "ties" in str(result)


def test_13_one_value_per_channel_is_plains_error() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).double()

    messages = []
    for module in pair(build):
        with pytest.raises(ValueError, match="Expected more than 1 value per channel when training") as caught:
            module(image(1, 3, 3, 3))
        messages.append(str(caught.value))
    assert messages[0] in messages[1]


def test_13_two_forwards_before_one_backward() -> None:
    plain, net = pair()
    first, second = image(), image(1, 3, 40, 28)
    for module in (plain, net):
        a, b = module(first), module(second)
        (a.square().sum() + b.sum()).backward()
    streamed, wanted = ({n: p.grad for n, p in m.named_parameters()} for m in (net, plain))
    errors = relative_errors(streamed, wanted) | relative_errors(dict(net.named_buffers()), dict(plain.named_buffers()))
    assert max(errors.values()) <= BOUND, errors


def test_13_running_statistics_move_once_per_forward() -> None:
    _, net = pair()
    for step in range(1, 4):
        net(image()).sum().backward()
        assert int(net.get_buffer("1.num_batches_tracked")) == step


def test_16_an_output_nobody_uses_costs_no_gradient() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3), nn.Conv2d(4, 2, 5)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            x = torch.tanh(self.a(x))
            return {"used": self.b(x), "unused": self.c(x)}

    plain, net = pair(lambda: Two().double())
    x = image()
    for module in (plain, net):
        module(x)["used"].square().sum().backward()
    streamed, wanted = ({n: p.grad for n, p in m.named_parameters()} for m in (net, plain))
    errors = relative_errors(streamed, wanted)
    assert max(errors.values()) <= BOUND, errors
    assert net.get_parameter("c.weight").grad is None


@pytest.mark.parametrize("flag", [True, False])
def test_16_arguments_that_are_no_tensors(flag: bool) -> None:
    class Flagged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor, scale: float, *, sharp: bool = False, extra: Tensor | None = None) -> Any:
            x = self.a(x) * scale
            x = x.sign() * x.square() if sharp else x
            return (x, {"extra": None if extra is None else x + extra}, scale)

    plain, net = pair(lambda: Flagged().double())
    x = image()
    for scale in (2.0, 3.0):
        rows = compare(plain, net, x, scale, sharp=flag)
        assert max(row.error for row in rows) <= BOUND
        assert net(x, scale, sharp=flag)[2] == scale
    rows = compare(plain, net, x, 2.0, extra=image(2, 4, 1, 1), sharp=flag)
    assert max(row.error for row in rows) <= BOUND


# Dynamo itself looks at .grad of every tensor it meets.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_17_compiling_around_it_breaks_the_graph_and_not_the_gradient() -> None:
    class Whole(nn.Module):
        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.first, self.body = nn.Conv2d(3, 3, 1).double(), body

        def forward(self, x: Tensor) -> Tensor:
            return F.softplus(self.body(self.first(x) * 2))

    plain, net = pair()
    torch._dynamo.reset()
    whole = Whole(plain)
    streamed = Whole(net)
    streamed.first.load_state_dict(whole.first.state_dict())
    compiled = torch.compile(streamed, backend="aot_eager")
    x = image()
    whole(x).sum().backward()
    compiled(x).sum().backward()
    found, wanted = ({n: p.grad for n, p in m.named_parameters()} for m in (streamed, whole))
    errors = relative_errors(found, wanted)
    assert max(errors.values()) <= BOUND, errors
    torch._dynamo.reset()
