"""Ways to divide an image: what is wider than a part, what has no pixels, what is given and returned in parts."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn

import streamingcnn.distributed.partition as distributed_partition
from streamingcnn import Partition, StreamingModule, budget
from streamingcnn.available import Available
from streamingcnn.comparison import relative_errors
from streamingcnn.distributed import gathered, summed
from streamingcnn.models import DiceCrossEntropy, UNet3D

from .case import Case, cut, worst


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
