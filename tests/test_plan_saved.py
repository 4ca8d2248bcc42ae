"""A plan in a file: it comes back as it was, and nothing that is not one, or is another network's, gets through."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamingcnn import Plan, StreamingModule, stream
from streamingcnn.capture import capture
from streamingcnn.comparison import compare, run_step
from streamingcnn.models import UNet3D
from streamingcnn.plan.identity import graph_hash
from streamingcnn.plan.saved import PlanError, SavedPlan
from tests.blocks import ConvNeXt, Dense, EncoderDecoder, Residual

pytestmark = pytest.mark.usefixtures("untried")

ROOT = Path(__file__).parent.parent
SHAPE = (2, 3, 45, 38)


def trunk() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 5, stride=2, padding=2, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
        Residual(4, 4),
        nn.Conv2d(4, 2, 1),
    ).double()


def image(*shape: int) -> Tensor:
    return torch.randn(*(shape or SHAPE), dtype=torch.float64)


@cache
def text() -> str:
    """The file of the trunk's plan; made once, since most tests start from it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        StreamingModule(trunk(), tile=16).plan(SHAPE).save(path)
        return path.read_text()


def saved(tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    path.write_text(text())
    return path


@cache
def trunk_hash() -> str:
    return of(trunk())


# There and back.

#: A network, its input, and how it is planned: tiles, kept stages, budgets, 1-D to 3-D, globals, dense and skipping.
ROUND_TRIPS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, Any]]] = {
    "tiles": (trunk, SHAPE, {"tile": 16}),
    "kept": (trunk, SHAPE, {"tile": 16, "stored": ("0", "4"), "keep": ("4",)}),
    "budget": (trunk, (2, 3, 130, 120), {"memory": "2MB"}),
    "frozen": (lambda: trunk().eval(), SHAPE, {"tile": (8, 20)}),
    "one_axis": (lambda: EncoderDecoder(1).double(), (1, 1, 40), {"tile": 12}),
    "volume": (lambda: UNet3D(1, 2, levels=2, filters=2).double(), (1, 1, 12, 16, 8), {"tile": (4, 6, 8)}),
    "dense": (lambda: Dense(3, 2, 4).double(), (1, 3, 20, 22), {"tile": 7}),
    "permuted": (lambda: nn.Sequential(nn.Conv2d(3, 4, 2, 2), ConvNeXt(4)).double(), (1, 3, 24, 26), {"tile": 9}),
}


@pytest.mark.parametrize("case", ROUND_TRIPS)
def test_a_plan_comes_back_and_gives_the_same_bits(case: str, tmp_path: Path) -> None:
    build, shape, options = ROUND_TRIPS[case]
    module = build()
    twin = copy.deepcopy(module)
    net = StreamingModule(module, **options)
    plan = net.plan(shape)
    plan.save(tmp_path / "plan.json")

    loaded = Plan.load(tmp_path / "plan.json")
    again = StreamingModule(twin, plan=loaded)
    assert str(again.plan(shape)) == str(plan)
    assert [(s.name, s.tile, s.way, s.stored) for s in again.plan(shape).stages] == [
        (s.name, s.tile, s.way, s.stored) for s in plan.stages
    ]
    assert loaded == SavedPlan.of(plan)
    x = image(*shape)
    # By the plan itself: within a budget, a step that also wants the image's gradient would get a plan of its own.
    ours, theirs = run_step(StreamingModule(module, plan=plan), x), run_step(again, x)
    for key, tensor in ours.items():
        other = theirs[key]
        assert (tensor is None and other is None) or torch.equal(tensor, other), key  # type: ignore[arg-type]


def test_the_plan_itself_is_taken_too_and_its_tiles_are_used() -> None:
    plan = StreamingModule(trunk(), tile=16).plan(SHAPE)
    module = trunk()
    plain = copy.deepcopy(module)
    net = StreamingModule(module, plan=plan)
    assert str(net.plan(SHAPE)) == str(plan) != str(StreamingModule(trunk(), tile=20).plan(SHAPE))
    assert max(row.error for row in compare(plain, net, image())) <= 1e-10


def test_saved_again_it_is_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    StreamingModule(trunk(), memory="2MB").plan((2, 3, 130, 120)).save(path)
    Plan.load(path).save(tmp_path / "second.json")
    assert (tmp_path / "second.json").read_text() == path.read_text()
    assert json.loads(path.read_text())["budget"] == 2_000_000


def test_a_file_holds_names_and_integers_only(tmp_path: Path) -> None:
    data = json.loads(saved(tmp_path).read_text())

    def leaves(value: Any) -> list[Any]:
        if isinstance(value, dict):
            return [leaf for item in value.values() for leaf in leaves(item)]
        return [leaf for item in value for leaf in leaves(item)] if isinstance(value, list) else [value]

    assert {type(leaf) for leaf in leaves(data)} == {str, int, type(None)}
    assert data["images"] == [[2, 3, 45, 38]]
    assert data["torch"] == torch.__version__


def test_a_failed_write_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path)
    before = path.read_text()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    plan = StreamingModule(trunk(), tile=20).plan(SHAPE)
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        plan.save(path)
    assert path.read_text() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["plan.json"]


# An ordinary module.


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copy", "pickle"]
)
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
@pytest.mark.parametrize("form", ["loaded", "made"])
def test_copies_keep_the_plan(form: str, used: bool, duplicate: Callable[[Any], Any], tmp_path: Path) -> None:
    net = StreamingModule(trunk(), tile=16)
    plan = net.plan(SHAPE)
    given = plan if form == "made" else Plan.load(saved(tmp_path))
    net = StreamingModule(trunk(), plan=given)
    plain, x = copy.deepcopy(net.module), image()
    if used:
        run_step(net, x)
        run_step(plain, x)
    twin = duplicate(net)
    assert str(twin.plan(SHAPE)) == str(plan)
    assert max(row.error for row in compare(plain, twin, x)) <= 1e-10


def test_a_named_submodule_with_a_plan(tmp_path: Path) -> None:
    path = saved(tmp_path)
    model = nn.ModuleDict({"backbone": trunk()})
    keys = list(model.state_dict())
    stream(model, "backbone", plan=Plan.load(path))
    assert list(model.state_dict()) == keys
    model["backbone"](image()).sum().backward()
    with pytest.raises(PlanError):
        model["backbone"](image(1, 3, 45, 38))


def test_one_plan_for_training_and_one_for_evaluation() -> None:
    """Batch statistics make another graph than frozen ones, so a loop needs two plans."""
    module = trunk()
    net = StreamingModule(module, tile=16)
    train = net.plan(SHAPE)
    test = net.eval().plan((1, 3, 61, 50))
    net.train()
    plain = copy.deepcopy(module)
    both = StreamingModule(module, plan=[train, test])
    for mode, shape in ((True, SHAPE), (False, (1, 3, 61, 50)), (True, SHAPE)):
        plain.train(mode)
        both.train(mode)
        assert max(row.error for row in compare(plain, both, image(*shape))) <= 1e-10
    with pytest.raises(PlanError, match="another one, or in another mode"):
        both.eval().plan(SHAPE)


def test_grad_mode_and_frozen_parameters_do_not_matter() -> None:
    module = trunk().eval()
    net = StreamingModule(module, plan=StreamingModule(trunk().eval(), tile=16).plan(SHAPE))
    with torch.no_grad():
        net(image())
    module[0].requires_grad_(False)
    net(image()).sum().backward()
    assert module[0].weight.grad is None
    assert module[5].weight.grad is not None


# Whose plan is it?


def of(module: nn.Module, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float64) -> str:
    return graph_hash(capture(module, (torch.empty(shape, dtype=dtype, device="meta"),), {}))


def test_weights_and_layout_are_no_part_of_the_hash() -> None:
    torch.manual_seed(1)
    one = trunk()
    torch.manual_seed(2)
    assert of(one) == of(trunk())
    last = torch.empty(SHAPE, dtype=torch.float64, device="meta", memory_format=torch.channels_last)
    assert graph_hash(capture(one, (last,), {})) == of(one)


CHANGES: dict[str, Callable[[], str]] = {
    "batch": lambda: of(trunk(), (1, 3, 45, 38)),
    "size": lambda: of(trunk(), (2, 3, 45, 39)),
    "mode": lambda: of(trunk().eval()),
    "dtype": lambda: of(trunk().float(), dtype=torch.float32),
    "layer": lambda: of(nn.Sequential(*list(trunk())[:-1], nn.Conv2d(4, 3, 1)).double()),
    "activation": lambda: of(nn.Sequential(*list(trunk())[:2], nn.SiLU(), *list(trunk())[3:]).double()),
    "name": lambda: of(nn.Sequential(nn.Identity(), *trunk())),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_network_size_or_mode_has_another_hash(change: str) -> None:
    assert CHANGES[change]() != trunk_hash()


@pytest.mark.parametrize(
    "one, other",
    [
        (nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=2, dilation=2)),
        (nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")),
        (nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")),
        (nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1)),
        (nn.Upsample(scale_factor=2, mode="bilinear"), nn.Upsample(scale_factor=2, mode="bicubic")),
    ],
    ids=["dilation", "circular", "reflect", "pool", "upsample"],
)
def test_what_a_layer_reads_is_part_of_the_hash(one: nn.Module, other: nn.Module) -> None:
    shape = (1, 3, 46, 38)
    hashes = [of(nn.Sequential(m).double(), shape) for m in (one, other)]
    assert hashes[0] != hashes[1]
    assert [of(nn.Sequential(m).double(), shape) for m in (one, other)] == hashes


def test_hash_is_the_same_in_another_process() -> None:
    code = (
        "import torch\nfrom streamingcnn.plan.identity import graph_hash\n"
        "from tests.test_plan_saved import of, trunk\nprint(of(trunk()))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "77"}
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == of(trunk())


@pytest.mark.parametrize(
    "module, shape, word",
    [
        (trunk(), (2, 3, 45, 40), "size is another one"),
        (trunk().eval(), SHAPE, "another mode"),
        (nn.Sequential(nn.Conv2d(3, 2, 3)).double(), SHAPE, "network is another one"),
    ],
    ids=["size", "mode", "network"],
)
def test_a_plan_of_another_is_refused_with_both_hashes(
    module: nn.Module, shape: tuple[int, ...], word: str, tmp_path: Path
) -> None:
    path = saved(tmp_path)
    net = StreamingModule(module, plan=Plan.load(path))
    for call in (lambda: net(image(*shape)), lambda: net.plan(shape)):
        with pytest.raises(PlanError) as caught:
            call()
        for said in (word, str(path), trunk_hash()[:16], of(module, shape)[:16], "save(path)"):
            assert said in str(caught.value)


def test_another_torch_is_named_where_it_may_be_the_reason(tmp_path: Path) -> None:
    path = saved(tmp_path)
    path.write_text(path.read_text().replace(torch.__version__, "1.2.3"))
    StreamingModule(trunk(), plan=Plan.load(path)).plan(SHAPE)  # the same names: no reason to refuse
    with pytest.raises(PlanError, match=r"torch 1\.2\.3"):
        StreamingModule(trunk().eval(), plan=Plan.load(path)).plan(SHAPE)


# What is no plan.


def without(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda data: data.pop(name)


def put(*path: Any) -> Callable[[dict[str, Any]], None]:
    """``put("stages", 0, "tile", -8)``: data["stages"][0]["tile"] = -8."""

    def change(data: Any) -> None:
        for key in path[:-2]:
            data = data[key]
        data[path[-2]] = path[-1]

    return change


BROKEN: list[tuple[Callable[[dict[str, Any]], None], tuple[str, ...]]] = [
    *((without(name), (f"'{name}' is missing",)) for name in
      ("format", "version", "torch", "graph", "images", "budget", "stored", "stages")),
    (put("format", "something else"), ("no plan",)),
    (put("version", 2), ("version is 2", "reads version 1")),
    (put("version", "1"), ("version is '1'", "an integer")),
    (put("version", True), ("version is True", "an integer")),
    (put("graph", "abc"), ("64 hexadecimal digits",)),
    (put("graph", 7), ("graph is 7", "a text")),
    (put("budget", -5), ("budget is -5", "at least 1")),
    (put("budget", 1.5), ("budget is 1.5", "an integer")),
    (put("images", [[1, 0]]), ("images[0][1] is 0",)),
    (put("images", [[]]), ("images[0] is empty",)),
    (put("stored", "relu"), ("stored is 'relu'", "a list")),
    (put("stored", 0, None), ("stored[0] is None", "a text")),
    (put("stages", {}), ("stages is {}", "a list")),
    (put("stages", 0, "relu"), ("stages[0] is 'relu'", "an object")),
    (put("stages", 0, "tile", [16, -8]), ("stages[0].tile[1] is -8", "at least 1")),
    (put("stages", 0, "tile", [16, 0]), ("stages[0].tile[1] is 0",)),
    (put("stages", 0, "tile", [16, "8"]), ("stages[0].tile[1] is '8'",)),
    (put("stages", 0, "tile", 16), ("stages[0].tile is 16", "a list")),
    (put("stages", 0, "tile", []), ("stages[0].tile is empty",)),
    (put("stages", 0, "way", "fast"), ("stages[0].way is 'fast'", "recompute or keep")),
    (put("stages", 0, {"tile": [1, 1], "way": "keep"}), ("'stages[0].target' is missing",)),
    (put("stages", 0, "surprise", 1), ("nothing is known", "'stages[0].surprise'")),
    (put("surprise", 1), ("nothing is known", "'surprise'")),
]  # fmt: skip


@pytest.mark.parametrize("change, words", BROKEN, ids=[words[0] for _, words in BROKEN])
def test_a_broken_field_is_named_with_its_file(
    change: Callable[[dict[str, Any]], None], words: tuple[str, ...], tmp_path: Path
) -> None:
    path = saved(tmp_path)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(PlanError) as caught:
        Plan.load(path)
    assert isinstance(caught.value, ValueError)
    for word in (*words, str(path)):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe\x00", b"\x80\x04K\x01.", b"[" * 100_000, b"9" * 10_000, b'{"a": 1, "a": 2}'],
    ids=["empty", "cut", "list", "null", "bytes", "pickle", "deep", "long_number", "twice"],
)
def test_a_file_that_is_no_plan(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(PlanError, match=r"plan\.json"):
        Plan.load(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        Plan.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    "change, words",
    [
        (put("stages", 0, "tile", [500, 8]), ("500x8", "23x19", "from 1 to")),
        (put("stages", 0, "tile", [8]), ("one size per axis",)),
        (put("stored", ["nowhere"]), ("'nowhere'", "no such map")),
        (lambda data: data["stages"].pop(0), ("missing: conv2d",)),
        (lambda data: data["stages"].append(dict(data["stages"][0])), ("in this order",)),
        (lambda data: data["stages"].reverse(), ("in this order",)),
        (put("stages", 0, "target", "relu"), ("of no use: relu",)),
    ],
    ids=["too_large", "axes", "unknown", "missing", "twice", "order", "other"],
)
def test_a_stage_that_does_not_fit_the_network(
    change: Callable[[dict[str, Any]], None], words: tuple[str, ...], tmp_path: Path
) -> None:
    """Well formed, and the right hash, but edited into something that cannot run."""
    path = saved(tmp_path)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(PlanError) as caught:
        StreamingModule(trunk(), plan=Plan.load(path))(image())
    for word in (*words, str(path)):
        assert word in str(caught.value)


def test_a_tile_edited_by_hand_is_used(tmp_path: Path) -> None:
    path = saved(tmp_path)
    data = json.loads(path.read_text())
    data["stages"][0].update(tile=[5, 19], way="keep")
    path.write_text(json.dumps(data))
    module = trunk()
    plain = copy.deepcopy(module)
    net = StreamingModule(module, plan=Plan.load(path))
    assert (net.plan(SHAPE).stages[0].tile, net.plan(SHAPE).stages[0].way) == ((5, 19), "keep")
    assert max(row.error for row in compare(plain, net, image())) <= 1e-10


@pytest.mark.parametrize("other", [{"tile": 16}, {"memory": "1GiB"}, {"stored": ("0",)}, {"keep": ("0",)}], ids=str)
def test_a_plan_and_another_choice_together(other: dict[str, Any], tmp_path: Path) -> None:
    plan = Plan.load(saved(tmp_path))
    with pytest.raises(ValueError, match="leave them out"):
        StreamingModule(trunk(), plan=plan, **other)


@pytest.mark.parametrize("given", ["plan.json", {}, [], 7, ["plan.json"]], ids=str)
def test_what_is_given_as_a_plan_is_none(given: Any) -> None:
    with pytest.raises(TypeError, match=r"Plan\.load"):
        StreamingModule(trunk(), plan=given)
