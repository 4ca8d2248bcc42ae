"""Partition: one image over several ranks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import cached_property
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from ..alone import ALONE, Alone
from ..available import available
from ..boxes import Box, sizes
from ..graph import Graph
from ..ops.noise import torch_states
from ..part import Part
from ..plan.plan import Plan
from ..plan.stages import Globals, Stage
from .agreement import description
from .link import Link, PartitionError
from .member import Member
from .ownership import Division, Layout
from .planning import Ranks

__all__ = ["Partition"]

#: Names of spatial axes, by how many there are.
_NAMES = {1: ("L",), 2: ("H", "W"), 3: ("D", "H", "W")}


class Partition:
    """How one image is divided among the ranks of a process group.

    ::

        mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("spatial",))
        partition = Partition(mesh["spatial"], dims=("H",))
        net = StreamingModule(module, partition=partition, memory="4GiB")
        net(x).mean().backward()    # on every rank; every rank has the whole gradient of every parameter

    Every rank makes its own part of every map, by tiles within its own budget, and exchanges the seams once per
    stage. The result and the gradients are those of one process, to the rounding of sums. Parameters and buffers are
    those of the first rank from the start on. For data parallelism over further ranks wrap the streamed module in
    ``DistributedDataParallel(net, process_group=mesh["dp"].get_group())``, or ``fully_shard(net, mesh=mesh["dp"])``.

    Args:
        mesh: a one-dimensional ``DeviceMesh``, a process group, or None for all ranks.
        dims: the axes that are divided: "D", "H", "W" ("L" of one axis), or their numbers among the spatial axes.
        grid: into how many parts each of ``dims``; left out for one axis, its parts are the ranks.
        weights: for each of ``dims`` the shares of its parts, (1, 5) say; None: equal ones.
        gather: "all": every rank gets results as a whole; "none": each gets the box that it owns
            (:meth:`box`), and its loss is the caller's to sum (:func:`~streamingcnn.distributed.summed`).
        timeout: seconds after which a rank that does not answer is given up.

    Raises:
        ValueError: ``grid`` or ``weights`` do not fit the ranks or each other.
        RuntimeError: there is no process group.
    """

    def __init__(
        self,
        mesh: DeviceMesh | dist.ProcessGroup | None = None,
        dims: Sequence[str | int] = ("H",),
        grid: Sequence[int] | None = None,
        weights: Sequence[Sequence[float]] | None = None,
        gather: str = "all",
        timeout: float = 120.0,
    ) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise RuntimeError(
                "a partition needs a process group: run under torchrun and call torch.distributed.init_process_group()"
            )
        if gather not in ("all", "none"):
            raise ValueError(f"gather={gather!r}; needed is 'all' or 'none'")
        if timeout <= 0:
            raise ValueError(f"timeout={timeout}; needed are seconds, 120 say")
        self.group = _group(mesh)
        self.rank, self.size = dist.get_rank(self.group), dist.get_world_size(self.group)
        self.dims, self.gather = (dims,) if isinstance(dims, (str, int)) else tuple(dims), gather
        self.grid = _grid(self.dims, grid, self.size)
        self.weights = _weights(self.grid, weights)
        #: The connection to the other ranks.
        self.link = Link.to(self.group, timedelta(seconds=timeout))

    def _division(self, space: int) -> Division:
        """How maps of so many spatial axes are divided.

        Raises:
            ValueError: they have no such axis.
        """
        axes = [_axis(dim, space) for dim in self.dims]
        if len(set(axes)) < len(axes):
            raise ValueError(f"dims={self.dims} name an axis twice")
        parts = [self.grid[axes.index(k)] if k in axes else 1 for k in range(space)]
        weights = [self.weights[axes.index(k)] if k in axes else (1.0,) for k in range(space)]
        return Division(tuple(parts), tuple(weights))

    def box(self, shape: Sequence[int], rank: int | None = None) -> Box:
        """The box of a map that a rank owns (this one, unless another is named).

        Args:
            shape: the whole map's, with batch and channels: (1, 3, 4096, 4096).
            rank: of the partition.
        """
        extents = tuple(shape[2:])
        if not 1 <= len(extents) <= 3:
            raise ValueError(f"shape={tuple(shape)}; needed is (batch, channels, *space) with 1, 2 or 3 spatial axes")
        return self._division(len(extents)).boxes(extents)[self.rank if rank is None else rank]

    def input_box(self, shape: Sequence[int]) -> Box:
        """The box of an image that this rank gives to the network, where it does not give all of it.

        ::

            (top, bottom), (left, right) = partition.input_box((1, 3, 8192, 8192))
            net(partition.part(image[..., top:bottom, left:right], (1, 3, 8192, 8192)))
        """
        return self.box(shape)

    def part(self, tensor: Tensor, shape: Sequence[int]) -> Part:
        """The own box of an image, or of a map of classes, in place of all of it.

        Args:
            tensor: the pixels of :meth:`input_box`: with batch and channels, or with batch alone.
            shape: of the whole image, with batch and channels.

        Raises:
            ValueError: the tensor has not the size of this rank's box.
        """
        own = sizes(self.input_box(shape))
        for leading in (2, 1):
            if tuple(tensor.shape) == (*shape[:leading], *own):
                return Part(tensor, (*shape[:leading], *shape[2:]))
        raise ValueError(
            f"rank {self.rank} owns {self.input_box(shape)} of an image {tuple(shape)}, which is a tensor "
            f"{(*shape[:2], *own)}, or {(shape[0], *own)} of classes; got {tuple(tensor.shape)}. Cut it with "
            "partition.input_box(shape)"
        )

    def _member(self, graph: Graph, steps: Sequence[Stage | Globals], device: torch.device) -> Alone:
        """This rank's part in a plan."""
        if self.size == 1:
            return ALONE
        layout = Layout(graph, steps, self._division(graph.space), self.gather == "all")
        return Member(layout, self.link, device)

    def _ranks(self, space: int, parts: frozenset[str] = frozenset()) -> Ranks:
        """What a plan has to know of the ranks."""
        return Ranks(self._division(space), self.gather == "all", parts, self.rank)

    def _agree(self, mine: Mapping[str, str], chance: Any = None) -> Any:
        """Make sure that all ranks are about to run the same step, and give them the first one's ``chance``.

        Raises:
            PartitionError: (on every rank) they are not; it names the ranks and what differs.
        """
        everyone = self.link.all_of("agree on the step", (dict(mine), chance))
        first = everyone[0][0]
        for rank, (theirs, _) in enumerate(everyone):
            differing = [name for name in {**first, **theirs} if theirs.get(name) != first.get(name)]
            if differing:
                pairs = [(name, first.get(name, "none"), theirs.get(name, "none")) for name in differing[:5]]
                said = "; ".join(f"{name}: {there} on rank 0, {here} on rank {rank}" for name, there, here in pairs)
                raise PartitionError(
                    f"rank {rank} is about to run another step than rank 0 ({said}). Every rank of a partition gives "
                    "the same image (or its own part of it) to the same network; nothing was computed"
                )
        return everyone[0][1]

    def _agree_on_step(
        self,
        graph: Graph,
        plan: Plan,
        needs: frozenset[str],
        leaves: Sequence[Any],
        training: bool,
        seed: int | None,
        device: torch.device,
    ) -> int | None:
        """Make sure that all ranks run the same step, with the seed and the random numbers of the first.

        Raises:
            PartitionError: (on every rank) they are not about to.
        """
        said = description(graph, plan, needs, leaves, training)
        drawn, state = self._agree(said, (seed, torch_states(device) if graph.draws else None))
        if state is not None:
            torch.set_rng_state(state[0])
            if state[1] is not None:
                torch.cuda.set_rng_state(state[1], device)
        return drawn  # type: ignore[no-any-return]

    def broadcast(self, module: nn.Module) -> None:
        """Give every rank the parameters and buffers of the first.

        Raises:
            PartitionError: (on every rank) they have not the same ones.
        """
        named = [*module.named_parameters(), *module.named_buffers()]
        self._agree({f"'{name}'": f"{tuple(tensor.shape)} {tensor.dtype}" for name, tensor in named})
        with torch.no_grad():
            for tensor in (*module.parameters(), *module.buffers()):
                held = tensor.detach().contiguous()
                self.link.broadcast("share the parameters", held)
                tensor.copy_(held)

    def _least_available(self, device: torch.device) -> int:
        """The bytes that every rank has free for a step: one budget for all, as they have one plan."""
        return min(int(free) for free in self.link.all_of("agree on the memory", available(device).bytes))

    def verify_replicas(self, module: nn.Module) -> None:
        """Make sure that all ranks have the same parameters and buffers, to the bit.

        Raises:
            PartitionError: (on every rank) they differ; the first that does is named.
        """
        mine = {name: _checksum(t) for name, t in (*module.named_parameters(), *module.named_buffers())}
        everyone = self.link.all_of("compare the parameters", mine)
        for rank, theirs in enumerate(everyone):
            for name, value in everyone[0].items():
                if theirs.get(name) != value:
                    raise PartitionError(
                        f"'{name}' on rank {rank} is not what it is on rank 0; load checkpoints on every rank, and "
                        "give every rank the same optimiser and gradients, or call partition.broadcast(net)"
                    )

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a Partition holds connections to other processes, which cannot be copied or pickled")

    @cached_property
    def _said(self) -> str:
        return " x ".join(f"{dim}: {count}" for dim, count in zip(self.dims, self.grid, strict=True))

    def __repr__(self) -> str:
        return f"Partition({self._said}; rank {self.rank} of {self.size}, gather={self.gather!r})"


def _group(mesh: Any) -> dist.ProcessGroup:
    if mesh is None:
        group = dist.group.WORLD
        assert group is not None
        return group
    if isinstance(mesh, DeviceMesh):
        if mesh.ndim != 1:
            raise ValueError(f"a partition takes one dimension of a mesh, mesh['spatial'] say; got {mesh}")
        return mesh.get_group()
    if isinstance(mesh, dist.ProcessGroup):
        return mesh
    raise TypeError(f"mesh={mesh!r}; needed is a one-dimensional DeviceMesh, a process group, or None for all ranks")


def _grid(dims: Sequence[str | int], grid: Sequence[int] | None, size: int) -> tuple[int, ...]:
    if grid is None:
        if len(dims) != 1:
            raise ValueError(f"dims={tuple(dims)} need grid=, the number of parts along each; their product is {size}")
        return (size,)
    given = tuple(int(count) for count in grid)
    if len(given) != len(dims) or prod(given) != size or any(count < 1 for count in given):
        raise ValueError(
            f"grid={given} for dims={tuple(dims)} and {size} ranks; needed is one number for each of dims, and their "
            f"product is {size}"
        )
    return given


def _weights(grid: Sequence[int], weights: Sequence[Sequence[float]] | None) -> tuple[tuple[float, ...], ...]:
    if weights is None:
        return tuple((1.0,) * count for count in grid)
    given = tuple(tuple(along) for along in weights)
    if [len(along) for along in given] != list(grid) or any(w <= 0 for along in given for w in along):
        raise ValueError(
            f"weights={given} for a grid of {tuple(grid)}; needed are so many positive numbers for each axis"
        )
    return given


def _axis(dim: str | int, space: int) -> int:
    names = _NAMES[space]
    if isinstance(dim, str) and dim.upper() in names:
        return names.index(dim.upper())
    if isinstance(dim, int) and -space <= dim < space:
        return dim % space
    raise ValueError(f"dims names {dim!r}, but the image has the spatial axes {', '.join(names)}")


def _checksum(tensor: Tensor) -> str:
    held = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(held.numpy().tobytes()).hexdigest()
