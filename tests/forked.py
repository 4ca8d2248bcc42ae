"""Processes that start at once: forks of a server that has imported everything (:mod:`tests.preloaded`)."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

needs_fork = pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="needs fork")


def process(target: Callable[..., object], *arguments: Any, daemon: bool = True) -> Any:
    """A process that has begun."""
    server: Any = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["tests.preloaded"])
    made = server.Process(target=target, args=arguments, daemon=daemon)
    made.start()
    return made


def free_ports(count: int) -> list[int]:
    """Ports of this host that nobody listens at."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@dataclass(frozen=True)
class Ended:
    """How one rank ended, and what it said."""

    code: int
    out: str
    said: str


def ranks(
    folder: Path, count: int, target: Callable[..., object], *arguments: Any, seconds: float = 800
) -> list[Ended]:
    """Run a function on so many ranks, which find each other as under torchrun, and wait until each has ended.

    Nobody ends a rank here because another one has failed; only one that outlives ``seconds`` is killed.
    """
    (port,) = free_ports(1)
    begun = [process(_rank, rank, count, port, folder, target, arguments) for rank in range(count)]
    end = time.monotonic() + seconds
    for each in begun:
        each.join(max(0.0, end - time.monotonic()))
        each.kill()
        each.join()
    return [
        Ended(each.exitcode, *((folder / f"{rank}.{name}").read_text() for name in ("out", "err")))
        for rank, each in enumerate(begun)
    ]


def _rank(
    rank: int, count: int, port: int, folder: Path, target: Callable[..., object], arguments: tuple[Any, ...]
) -> None:
    for name, stream in (("out", sys.stdout), ("err", sys.stderr)):
        with (folder / f"{rank}.{name}").open("w") as file:
            os.dup2(file.fileno(), stream.fileno())
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    target(*arguments)
