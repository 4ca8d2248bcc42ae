"""One image over several ranks: what each gets is what one process gets, or nothing at all is computed.

The ranks are processes of `tests/ranks/`, one process group for a whole table: forks of a server where the library is
looked at, and under torchrun where that is.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import torch.distributed as dist

from streamingcnn.distributed.ended import last_words
from streamingcnn.distributed.ownership import Division
from tests import forked
from tests.networks import NETWORKS
from tests.ranks.__main__ import main

ROOT = Path(__file__).parents[1]
Case = dict[str, Any]

pytestmark = [
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs torch.distributed, gloo"),
    pytest.mark.timeout(900),
    forked.needs_fork,
]


def torchrun(ranks: int, *arguments: str, restarts: int = 0) -> subprocess.CompletedProcess[str]:
    """The tasks on so many ranks, each with one thread."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += ["--max-restarts", str(restarts)]
    return subprocess.run(
        [*command, "-m", "tests.ranks", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )


@cache
def cases(ranks: int, *arguments: str) -> dict[str, list[Case]]:
    """What rank 0 printed, by task."""
    with TemporaryDirectory() as folder:
        done = forked.ranks(Path(folder), ranks, main, arguments)
    assert all(rank.code == 0 for rank in done), [rank.said[-4000:] for rank in done]
    found: dict[str, list[Case]] = {}
    for case in _cases_in(done[0].out):
        found.setdefault(case["task"], []).append(case)
    return found


def _cases_in(printed: str) -> list[Case]:
    return [json.loads(line) for line in printed.splitlines() if line.startswith("{")]


#: A twelfth of the table each: with two ranks, with three, and in a grid of two by two.
SHARES = {ranks: [network.name for network in NETWORKS[ranks::12]] for ranks in (2, 3, 4)}
# Once wrong: its mask is drawn by a plain node, from torch's generator, and every rank has one of its own.
SHARES[2] = sorted({*SHARES[2], "channel_dropout"})


#: By the number of ranks, the most that one of them holds of what one process does.
MOST = {2: 0.60, 4: 0.35}


def shared(ranks: int) -> dict[str, list[Case]]:
    """What one start of so many processes serves all the tests of."""
    tasks = ["table", "sizes", "fuzz", "layouts", "adjoint", "traffic", *(["memory"] if ranks in MOST else [])]
    return cases(ranks, *tasks, "--names", *SHARES[ranks])


@pytest.mark.parametrize("ranks", SHARES)
def test_every_network_is_exact(ranks: int) -> None:
    """Result, dx, every dW and running statistics; `python -m tests.ranks table` under torchrun runs all networks."""
    found = shared(ranks)["table"]
    assert len(found) == len(SHARES[ranks])
    wrong = [case for case in found if "refused" in case or not case["error"] <= 1e-10]
    assert not wrong, wrong


@pytest.mark.parametrize("ranks", SHARES)
def test_every_network_is_exact_at_other_sizes(ranks: int) -> None:
    """17, 17 x 61 and 15 x 33 x 9: parts of a few pixels, and of none; some networks are made for one size."""
    found = shared(ranks)["sizes"]
    divided = [case for case in found if "unfit" not in case]
    assert len(found) == len(SHARES[ranks]) and len(divided) > 0.75 * len(found)
    wrong = [case for case in divided if "refused" in case or not case["error"] <= 1e-10]
    assert not wrong, wrong


@pytest.mark.parametrize("ranks", SHARES)
def test_random_networks_are_exact(ranks: int) -> None:
    found = shared(ranks)["fuzz"]
    assert len(found) == 8
    assert all(case["error"] <= 1e-10 for case in found), found


@pytest.mark.parametrize("ranks", SHARES)
@pytest.mark.parametrize(("task", "bound"), [("layouts", 1e-10), ("adjoint", 1e-12)])
def test_layouts_and_the_adjoint_are_exact(ranks: int, task: str, bound: float) -> None:
    found = shared(ranks)[task]
    assert len(found) == {"layouts": 7, "adjoint": 50}[task]
    assert all(case["error"] <= bound for case in found), found


@pytest.mark.parametrize("ranks", SHARES)
def test_bytes_are_those_of_the_plan(ranks: int) -> None:
    found = shared(ranks)["traffic"]
    for case in found:
        assert all(rank["sent"] == rank["planned"] > 0 for rank in case["ranks"]), case
        assert all(run == planned > 0 for run, planned in (rank["tiles"] for rank in case["ranks"])), case
        highest = max(rank["live"] for rank in case["ranks"])
        assert highest <= case["predicted"] <= 1.02 * highest, case


@pytest.mark.parametrize(("ranks", "bound"), MOST.items())
def test_a_rank_takes_its_share_of_memory(ranks: int, bound: float) -> None:
    found = shared(ranks)["memory"]
    shares = {case["case"]: case["rank"] / case["alone"] for case in found}
    assert all(share <= bound for share in shares.values()), shares


def test_data_parallel_over_partitions_is_one_process() -> None:
    found = cases(4, "replicas", "slides", "checkpoints")
    kinds = {f"{way}{more}" for way in ("DDP", "FSDP2") for more in ("", ", GradScaler", ", GradScaler, infinite")}
    assert {case["case"] for case in found["replicas"]} == kinds
    assert all(case["error"] <= 1e-11 for case in found["replicas"]), found
    assert all(set(case["scales"]) == {2.0**15} for case in found["replicas"] if "scales" in case), found
    assert found["slides"][0]["error"] <= 1e-10


def test_a_checkpoint_is_for_any_number_of_ranks() -> None:
    """And what a killed process left of one is taken away."""
    (case,) = cases(4, "replicas", "slides", "checkpoints")["checkpoints"]
    assert case["same"]


def test_a_checkpoint_that_was_not_finished_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever dies before all is written leaves the last whole one, and nothing of it stays for long."""
    from streamingcnn.distributed import latest_checkpoint, load_checkpoint, save_checkpoint

    net = torch.nn.Conv2d(1, 2, 3)
    optimizer = torch.optim.AdamW(net.parameters())

    def step() -> dict[str, torch.Tensor]:
        net(torch.ones(1, 1, 4, 4)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        return {name: tensor.clone() for name, tensor in net.state_dict().items()}

    assert load_checkpoint(tmp_path, net, optimizer) == 0
    first = step()
    save_checkpoint(tmp_path, net, optimizer, 1)
    second = step()

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", stopped)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, net, optimizer, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".step_00000002.partial", "step_00000001"]
    assert load_checkpoint(tmp_path, net, optimizer) == 1
    assert all(torch.equal(tensor, first[name]) for name, tensor in net.state_dict().items())
    step()
    assert all(torch.equal(tensor, second[name]) for name, tensor in net.state_dict().items())
    save_checkpoint(tmp_path, net, optimizer, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000002"]
    with pytest.raises(FileExistsError, match="load it with load_checkpoint"):
        save_checkpoint(tmp_path, net, optimizer, 2)
    assert latest_checkpoint(tmp_path) == tmp_path / "step_00000002"


def test_a_killed_training_goes_on_to_the_bit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """torchrun starts the example again after one of its ranks was killed; alone it does the same steps."""
    from tests.ranks.restart import example

    done = torchrun(2, "restart", "--names", str(tmp_path), restarts=1)
    assert done.returncode == 0, done.stderr[-4000:]
    (case,) = _cases_in(done.stdout)
    assert case["life"] == "1" and case["same"], case
    assert "after step 2" in done.stdout
    for said in (OTHER, "backward of '|sum the gradient of ", "was last seen at '"):
        assert re.search(said, done.stderr), done.stderr[-3000:]
    example(tmp_path / "alone")

    def numbers(printed: str) -> list[float]:
        return [float(number) for number in re.findall(r"(?:loss|liver|lesion) ([\d.]+)", printed)]

    alone = numbers(capsys.readouterr().out)
    assert len(alone) == 8
    assert numbers(done.stdout)[-8:] == pytest.approx(alone, abs=2e-4)
    written = [sorted((tmp_path / name / "predictions").iterdir()) for name in ("peace", "alone")]
    assert [path.name for path in written[0]] == [path.name for path in written[1]]
    source = nibabel.Nifti1Image.from_filename(tmp_path / "alone" / "volumes" / "abdomen_16x24x24_002.nii")
    for path in (paths[0] for paths in written):
        found = nibabel.Nifti1Image.from_filename(path)
        assert found.shape == (24, 24, 16) and np.array_equal(found.affine, source.affine)


#: What the other rank says: that it waited in vain or, where torchrun was faster, that it is ended.
OTHER = r"rank 0 of 2 (waited|could not|is ended by SIGTERM)"


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (
            "exception",
            [r"rank 1 of 2 failed: OSError: .* cannot be read \(forward of '", OTHER, "rank 1 failed: OSError"],
        ),
        ("kill forward", [OTHER, "rank 1 was last seen at '"]),
        # Once wrong: torchrun ended the other rank before it came to a message, and it said nothing.
        (
            "kill others compute",
            [r"rank 0 of 2 is ended by SIGTERM, .* \(forward of '1'\): rank 1 was last seen at '"],
        ),
        ("kill backward", [OTHER, r"rank 1 (was last seen|has not come)"]),
        ("sleep", ["could not agree on the step", "within 8 s", "rank 1 has not come to this, and was last seen at '"]),
        ("shape", ["about to run another step than rank 0", "1x2x40x30"]),
        ("dtype", ["about to run another step than rank 0", "float64"]),
        ("layer", ["about to run another step than rank 0", r"'3\.weight': none on rank 0"]),
        ("replicas", [r"'0\.weight' on rank 1 is not what it is on rank 0"]),
    ],
)
def test_every_rank_ends_and_says_why(kind: str, said: list[str], tmp_path: Path) -> None:
    """By itself; where torchrun has to end a rank, it still says why."""
    if kind in ("kill forward", "kill others compute", "sleep"):
        done = torchrun(2, "failing", "--names", kind)
        assert done.returncode != 0
        heard = done.stderr
    else:
        ended = forked.ranks(tmp_path, 2, main, ("failing", "--names", kind), seconds=60)
        assert all(rank.code not in (0, -signal.SIGTERM) for rank in ended), ended
        assert ended[0].code != -signal.SIGKILL, ended
        heard = "".join(rank.said for rank in ended)
    for text in said:
        assert re.search(text, heard), heard[-3000:]


def test_the_handler_of_last_words_is_only_lent() -> None:
    """It is gone after the block, whatever ended it; a program's own is left alone; and in a thread there is none."""
    before = signal.getsignal(signal.SIGTERM)
    seen: list[Any] = []

    def look(error: OSError | None = None) -> None:
        with last_words(list):
            seen.append(signal.getsignal(signal.SIGTERM))
            if error is not None:
                raise error

    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with pytest.raises(OSError, match="a tile"):
            look(OSError("a tile"))
        assert seen.pop() is not signal.SIG_DFL and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        assert seen.pop() is signal.SIG_DFL
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        look()
        assert seen.pop() is signal.SIG_IGN and signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_division() -> None:
    """Balanced by the map's own shape, in proportion to weights, empty where there are not enough pixels."""
    assert Division((3,), ((1, 1, 1),)).boxes((10,)) == (((0, 3),), ((3, 7),), ((7, 10),))
    assert Division((2,), ((1, 5),)).boxes((12,)) == (((0, 2),), ((2, 12),))
    assert Division((4,), ((1,) * 4,)).boxes((2,)) == (((0, 1),), ((1, 1),), ((1, 2),), ((2, 2),))
    assert Division((2, 2), ((1, 1), (1, 1))).boxes((4, 6))[1:3] == (((0, 2), (3, 6)), ((2, 4), (0, 3)))


def test_without_a_process_group() -> None:
    from streamingcnn import Partition

    with pytest.raises(RuntimeError, match=r"run under torchrun and call torch\.distributed"):
        Partition()


def test_one_rank_is_no_partition(tmp_path: Path) -> None:
    """And what cannot be: grids, weights and names that do not fit."""
    from streamingcnn import Partition, StreamingModule

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    try:
        partition = Partition(dims=("H",))
        net = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 3))
        assert StreamingModule(net, partition=partition).partition is None
        for wrong, said in (
            ({"dims": ("H", "W")}, "need grid="),
            ({"grid": (2,)}, "product is 1"),
            ({"weights": [(1, 2)]}, "so many positive numbers"),
            ({"gather": "some"}, "'all' or 'none'"),
            ({"timeout": 0}, "needed are seconds"),
        ):
            with pytest.raises(ValueError, match=said):
                Partition(**wrong)
        with pytest.raises(ValueError, match="spatial axes H, W"):
            Partition(dims=("D",)).input_box((1, 1, 8, 8))
        with pytest.raises(ValueError, match=r"Cut it with partition\.input_box"):
            partition.part(torch.zeros(1, 1, 4, 8), (1, 1, 8, 8))
    finally:
        dist.destroy_process_group()
