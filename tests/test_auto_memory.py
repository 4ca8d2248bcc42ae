"""memory="auto": what there is, asked once and kept; and a step that runs out of memory all the same."""

from __future__ import annotations

import copy
import gc
import io
import json
import logging
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from streamingcnn import StreamingModule, available, register_rule
from streamingcnn.available import Available, host_of_linux, parse_vm_stat, ranks_on_host
from streamingcnn.comparison import compare
from streamingcnn.errors import StepMemoryError
from streamingcnn.memory import LiveBytes
from streamingcnn.ops.rule import Call, Rule, same_everywhere
from streamingcnn.plan.search import BudgetError

CPU = torch.device("cpu")
KIB = 1024

# What the system has: fake trees of /proc and /sys, since no test may depend on the machine it runs on.


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable:     800 kB\n"}
V2_MOUNT = "31 23 0:28 {root} /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = (
    "32 31 0:30 {root} /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
    "35 31 0:32 {root} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
)
NO_LIMIT_V1 = "9223372036854771712\n"


def v2(path: str, limit: str, current: int, inactive: int = 0, high: str = "max") -> dict[str, str]:
    return {
        f"sys/fs/cgroup/{path}/memory.max": f"{limit}\n",
        f"sys/fs/cgroup/{path}/memory.high": f"{high}\n",
        f"sys/fs/cgroup/{path}/memory.current": f"{current}\n",
        f"sys/fs/cgroup/{path}/memory.stat": f"anon 5\ninactive_file {inactive}\nactive_file 7\n",
    }


def v1(path: str, limit: str, current: int, inactive: int = 0) -> dict[str, str]:
    return {
        f"sys/fs/cgroup/memory/{path}/memory.limit_in_bytes": f"{limit}\n",
        f"sys/fs/cgroup/memory/{path}/memory.usage_in_bytes": f"{current}\n",
        f"sys/fs/cgroup/memory/{path}/memory.stat": f"inactive_file 1\ntotal_inactive_file {inactive}\n",
    }


HOSTS: dict[str, tuple[dict[str, str], int, str]] = {
    # no control group with a limit: the kernel's figure
    "no_groups": ({}, 800 * KIB, "MemAvailable"),
    "v2_unlimited": (
        {"proc/self/cgroup": "0::/a\n", "proc/self/mountinfo": V2_MOUNT.format(root="/"), **v2("a", "max", 9)},
        800 * KIB,
        "MemAvailable",
    ),
    "v1_unlimited": (
        {
            "proc/self/cgroup": "4:memory:/a\n",
            "proc/self/mountinfo": V1_MOUNT.format(root="/"),
            **v1("a", NO_LIMIT_V1.strip(), 9),
        },
        800 * KIB,
        "MemAvailable",
    ),
    # a limit: what is in use comes off it, but for file pages that can be dropped
    "v2": (
        {
            "proc/self/cgroup": "0::/a\n",
            "proc/self/mountinfo": V2_MOUNT.format(root="/"),
            **v2("a", "600000", 200_000, inactive=50_000),
        },
        450_000,
        "/a",
    ),
    "v2_high_is_a_limit_too": (
        {
            "proc/self/cgroup": "0::/a\n",
            "proc/self/mountinfo": V2_MOUNT.format(root="/"),
            **v2("a", "600000", 200_000, high="500000"),
        },
        300_000,
        "/a",
    ),
    "v1": (
        {
            "proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/a\n0::/\n",
            "proc/self/mountinfo": V1_MOUNT.format(root="/"),
            **v1("a", "600000", 200_000, inactive=50_000),
        },
        450_000,
        "/a",
    ),
    # a group within a group: the tighter of the two, whichever that is
    "nested_outer_is_tighter": (
        {
            "proc/self/cgroup": "0::/jobs/seven\n",
            "proc/self/mountinfo": V2_MOUNT.format(root="/"),
            **v2("jobs", "600000", 500_000),
            **v2("jobs/seven", "550000", 100_000),
        },
        100_000,
        "/jobs",
    ),
    "nested_inner_is_tighter": (
        {
            "proc/self/cgroup": "4:memory:/jobs/seven\n",
            "proc/self/mountinfo": V1_MOUNT.format(root="/"),
            **v1("jobs", "700000", 300_000),
            **v1("jobs/seven", "250000", 100_000),
        },
        150_000,
        "/jobs/seven",
    ),
    # in a container the mount shows the group's own folder as its root, under a host's path or under "/"
    "container_v1": (
        {
            "proc/self/cgroup": "4:memory:/docker/0a1b\n",
            "proc/self/mountinfo": V1_MOUNT.format(root="/docker/0a1b"),
            **v1(".", "300000", 100_000),
        },
        200_000,
        "control group /",
    ),
    "container_v2": (
        {
            "proc/self/cgroup": "0::/../../elsewhere\n",
            "proc/self/mountinfo": V2_MOUNT.format(root="/"),
            **v2(".", "300000", 100_000),
        },
        200_000,
        "control group /",
    ),
    # over the limit already (it was lowered): nothing is left, not less than nothing
    "in_debt": (
        {
            "proc/self/cgroup": "0::/a\n",
            "proc/self/mountinfo": V2_MOUNT.format(root="/"),
            **v2("a", "100000", 200_000),
        },
        0,
        "/a",
    ),
    "a_path_with_a_space": (
        {
            "proc/self/cgroup": "0::/\n",
            "proc/self/mountinfo": "31 23 0:28 / /sys/my\\040groups rw - cgroup2 cgroup2 rw\n",
            "sys/my groups/memory.max": "9000\n",
            "sys/my groups/memory.current": "1000\n",
        },
        8000,
        "control group /",
    ),
}


@pytest.mark.parametrize("files, expected, source", HOSTS.values(), ids=HOSTS.keys())
def test_host_of_linux(tmp_path: Path, files: dict[str, str], expected: int, source: str) -> None:
    found = host_of_linux(tree(tmp_path, {**MEMINFO, **files}))
    assert found.bytes == expected
    assert found.source.endswith(source)


def test_a_system_that_does_not_say_is_told_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match='memory="8GiB"'):
        host_of_linux(tree(tmp_path, {"proc/meminfo": "MemTotal: 1000 kB\n"}))
    with pytest.raises(RuntimeError, match='memory="8GiB"'):
        parse_vm_stat("")
    with pytest.raises(RuntimeError, match="'meta'"):
        available.available(torch.device("meta"))


@pytest.mark.parametrize("said, ranks", [({}, 1), ({"LOCAL_WORLD_SIZE": "4"}, 4), ({"LOCAL_WORLD_SIZE": "x"}, 1)])
def test_ranks_on_host(said: dict[str, str], ranks: int) -> None:
    assert ranks_on_host(said) == ranks


def test_ranks_share_the_host_and_a_tenth_stays_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(available, "_host", lambda: Available(1000, "told"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert available.available(CPU) == Available(300, "told, shared by 3 ranks, less 10%")


def test_cuda_counts_what_the_cache_holds_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    """No device is needed for the sum: free 1000, and 700 reserved of which 200 are in use."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 9999))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 200)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")  # each rank has a device of its own
    found = available.available(torch.device("cuda", 1))
    assert found.bytes == 1350
    assert "cuda:1" in found.source


# A budget is asked for once per kind of call, and kept.


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the system has, said by the test: one figure per question, the last one again and again."""
    figures: list[int] = []

    def host() -> Available:
        return Available(figures.pop(0) if len(figures) > 1 else figures[0], "told by the test")

    monkeypatch.setattr(available, "_host", host)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    return figures


def trunk() -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (3, 8, 8, 8):
        layers += [nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers)


def smallest(size: int) -> int:
    with pytest.raises(BudgetError) as caught:
        StreamingModule(trunk(), memory=1).plan((1, 3, size, size))
    return caught.value.smallest


def test_auto_is_what_there_is(free: list[int], caplog: pytest.LogCaptureFixture) -> None:
    free.append(2 * smallest(64))
    net = StreamingModule(trunk(), memory="auto")
    with caplog.at_level(logging.INFO, logger="streamingcnn"):
        plan = net.plan((1, 3, 64, 64))
    assert 0.3 * free[0] < plan.peak_bytes <= 0.9 * free[0]
    (record,) = [record for record in caplog.records if record.name == "streamingcnn"]
    assert "1x3x64x64" in record.message
    assert "told by the test" in record.message
    assert "\n" not in record.message


def test_auto_is_asked_once_per_kind_of_call_and_kept(free: list[int]) -> None:
    least = smallest(64)
    free += [3 * least, 30 * least]
    net = StreamingModule(trunk(), memory="auto")
    x = torch.rand(1, 3, 64, 64)
    first = net.plan(x)
    net(x).sum().backward()
    assert net.plan(x) is first
    assert net.plan((1, 3, 64, 64)).peak_bytes == first.peak_bytes
    assert net.plan_state() == {"1x3x64x64 float32 on cpu, training, with gradients": int(2.7 * least)}
    net.plan((1, 3, 64, 65))
    assert len(free) == 1
    assert sorted(net.plan_state().values()) == [int(2.7 * least), 27 * least]
    with torch.no_grad():
        net.eval()
        net(x)
    assert "1x3x64x64 float32 on cpu, evaluating, without gradients" in net.plan_state()


def test_auto_survives_more_sizes_than_are_remembered(free: list[int]) -> None:
    free += [3 * smallest(64), 1 << 40]
    net = StreamingModule(trunk(), memory="auto")
    before = net.plan((1, 3, 64, 64)).peak_bytes
    for size in range(20, 30):
        net.plan((1, 3, size, size))
    assert net.plan((1, 3, 64, 64)).peak_bytes == before


def test_a_checkpoint_carries_the_budgets_and_no_new_name(free: list[int]) -> None:
    free += [3 * smallest(64), 1 << 40]
    net = StreamingModule(trunk(), memory="auto")
    before = net.plan((1, 3, 64, 64))
    assert net.state_dict().keys() == net.module.state_dict().keys()
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "plans": net.plan_state()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert json.loads(json.dumps(saved["plans"])) == net.plan_state()

    resumed = StreamingModule(trunk(), memory="auto")
    resumed.load_state_dict(saved["net"])
    resumed.load_plan_state(saved["plans"])
    assert str(resumed.plan((1, 3, 64, 64))) == str(before)
    assert len(free) == 1  # the question was asked once, by the first
    assert str(pickle.loads(pickle.dumps(net)).plan((1, 3, 64, 64))) == str(before)
    assert str(copy.deepcopy(net).plan((1, 3, 64, 64))) == str(before)


@pytest.mark.parametrize("state", [{"a": "1GiB"}, {"a": 0}, {1: 1}, {"a": True}, [("a", 1)]])
def test_a_state_that_is_none_is_refused(state: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="plan state"):
        StreamingModule(trunk()).load_plan_state(state)


def test_auto_that_is_too_little_says_what_would_do(free: list[int]) -> None:
    free.append(1000)
    with pytest.raises(BudgetError, match="memory="):
        StreamingModule(trunk(), memory="auto").plan((1, 3, 64, 64))


def test_auto_is_exact(free: list[int]) -> None:
    free.append(2 * 2 * smallest(40))  # twice for float64
    net = trunk().double()
    streamed = StreamingModule(net, memory="auto")
    x = torch.randn(1, 3, 40, 40, dtype=torch.float64)
    rows = compare(copy.deepcopy(net), streamed, x)
    assert streamed.plan(x.requires_grad_()).tiles > len(streamed.plan(x).stages)
    assert max(row.error for row in rows) <= 1e-10


def test_auto_is_the_default_where_nothing_is_chosen() -> None:
    assert StreamingModule(trunk()).memory == "auto"
    assert StreamingModule(trunk(), tile=16).memory is None
    assert StreamingModule(trunk(), stored=["1"]).memory is None


# A step that runs out of memory. An operation fails at its n-th tile, as an allocation on a device would.


class Fuse:
    """Counts calls down and raises at the last; None never raises."""

    def __init__(self) -> None:
        self.left: int | None = None

    def burn(self) -> None:
        if self.left is None:
            return
        self.left -= 1
        if self.left < 0:
            self.left = None
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


forward_fuse, backward_fuse = Fuse(), Fuse()


@torch.library.custom_op("streamingcnn_tests::triple", mutates_args=())
def triple(x: Tensor) -> Tensor:
    forward_fuse.burn()
    return 3 * x


@triple.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("streamingcnn_tests::triple_backward", mutates_args=())
def triple_backward(g: Tensor) -> Tensor:
    backward_fuse.burn()
    return 3 * g


@triple_backward.register_fake
def _(g: Tensor) -> Tensor:
    return torch.empty_like(g)


triple.register_autograd(lambda ctx, g: triple_backward(g))


@register_rule(torch.ops.streamingcnn_tests.triple.default)
def triple_rule(call: Call) -> Rule:
    x = call["x"]
    return Rule((same_everywhere(x),), lambda tile: triple(tile.inputs[0]), axes=x.axes, cheap=False)


class Triple(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = torch.ops.streamingcnn_tests.triple(x)
        return result


def fragile() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), Triple(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
    ).double()


@pytest.fixture(autouse=True)
def _no_fuse_is_left() -> Iterator[None]:
    yield
    forward_fuse.left = backward_fuse.left = None


def fail_in_forward(net: nn.Module, x: Tensor, tiles: int) -> None:
    forward_fuse.left = tiles
    net(x)


def fail_in_recomputation(net: nn.Module, x: Tensor, tiles: int) -> None:
    y = net(x)
    forward_fuse.left = tiles
    y.square().sum().backward()


def fail_in_backward(net: nn.Module, x: Tensor, tiles: int) -> None:
    backward_fuse.left = tiles
    net(x).square().sum().backward()


def fail_without_gradients(net: nn.Module, x: Tensor, tiles: int) -> None:
    forward_fuse.left = tiles
    with torch.no_grad():
        net(x)


Failure = Callable[[nn.Module, Tensor, int], None]
FAILURES: list[Failure] = [fail_in_forward, fail_in_recomputation, fail_in_backward]


@pytest.mark.parametrize("tiles", [0, 3])
@pytest.mark.parametrize("fail", FAILURES)
def test_gradients_are_left_as_they_were(fail: Failure, tiles: int) -> None:
    net = StreamingModule(fragile(), tile=8)
    x = torch.randn(2, 3, 24, 24, dtype=torch.float64)
    net(x).square().sum().backward()
    buffers = copy.deepcopy(dict(net.named_buffers()))
    before = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    with pytest.raises(StepMemoryError):
        fail(net, x, tiles)
    assert len(before) == 6
    assert all(torch.equal(p.grad, before[name]) for name, p in net.named_parameters() if p.grad is not None)
    if fail is fail_in_forward:  # no statistics of half an image
        assert all(torch.equal(b, buffers[name]) for name, b in net.named_buffers())

    with pytest.warns(UserWarning, match="planned anew"):
        plan = net.plan(x)
    assert plan.tiles > 9
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        net.zero_grad()
        net(x).square().sum().backward()
    for name, p in net.named_parameters():
        torch.testing.assert_close(p.grad, before[name], rtol=1e-9, atol=1e-9)


def test_the_next_step_itself_plans_anew_and_says_so() -> None:
    net = StreamingModule(fragile(), memory="1MiB")
    x = torch.randn(2, 3, 24, 24, dtype=torch.float64)
    first = net.plan(x).peak_bytes
    with pytest.raises(StepMemoryError):
        fail_in_backward(net, x, 0)
    with pytest.warns(UserWarning, match="planned anew"):
        rows = compare(copy.deepcopy(net.module), net, x)
    # compare() asks for the image's gradient, so its capture is another one; the budget is one per kind of call.
    assert max(row.error for row in rows) <= 1e-10
    assert net.plan(x).peak_bytes <= 0.8 * first
    assert list(net.plan_state().values()) == [int(0.8 * first)]


def test_the_error_says_what_was_planned_and_what_to_do() -> None:
    net = StreamingModule(fragile(), memory="1MiB")
    x = torch.randn(2, 3, 24, 24, dtype=torch.float64)
    peak = net.plan(x).peak_bytes
    with pytest.raises(torch.OutOfMemoryError) as caught:  # plain PyTorch's own type, for who catches that
        fail_in_backward(net, x, 0)
    error = caught.value
    assert isinstance(error, StepMemoryError)
    assert (error.budget, error.peak) == (1 << 20, peak)
    for words in ("2x3x24x24", "1.00 MiB", "zero_grad", "next step is planned for", "Tried to allocate 2.00 GiB"):
        assert words in str(error), words
    copied = pickle.loads(pickle.dumps(error))
    assert (str(copied), copied.peak, copied.budget) == (str(error), error.peak, error.budget)


@pytest.mark.parametrize("fail", [*FAILURES, fail_without_gradients])
def test_who_catches_the_error_has_the_memory_back(fail: Failure) -> None:
    """An exception holds the frames that it passed, and frames hold tiles, maps and gradients."""
    net = StreamingModule(fragile().float(), tile=32, stored=["1", "2"], keep=["1"])
    x = torch.randn(1, 3, 128, 128)
    one_map = 8 * 128 * 128 * 4
    net(x).sum().backward()
    gc.collect()
    gc.disable()
    try:
        with LiveBytes() as live:
            try:
                fail(net, x, 5)
            except StepMemoryError:
                held = live.current
            # The result and the gradient given to it are the caller's own.
            assert held <= (2.01 if fail in (fail_in_recomputation, fail_in_backward) else 0.01) * one_map
            assert live.peak > 2 * one_map
            assert live.current == 0
    finally:
        gc.enable()


def test_a_second_backward_through_what_failed_says_why() -> None:
    net = StreamingModule(fragile(), tile=8)
    y = net(torch.randn(2, 3, 24, 24, dtype=torch.float64))
    backward_fuse.left = 2
    with pytest.raises(StepMemoryError):
        y.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="run the forward again"):
        y.sum().backward()


def test_a_plan_of_the_users_own_is_not_changed_behind_their_back() -> None:
    net = StreamingModule(fragile(), tile=8, stored=["1"])
    x = torch.randn(2, 3, 24, 24, dtype=torch.float64)
    before = net.plan(x)
    with pytest.raises(StepMemoryError, match="stored= and keep= fix the plan"):
        fail_in_backward(net, x, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert net.plan(x) is before


def test_nothing_smaller_is_tried_again_and_said() -> None:
    """Memory may have been short for a moment: a module must not refuse a size for ever after."""
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    with pytest.raises(BudgetError) as caught:
        StreamingModule(fragile(), memory=1).plan(x)
    net = StreamingModule(fragile(), memory=caught.value.smallest)
    before = net.plan(x).peak_bytes
    with pytest.raises(StepMemoryError):
        fail_in_forward(net, x, 0)
    with pytest.warns(UserWarning, match="no smaller one"):
        assert net.plan(x).peak_bytes == before


def test_other_errors_are_passed_on_as_they_are() -> None:
    net = StreamingModule(fragile(), tile=8)
    y = net(torch.randn(2, 3, 24, 24, dtype=torch.float64))
    with pytest.raises(RuntimeError) as caught:
        y.backward(torch.ones(3))
    assert not isinstance(caught.value, StepMemoryError)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on a process's memory is Linux's")
def test_a_host_without_memory_is_reported_in_the_same_way() -> None:
    """The CPU's allocator raises an ordinary RuntimeError; a request for more than there is address space gets it."""

    class Greedy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    net = StreamingModule(Greedy(), tile=8)
    x = torch.ones(1).expand(1 << 20, 1 << 20, 16, 16)  # 1 PiB that takes 4 bytes
    with pytest.raises(StepMemoryError, match="can't allocate memory"):
        net(x)
