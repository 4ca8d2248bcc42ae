"""The program of each rank: the tasks that it is given, one process group for all of them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist

import streamingcnn.module
from streamingcnn.training.ranks import joined

from .adjoint import adjoint
from .case import Case
from .checkpoints import checkpoints
from .failing import failing
from .fuzz import fuzz
from .layouts import layouts
from .memory import memory
from .replicas import replicas
from .restart import restart
from .sizes import sizes
from .slides import slides
from .table import table
from .traffic import traffic

TASKS: dict[str, Callable[[list[str]], Iterator[Case]]] = {
    task.__name__: task
    for task in (
        table,
        sizes,
        fuzz,
        layouts,
        adjoint,
        traffic,
        memory,
        replicas,
        slides,
        checkpoints,
        restart,
        failing,
    )
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the tasks, and print what rank 0 has to say."""
    parser = argparse.ArgumentParser()
    parser.add_argument("tasks", nargs="+", choices=list(TASKS))
    parser.add_argument("--names", nargs="*", default=[])
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    # A trial on a likely image before the real one would double what the ranks capture, all of them the same.
    streamingcnn.module.__dict__["refuse_early"] = lambda module: None
    with joined(torch.device("cpu")):
        if not dist.is_initialized():
            dist.init_process_group("gloo")  # one process alone is joined to none, and a partition needs a group
        for task in options.tasks:
            for case in TASKS[task](options.names):
                if dist.get_rank() == 0:
                    print(json.dumps({"task": task, **case}), file=sys.__stdout__, flush=True)


if __name__ == "__main__":
    main()
