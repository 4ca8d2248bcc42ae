"""Checkpoints of several ranks, which any number of ranks can go on from.

    run/checkpoints/.step_00000013.partial/     every rank is writing
    run/checkpoints/step_00000012/              the last whole one; gone when the next one has its name

The files are those of ``torch.distributed.checkpoint``: what all ranks have alike is written once, what they have in
shards (FSDP2) by each, and loading deals it out anew. A folder gets its name when all ranks have written it to the
disk, so whenever a process or the machine stops, the newest ``step_...`` is whole.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ..files import to_disk

__all__ = ["latest_checkpoint", "load_checkpoint", "save_checkpoint"]


def save_checkpoint(
    folder: str | Path,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    group: dist.ProcessGroup | None = None,
) -> Path:
    """Write weights, optimiser and step as ``folder/step_00000012``; every rank calls it.

    ::

        save_checkpoint("run/checkpoints", net, optimizer, step)        # alone, or on each rank under torchrun

    Args:
        folder: where checkpoints are, on a disk that all ranks see. Older ones are removed when the new one is whole.
        net: the network, streamed or not, wrapped in DDP or FSDP2 or not.
        optimizer: of its parameters.
        step: how many steps were done.
        group: the ranks; all of them where none is given.

    Raises:
        FileExistsError: there is a checkpoint of this step.
        CheckpointException: (of torch, on every rank) a rank could not write; the older checkpoint is still there.
    """
    folder = Path(folder)
    whole, partial = folder / f"step_{step:08d}", folder / f".step_{step:08d}.partial"
    if whole.exists():
        raise FileExistsError(f"{whole} is there already; load it with load_checkpoint, or choose another folder")
    first = not _together() or dist.get_rank(group) == 0
    _meet(group)
    if first:
        for leftover in folder.glob(".step_*.partial"):  # of a process that was killed
            shutil.rmtree(leftover)
        partial.mkdir(parents=True)
    _meet(group)
    from torch.distributed.checkpoint.state_dict_saver import save  # seconds to import

    with _no_word_of_being_alone():
        save(_state(net, optimizer, step), checkpoint_id=partial, process_group=group, no_dist=not _together())
    if first:
        to_disk(partial)
        older = _all(folder)
        os.replace(partial, whole)
        to_disk(folder)
        for one in older:
            shutil.rmtree(one)
    _meet(group)
    return whole


def load_checkpoint(
    folder: str | Path, net: nn.Module, optimizer: torch.optim.Optimizer, group: dist.ProcessGroup | None = None
) -> int:
    """Go on from the newest checkpoint of a folder; every rank calls it. Returns the step: 0 where there is none.

    ::

        for step in range(load_checkpoint("run/checkpoints", net, optimizer), 1000):
            ...

    The number of ranks need not be the one that wrote it. Torch keeps numbers of the optimiser as pickles: a checkpoint
    from a stranger can run code, so load only your own.

    Raises:
        CheckpointException: (of torch, on every rank) it is of another network or optimiser, or cannot be read.
    """
    found = latest_checkpoint(folder)
    if found is None:
        return 0
    from torch.distributed.checkpoint.state_dict import set_state_dict
    from torch.distributed.checkpoint.state_dict_loader import load

    state = _state(net, optimizer, 0)
    with _no_word_of_being_alone():
        load(state, checkpoint_id=found, process_group=group, no_dist=not _together())
    set_state_dict(net, optimizer, model_state_dict=state["net"], optim_state_dict=state["optimizer"])
    return int(state["step"])


def latest_checkpoint(folder: str | Path) -> Path | None:
    """The newest whole checkpoint of a folder, or None.

    >>> latest_checkpoint("no/such/folder") is None
    True
    """
    return max(_all(Path(folder)), default=None)


def _all(folder: Path) -> list[Path]:
    return list(folder.glob("step_*"))


def _state(net: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import get_state_dict

    weights, moments = get_state_dict(net, optimizer)
    return {"net": weights, "optimizer": moments, "step": torch.tensor(step)}


@contextmanager
def _no_word_of_being_alone() -> Iterator[None]:
    with warnings.catch_warnings():  # torch says it even where it is told so
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()


def _meet(group: dist.ProcessGroup | None) -> None:
    if _together():
        dist.barrier(group)
