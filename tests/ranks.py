"""What each rank of a test does: `torchrun --standalone --nproc-per-node N -m tests.ranks TASK ...`.

Rank 0 prints one line of JSON per case; the tests in test_partition.py read them. One process group serves a whole
table: starting processes takes longer than most cases.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import runpy
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import EllipsisType
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

import streamingcnn.distributed.partition as distributed_partition
from streamingcnn import Partition, StreamingModule, budget
from streamingcnn.available import Available
from streamingcnn.boxes import Box
from streamingcnn.check import compare
from streamingcnn.comparison import relative_errors, run_step
from streamingcnn.distributed import gathered, load_checkpoint, redistribute, save_checkpoint, summed
from streamingcnn.errors import UnsupportedModuleError
from streamingcnn.memory import LiveBytes
from streamingcnn.models import DiceCrossEntropy, UNet3D, resnet18
from streamingcnn.sources import ReadError
from streamingcnn.training.examples import Draw
from streamingcnn.training.heads import MeanHead
from streamingcnn.training.loop import Recipe, Training
from streamingcnn.training.ranks import Ranks, joined
from streamingcnn.training.tasks import Task

Case = dict[str, Any]


def worst(plain: nn.Module, net: StreamingModule, image: Any, **more: Any) -> float:
    """The largest error of result, gradients and buffers, on any rank."""
    errors = torch.tensor([max(row.error for row in compare(plain, net, image, **more))], dtype=torch.float64)
    dist.all_reduce(errors, dist.ReduceOp.MAX)
    return float(errors)


def table(names: list[str]) -> Iterator[Case]:
    """Every network of the table, divided along one axis after the other; into a grid where there are four ranks."""
    from tests.networks import NETWORKS  # with MONAI, two seconds that the other tasks do not need

    ranks = dist.get_world_size()
    chosen = [network for network in NETWORKS if not names or network.name in names]
    for k, network in enumerate(chosen):
        space = len(network.image) - 1
        batch, tile = network.cases()[k % len(network.cases())]
        axes, parts = [k % space], [ranks]
        if ranks == 4 and space > 1:
            axes, parts = [(k + 1) % space, k % space], [2, 2]
        weights = [(1, 5, 2, 3)[:count] for count in parts] if k % 3 == 0 else None
        torch.manual_seed(k)
        module = network.make()
        image, more = network.inputs(batch)
        case = {"case": f"{network.name}-{batch}-{tile} on axes {axes} in {(*parts,)}, weights {weights}"}
        try:
            net = StreamingModule(module, tile=tile, partition=Partition(None, axes, parts, weights, timeout=60))
            yield {**case, "error": worst(copy.deepcopy(module), net, image, **more)}
        except UnsupportedModuleError as error:
            yield {**case, "refused": str(error)}


def fuzz(names: list[str]) -> Iterator[Case]:
    """Random networks (`tests.fuzz`) divided along one axis or two; two numbers among the names are their seeds."""
    from tests.fuzz import networks
    from tests.fuzz.draw import FromSeed
    from tests.fuzz.judge import against_plain

    first, last = [int(name) for name in names if name.isdigit()] or (0, 8)
    ranks = dist.get_world_size()
    for seed in range(first, last):
        case = networks.example(FromSeed(seed))
        space = case.image.dim() - 2
        grid = ranks == 4 and space > 1 and seed % 2 == 0
        axes, parts = ([0, 1], (2, 2)) if grid else ([seed % space], (ranks,))
        weights = [(1, 5, 2, 3)[:count] for count in parts] if seed % 3 == 0 else None
        partition = Partition(None, axes, parts, weights, timeout=60)
        net = StreamingModule(copy.deepcopy(case.net), tile=case.tile, partition=partition)
        rows = against_plain(case, net, [run_step(net, case.image)])
        errors = torch.tensor([max(error for _, error in rows)], dtype=torch.float64)
        dist.all_reduce(errors, dist.ReduceOp.MAX)
        yield {"case": f"seed {seed} on axes {axes} in {parts}, weights {weights}", "error": float(errors)}


def layouts(_: list[str]) -> Iterator[Case]:
    """Halos wider than a part, parts without pixels, batches, parts given and parts returned."""
    ranks = dist.get_world_size()
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Conv2d(2, 3, 7, padding=3), nn.ReLU(), nn.Conv2d(3, 2, 7, padding=3, dilation=1))
    deep = nn.Sequential(nn.Conv2d(2, 4, 3, 4, 1), nn.Tanh(), nn.Conv2d(4, 3, 3, 4, 1))
    for name, net, shape in (("halo wider than a part", wide, (3, 2, 5, 9)), ("no pixels", deep, (1, 2, 17, 13))):
        module = copy.deepcopy(net).double()
        partition = Partition(None, ("H",), timeout=60)
        streamed = StreamingModule(module, tile=4, partition=partition)
        yield {"case": name, "error": worst(copy.deepcopy(module), streamed, torch.randn(shape, dtype=torch.float64))}
    # Once wrong: tiles keep views of a map, and the seams that arrived later looked like a change of what they kept.
    kept = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 2, 3, padding=1), nn.Tanh()).double()
    streamed = StreamingModule(
        copy.deepcopy(kept), tile=4, stored=("1", "3"), keep=("3",), partition=Partition(None, ("H",), timeout=60)
    )
    image = torch.randn(1, 2, 48, 9, dtype=torch.float64)
    yield {"case": "kept tiles beside a seam", "error": worst(kept, streamed, image)}
    yield {"case": "another budget on each rank", "error": budgets(copy.deepcopy(wide).double())}
    for gather in ("all", "none"):
        yield {"case": f"parts given, gather={gather}", "error": parts(gather, ranks)}

    yield {"case": "classes given as parts", "error": classes()}


def budgets(module: nn.Module) -> float:
    """What each rank has free is another number, and with it were their plans, once."""
    with pytest.MonkeyPatch.context() as patch:
        for place in (budget, distributed_partition):
            patch.setattr(place, "available", lambda _: Available(1 << 18 + dist.get_rank(), "as the test says"))
        streamed = StreamingModule(module, memory="auto", partition=Partition(None, ("H",), timeout=60))
        return worst(copy.deepcopy(module), streamed, torch.randn(1, 2, 65, 40, dtype=torch.float64))


def classes() -> float:
    """A loss inside, every rank with its part of the volume and of the classes."""
    torch.manual_seed(0)
    plain = UNet3D(1, 3, levels=2, filters=2, norm="instance", loss=DiceCrossEntropy([1, 2, 4], dice=0.3)).double()
    shape = (1, 1, 10, 8, 12)
    image, label = torch.randn(shape, dtype=torch.float64), torch.randint(0, 3, (1, 10, 8, 12))
    module = copy.deepcopy(plain)
    partition = Partition(None, ("D",), timeout=60, gather="none")
    net, own = StreamingModule(module, tile=4, partition=partition), partition.input_box(shape)
    losses = [net(*(partition.part(cut(given, own).clone(), shape) for given in (image, label))), plain(image, label)]
    for loss in losses:
        loss.backward()
    found = [losses[0], *(parameter.grad for parameter in module.parameters())]
    wanted = [losses[1], *(parameter.grad for parameter in plain.parameters())]
    return max(relative_errors(dict(enumerate(found)), dict(enumerate(wanted))).values())


def parts(gather: str, ranks: int) -> float:
    """A step whose image every rank has its part of; its loss over parts of the result where they are not gathered."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv3d(1, 4, 3, 2, 1), nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 2, 3, padding=1)
    ).double()
    plain = copy.deepcopy(module)
    shape = (2, 1, 15, 33, 9)
    image = torch.randn(shape, dtype=torch.float64)
    partition = Partition(None, ("W",) if ranks == 3 else ("H",), timeout=60, gather=gather)
    net = StreamingModule(module, tile=8, partition=partition)
    own = cut(image, partition.input_box(shape)).clone().requires_grad_()
    result = net(partition.part(own, shape))
    whole = image.clone().requires_grad_()
    wanted = plain(whole)
    if gather == "all":
        result.square().sum().backward()
        seen = result
    else:
        summed(result.square().sum(), partition).backward()
        seen = gathered(result, wanted.shape, partition)
    wanted.square().sum().backward()
    assert whole.grad is not None and own.grad is not None
    pairs = [(seen, wanted), (own.grad, cut(whole.grad, partition.input_box(shape)))]
    pairs += [(a.grad, b.grad) for a, b in zip(net.parameters(), plain.parameters(), strict=True)]
    pairs += [(a.double(), b.double()) for a, b in zip(net.buffers(), plain.buffers(), strict=True)]
    # The bias in front of a batch norm has no gradient but rounding.
    scale = max(float(b.detach().double().norm()) for _, b in pairs)
    errors = [
        float((a.detach() - b.detach()).norm() / max(float(b.detach().norm()), 1e-4 * scale))
        for a, b in pairs
        if a.numel()
    ]
    found = torch.tensor([max(errors)], dtype=torch.float64)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return float(found)


def cut(tensor: Tensor, box: Box) -> Tensor:
    place: tuple[slice | EllipsisType, ...] = (..., *(slice(low, high) for low, high in box))
    return tensor[place]


def adjoint(names: list[str]) -> Iterator[Case]:
    """<R x, y> = <x, R'y> for 50 tables of owned and needed boxes, drawn at random."""
    partition = Partition(None, ("H",), timeout=60)
    ranks, draw = partition.size, torch.Generator().manual_seed(1)

    def number(high: int) -> int:
        return int(torch.randint(high + 1, (), generator=draw))

    for k in range(50):
        extents = (number(12) + 1, number(6) + 1)
        cuts = sorted(number(extents[0]) for _ in range(ranks - 1))
        own = [((low, high), (0, extents[1])) for low, high in zip([0, *cuts], [*cuts, extents[0]], strict=True)]
        need = []
        for _ in range(ranks):
            ends = [sorted((number(extent), number(extent))) for extent in extents]
            need.append(tuple((low, high) for low, high in ends))
        shape = (2, 3, *extents)
        torch.manual_seed(100 * k + partition.rank)
        x = cut(torch.randn(shape, dtype=torch.float64), own[partition.rank]).clone().requires_grad_()
        wide = redistribute(x, shape, own, need, partition.link)
        y = torch.randn_like(wide)
        wide.backward(y)
        assert x.grad is not None
        sums = torch.stack(
            [(wide.detach() * y).sum(), (x.detach() * x.grad).sum(), x.detach().square().sum(), y.square().sum()]
        )
        dist.all_reduce(sums)
        scale = float((sums[2] * sums[3]).sqrt())
        yield {"case": f"table {k}", "error": float((sums[0] - sums[1]).abs()) / max(scale, 1e-30)}


def traffic(_: list[str]) -> Iterator[Case]:
    """The bytes that were sent against those that the plan says; and the bytes of a rank against its plan's."""
    torch.manual_seed(0)
    for name, module, shape, options in (
        ("resnet18", resnet18(), (1, 3, 256, 192), {"tile": 64}),
        ("unet3d", UNet3D(1, 2, levels=3, filters=4, norm="batch"), (1, 1, 40, 16, 24), {"memory": "4MiB"}),
    ):
        partition = Partition(None, ("H",), timeout=60, gather="none")
        net = StreamingModule(module.eval(), partition=partition, **options)
        image = torch.randn(shape)
        part = partition.part(cut(image, partition.input_box(shape)).clone(), shape)
        plan = net.plan(part)
        before = partition.link.sent
        with LiveBytes() as live:
            result = net(part)
            result.backward(torch.ones_like(result))
        mine = {"sent": partition.link.sent - before, "planned": plan.bytes_sent(partition.rank), "live": live.peak}
        everyone: list[Any] = [None] * partition.size
        dist.all_gather_object(everyone, mine)
        yield {"case": name, "ranks": everyone, "predicted": plan.peak_bytes}


def memory(_: list[str]) -> Iterator[Case]:
    """The bytes of maps and their gradients on the rank that holds most, against one process.

    Gradients of parameters, which do not shrink, are not counted; tiles are small, as they do not shrink either.
    """
    trunk = nn.Sequential(*list(resnet18().eval().children())[:6])
    for name, module, shape, tile in (
        ("resnet18 without its widest layers", trunk, (1, 3, 640, 256), 32),
        ("unet3d", UNet3D(1, 2, levels=3, filters=8, norm="batch").eval(), (1, 1, 96, 48, 48), 12),
    ):
        partition = Partition(None, (0,), timeout=60, gather="none")
        net = StreamingModule(copy.deepcopy(module), partition=partition, tile=tile)
        image = torch.randn(shape)
        part = partition.part(cut(image, partition.input_box(shape)).clone(), shape)
        fixed = sum(parameter.nbytes for parameter in module.parameters())
        alone = peak(StreamingModule(module, tile=tile), image) - fixed
        yield {"case": name, "rank": peak(net, part) - fixed, "alone": alone}


def peak(net: nn.Module, given: Any) -> int:
    """The height of a step in bytes, on the rank where it is highest."""
    with LiveBytes() as live:
        result = net(given)
        result.backward(torch.ones_like(result))
    found = torch.tensor([live.peak])
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def replicas(_: list[str]) -> Iterator[Case]:
    """dp x spatial: DDP and FSDP2 over two images, each on two ranks, against one process; accumulated and clipped."""
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "spatial"))
    torch.manual_seed(0)
    base = nn.Sequential(
        nn.Conv2d(2, 4, 3, 2, 1), nn.GELU(), nn.Conv2d(4, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)
    )
    images = torch.randn(2, 2, 2, 33, 21, dtype=torch.float64)  # of two steps, one image for each of dp
    plain = copy.deepcopy(base).double()
    for step in images:
        plain(step).square().sum(1).mean().backward()
    before = nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
    for kind in ("DDP", "FSDP2"):
        net: Any = StreamingModule(copy.deepcopy(base).double(), tile=8, partition=Partition(mesh["spatial"], ("H",)))
        if kind == "DDP":
            net = DistributedDataParallel(net, process_group=mesh["dp"].get_group())
        else:
            fully_shard(net, mesh=mesh["dp"])
        for step in images:
            net(step[mesh["dp"].get_local_rank()][None]).square().sum(1).mean().backward()
        norm = nn.utils.clip_grad_norm_(net.parameters(), 0.1)
        error = abs(float(full_of(norm)) - float(before)) / float(before)
        for a, b in zip(net.parameters(), plain.parameters(), strict=True):
            assert b.grad is not None
            error = max(error, float((full_of(a.grad) - b.grad).norm() / b.grad.norm()))
        yield {"case": kind, "error": error}


def slides(_: list[str]) -> Iterator[Case]:
    """A training on four slides, two at once, each shared by two ranks, against one process."""

    def trained(ranks: Ranks, accumulate: int, broken: bool) -> Training:
        torch.manual_seed(3)
        net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), MeanHead(4)).double()
        streamed = StreamingModule(net, tile=8, partition=ranks.partition)
        recipe = Recipe(2, accumulate=accumulate, lr=0.01, clip=1e9, schedule="constant")
        loss = Task("binary", ("a", "b")).loss
        made = Training(streamed, _Slides(broken), loss, recipe, validation=_Slides(), ranks=ranks)
        made.run()
        return made

    # Only one rank of each two finds that the last one is damaged.
    together = trained(Ranks(spatial=2), accumulate=1, broken=dist.get_rank() % 2 == 1)
    assert together.effective_batch == 2 and set(together.bad) == {"d"}, together.bad
    if dist.get_rank() == 0:
        alone = trained(_Alone(), accumulate=2, broken=True)
        errors = relative_errors(dict(together.net.state_dict()), dict(alone.net.state_dict()))
        validations = [[epoch.validation or 0.0 for epoch in made.history] for made in (together, alone)]
        differences = (abs(a - b) for a, b in zip(*validations, strict=True))
        yield {"case": "training", "error": max(*errors.values(), *differences)}


class _Alone(Ranks):
    """One process, in the middle of a group."""

    def __init__(self) -> None:
        self._together, self.process, self.processes, self.number, self.count = False, 0, 1, 0, 1
        self.partition = None


class _Slides:
    """Images in float64; the last of them can be damaged."""

    def __init__(self, broken: bool = False) -> None:
        draw = torch.Generator().manual_seed(0)
        self.images = [torch.randn(3, 20, 28, dtype=torch.float64, generator=draw) for _ in range(4)]
        self.names, self.targets, self.broken = ["a", "b", "c", "d"], torch.tensor([0.0, 1.0, 1.0, 0.0]), broken

    def image(self, number: int, draw: Draw) -> Tensor:
        if number == 3 and self.broken:
            raise ReadError("d is damaged")
        return self.images[number]

    def close(self, image: Any) -> None:
        pass


def checkpoints(_: list[str]) -> Iterator[Case]:
    """Saved by two ranks; loaded by three, which go on and save; loaded by each alone.

    Once wrong: torch names groups by how many a process knows, so ranks that knew others waited for each other.
    """
    where: list[Any] = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(where)
    folder = Path(where[0])
    two, three = dist.new_group([0, 1]), dist.new_group([0, 1, 2])
    one = [dist.new_group([rank]) for rank in range(dist.get_world_size())][dist.get_rank()]
    image = torch.randn(1, 1, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def fresh(group: Any) -> tuple[Any, torch.optim.Optimizer]:
        net: nn.Module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3)).double()
        if group is not None:
            net = StreamingModule(net, tile=4, partition=Partition(group, timeout=60))
        return net, torch.optim.AdamW(net.parameters(), 0.01)

    def steps(net: Any, optimizer: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            net(image).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    def state(net: Any, optimizer: torch.optim.Optimizer) -> list[Tensor]:
        moments = [held for each in optimizer.state.values() for held in each.values()]
        return [tensor.detach().clone() for tensor in (*net.state_dict().values(), *moments)]

    saved: list[Any] = [None]
    if dist.get_rank() < 2:
        net, optimizer = fresh(two)
        steps(net, optimizer, 2)
        save_checkpoint(folder, net, optimizer, 2, two)
        (folder / ".step_00000003.partial").mkdir(exist_ok=True)  # a process that was killed while it saved
        saved = [state(net, optimizer)]
    dist.broadcast_object_list(saved)
    same = True
    if dist.get_rank() < 3:
        net, optimizer = fresh(three)
        same = load_checkpoint(folder, net, optimizer, three) == 2 and _same(state(net, optimizer), saved[0])
        steps(net, optimizer, 1)
        save_checkpoint(folder, net, optimizer, 3, three)
        saved = [state(net, optimizer)]
    dist.broadcast_object_list(saved)
    net, optimizer = fresh(None)
    same = same and load_checkpoint(folder, net, optimizer, one) == 3 and _same(state(net, optimizer), saved[0])
    same = same and sorted(path.name for path in folder.iterdir()) == ["step_00000003"]
    flags = torch.tensor([float(same)])
    dist.all_reduce(flags, dist.ReduceOp.MIN)
    if dist.get_rank() == 0:
        shutil.rmtree(folder)
    yield {"case": "two, three, one", "same": bool(flags)}


def _same(a: list[Tensor], b: list[Tensor]) -> bool:
    """Whether these are the same numbers, to the bit."""
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def restart(names: list[str]) -> Iterator[Case]:
    """The example, whose second rank is killed in its third step of six, once; and as it is where nothing happens."""
    folder, backward = Path(names[0]), Tensor.backward
    done = 0

    def killing(self: Tensor, *arguments: Any) -> None:
        nonlocal done
        done += 1
        if done == 3 and dist.get_rank() == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        backward(self, *arguments)  # type: ignore[no-untyped-call]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "backward", killing)
        example(folder / "killed")
    example(folder / "peace")
    nets = []
    for name in ("killed", "peace"):
        net = UNet3D(1, 3, levels=2, filters=4, norm="instance", loss=DiceCrossEntropy([1, 1, 1]))
        optimizer = torch.optim.AdamW(net.parameters())
        assert load_checkpoint(folder / name / "checkpoints", net, optimizer) == 6
        nets.append([*net.state_dict().values(), *(t for each in optimizer.state.values() for t in each.values())])
    yield {"case": "restart", "life": os.environ["TORCHELASTIC_RESTART_COUNT"], "steps": done, "same": _same(*nets)}


def example(out: Path) -> None:
    """`examples/volume_segmentation/train.py` with little to do."""
    program = Path(__file__).parents[1] / "examples" / "volume_segmentation" / "train.py"
    given = f"--size 16x24x24 --volumes 2 --steps 6 --every 1 --levels 2 --filters 4 --memory 16MiB --out {out}"
    arguments, sys.argv = sys.argv, [str(program), *given.split()]
    sys.path.insert(0, str(program.parent))
    try:
        runpy.run_path(str(program), run_name="__main__")
    finally:
        sys.argv = arguments
        sys.path.remove(str(program.parent))


def full_of(tensor: Any) -> Tensor:
    """A sharded tensor as a whole."""
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole


def failing(kinds: list[str]) -> Iterator[Case]:
    """One thing goes wrong on rank 1; every rank has to end, and say why."""
    (kind,) = kinds
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)]
    guilty = dist.get_rank() == 1
    if kind == "layer" and guilty:
        layers.append(nn.Conv2d(4, 4, 1))
    image = torch.randn(1, 2, 40, 32, dtype=torch.float64 if kind == "dtype" and guilty else torch.float32)
    net = nn.Sequential(*layers).to(image.dtype if kind == "dtype" else torch.float32)
    partition = Partition(None, ("H",), timeout=8)
    if kind == "replicas":
        with torch.no_grad():
            next(net.parameters()).add_(dist.get_rank())
        partition.verify_replicas(net)
    streamed = StreamingModule(net, tile=8, partition=partition)
    if kind == "shape" and guilty:
        image = image[..., :30]
    if kind == "sleep" and guilty:
        time.sleep(600)
    if kind in ("kill forward", "exception"):
        result = streamed(_Failing(image, kind if guilty else ""))
    else:
        result = streamed(image)
    if kind == "kill backward" and guilty:
        os.kill(os.getpid(), signal.SIGKILL)
    result.sum().backward()
    yield {"case": kind, "error": 0.0}


class _Failing:
    """A source that ends its process, or raises, in the middle of an image."""

    axes = "NCYX"

    def __init__(self, image: Tensor, kind: str) -> None:
        self.image, self.kind, self.shape, self.dtype = image, kind, tuple(image.shape), image.dtype

    def read(self, box: Box) -> Tensor:
        if self.kind and box[0][0] > 22:
            if self.kind == "exception":
                raise OSError(f"the pixels of {box} cannot be read")
            os.kill(os.getpid(), signal.SIGKILL)
        return cut(self.image, box)


TASKS: dict[str, Callable[[list[str]], Iterator[Case]]] = {
    task.__name__: task
    for task in (table, fuzz, layouts, adjoint, traffic, memory, replicas, slides, checkpoints, restart, failing)
}


def main() -> None:
    """Run the tasks, and print what rank 0 has to say."""
    parser = argparse.ArgumentParser()
    parser.add_argument("tasks", nargs="+", choices=list(TASKS))
    parser.add_argument("--names", nargs="*", default=[])
    options = parser.parse_args()
    torch.set_num_threads(1)
    with joined(torch.device("cpu")):
        for task in options.tasks:
            for case in TASKS[task](options.names):
                if dist.get_rank() == 0:
                    print(json.dumps({"task": task, **case}), file=sys.__stdout__, flush=True)


if __name__ == "__main__":
    main()
