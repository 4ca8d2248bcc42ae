"""`LiveBytes` counts what a pencil would: each case says its bytes."""

from __future__ import annotations

import gc
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from streamingcnn.memory import LiveBytes, _is_view, format_bytes

KB = 1000  # bytes of a tensor of 250 float32


def ones() -> Tensor:
    return torch.ones(250)


# What is run, the peak it reaches, and what still lives at its end (the result is held), in tensors of 1 KB.
CASES: list[tuple[str, Callable[[Tensor], Any], int, int]] = [
    # One result after another.
    ("a result", lambda x: x * 2, 1, 1),
    ("a temporary dies", lambda x: (x * 2).exp(), 2, 1),
    ("three in a row hold two at a time", lambda x: (x * 2).exp() + 1, 2, 1),
    ("a tuple", lambda x: (x * 2, x * 3), 2, 2),
    # Results that share a storage.
    ("a view of what was there", lambda x: x.view(25, 10).t(), 0, 0),
    ("a view of what was made", lambda x: (x * 2).view(25, 10)[3:], 1, 1),
    ("in place on what was there", lambda x: x.mul_(1).add_(0), 0, 0),
    ("in place on what was made", lambda x: (x * 2).mul_(2), 1, 1),
    ("out=", lambda x: torch.mul(x, 2, out=x), 0, 0),
    ("out= in what was made", lambda x: torch.mul(x, 2, out=torch.empty(250)), 1, 1),
    ("chunks are views", lambda x: (x * 2).chunk(5), 1, 1),
    ("unbind, then one is held", lambda x: (x * 2).view(5, 50).unbind()[0], 1, 1),
    ("detach", lambda x: (x * 2).detach(), 1, 1),
    ("set_ to what was there", lambda x: torch.empty(0).set_(x.untyped_storage()), 0, 0),
    # Ways to make a tensor.
    ("torch.tensor", lambda x: torch.tensor([1.0] * 250), 1, 1),
    ("empty, zeros, randn", lambda x: (torch.empty(250), torch.zeros(250), torch.randn(250)), 3, 3),
    ("a copy in another type", lambda x: x.to(torch.float64), 2, 2),
    ("resized in place", lambda x: torch.empty(250).resize_(500), 2, 2),
    ("NumPy's own memory", lambda x: torch.from_numpy(x.numpy().copy()), 0, 0),
]


@pytest.mark.parametrize(("run", "peak", "left"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_bytes_by_hand(run: Callable[[Tensor], Any], peak: int, left: int) -> None:
    x = ones()
    with LiveBytes() as live:
        held = run(x)
    assert (live.peak, live.current) == (peak * KB, left * KB)
    del held
    assert live.current == 0


def test_what_autograd_holds_lives() -> None:
    x = ones().requires_grad_()
    with LiveBytes() as live:
        y = x.exp()  # 1, saved by its own backward
        z = y.sin()  # 2
        del y
        assert live.current == 2 * KB
        loss = z.sum()
        del z  # not needed by the backward of sum
        assert live.current == 1 * KB + 4
        loss.backward()
        assert x.grad is not None
        assert live.current == 1 * KB + 4  # the saved map is gone, the gradient is here
    x.grad = None
    assert live.current == 4


def test_backward_counts_inside_the_block_only() -> None:
    x = ones().requires_grad_()
    with LiveBytes() as live:
        loss = x.exp().sum()
    before = live.peak
    loss.backward()
    assert live.peak == before
    assert live.current == 4


class _Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        scratch = x * 0
        ctx.save_for_backward(x)
        return x * x + scratch

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x: Tensor = ctx.saved_tensors[0]
        return grad * x * 2


def test_custom_function() -> None:
    x = ones().requires_grad_()
    with LiveBytes() as live:
        y = _Square.apply(x)  # type: ignore[no-untyped-call]
        assert (live.peak, live.current) == (3 * KB, 1 * KB)
        (grad,) = torch.autograd.grad(y, x, torch.ones(250))
        assert live.current == 2 * KB
        assert live.peak == 4 * KB  # y, ones, grad * x, (grad * x) * 2
        assert grad.sum() == 500


def test_checkpoint_recomputes_inside_the_count() -> None:
    def chain(x: Tensor) -> Tensor:
        for _ in range(8):
            x = x.sin()
        return x

    def peak(run: Callable[[Tensor], Tensor]) -> int:
        x = ones().requires_grad_()
        with LiveBytes() as live:
            y = run(x)
            held = live.current
            y.backward(torch.ones(250))
        return held

    from torch.utils.checkpoint import checkpoint

    plain = peak(chain)
    recomputed = peak(lambda x: checkpoint(chain, x, use_reentrant=False))
    assert plain == 8 * KB
    assert recomputed == 1 * KB


def test_a_module_keeps_what_its_backward_needs() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3, padding=1))
    x = torch.randn(1, 3, 16, 16)
    with LiveBytes() as live:
        y = net(x)
        # The first convolution's result is dropped once ReLU has made its own; ReLU's is saved.
        assert live.current == 4 * (4 + 5) * 16 * 16
        y.sum().backward()
        del y
        gradients = sum(p.grad.nbytes for p in net.parameters() if p.grad is not None)
    assert live.current == gradients


def test_nothing_is_kept_alive_and_cycles_are_freed() -> None:
    with LiveBytes() as live:
        a: list[Any] = [ones()]
        a.append(a)
        assert live.current == KB
        del a
        gc.collect()
    assert live.current == 0


def test_nested_counters_agree() -> None:
    with LiveBytes() as outer:
        kept = ones()
        with LiveBytes() as inner:
            made = kept * 2
    assert (outer.current, inner.current) == (2 * KB, KB)
    del made
    assert (outer.current, inner.current) == (KB, 0)


def test_fake_tensors_count_only_where_asked() -> None:
    shape = (1, 3, 64, 64)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 4, 3))

    with LiveBytes() as live, FakeTensorMode(allow_non_fake_inputs=True):
        net(torch.empty(shape)).sum()
    assert live.peak == 0

    def step(x: Tensor) -> None:
        torch.autograd.grad(net(x).sum(), list(net.parameters()))

    real = torch.randn(shape)
    with LiveBytes() as measured:
        step(real)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        fake = torch.empty(shape)
    with mode, LiveBytes(fake=True) as predicted:
        step(fake)
    assert predicted.peak == measured.peak


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
def test_export_inside_the_block_costs_nothing_much() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        fake = torch.empty(1, 3, 4096, 4096)
    with LiveBytes() as live:
        program = torch.export.export(net, (fake,), strict=False)
        # This step makes functional tensors, which say they have memory on the CPU and have none.
        program = program.run_decompositions({})
    assert live.peak < 100 * KB  # one map of this size is 537 MB
    assert any(node.op == "call_function" for node in program.graph.nodes)


def test_sparse_and_storages_of_other_kinds_do_not_break_it() -> None:
    with LiveBytes():
        dense = torch.eye(4).to_sparse().to_dense()
    assert pickle.loads(pickle.dumps(dense)).equal(torch.eye(4))


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (1024, "1.00 KiB"),
        (10 * 1024, "10.0 KiB"),
        (123 * 2**20, "123 MiB"),
        (1000 * 2**20, "0.98 GiB"),
        (-1536, "-1.50 KiB"),
        (5 * 2**50, "5120 TiB"),
    ],
)
def test_format_bytes(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_what_calls_itself_a_view_and_copies_is_counted() -> None:
    with torch.inference_mode(), LiveBytes() as live:  # `reshape` arrives as it is, not as what it does
        copy = torch.ones(25, 10).t().reshape(-1)
    assert (live.current, live.peak) == (KB, 2 * KB), copy.shape


def test_operations_without_kernels_pass() -> None:
    # Asked for its kernels, `prim::device` is an error, in a thread of C++ where that ends the process.
    assert not _is_view(torch.ops.prim.device.default)
    assert _is_view(torch.ops.aten.detach.default) and not _is_view(torch.ops.aten.reshape.default)
