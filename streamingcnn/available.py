"""How much memory there is for a step: what ``memory="auto"`` stands for.

No one figure says it. On the CPU the kernel knows what it could give without swapping (MemAvailable), but a
container or a batch job may hold less: its control group, and every group above it, has a limit of its own.

    /                 MemAvailable      23 GiB
    /sys/fs/cgroup
        jobs          max 16 GiB        16 GiB - (in use - files that can be dropped) = 9 GiB   <- the least counts
            job-7     no limit

What is left is shared by all ranks on the host. On CUDA it is what the device has free, and what this process's
allocator holds and does not use. A tenth stays free: for kernels' scratch memory, and for what is not a tensor.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

#: The share of what there is that a step may take.
SHARE = 0.9


class Available(NamedTuple):
    """A number of bytes, and where the figure comes from."""

    bytes: int
    source: str


def available(device: torch.device) -> Available:
    """The bytes that one step on a device may take now, and where the figure comes from.

    >>> found = available(torch.device("cpu"))
    >>> found.bytes > 0, len(found.source) > 0
    (True, True)

    Raises:
        RuntimeError: this system does not say how much memory it has; the message says what to give instead.
    """
    if device.type == "cuda":
        return _less(_cuda(device), 1)
    if device.type != "cpu":
        raise _unknown(f"a device of type '{device.type}'")
    return _less(_host(), ranks_on_host(os.environ))


def _less(found: Available, ranks: int) -> Available:
    shared = f", shared by {ranks} ranks" if ranks > 1 else ""
    return Available(int(found.bytes * SHARE) // ranks, f"{found.source}{shared}, less {1 - SHARE:.0%}")


def _cuda(device: torch.device) -> Available:
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return Available(free + unused, f"free on {device} and unused in this process's cache")


def ranks_on_host(environment: Mapping[str, str]) -> int:
    """How many processes share this host's memory.

    torchrun says it. Without torchrun every rank counts as one of this host: too many, if anything, and the
    ranks need not talk to each other to know.
    """
    said = environment.get("LOCAL_WORLD_SIZE", "")
    if said.isdigit() and int(said) > 0:
        return int(said)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return 1


def _host() -> Available:
    if sys.platform == "linux":
        return host_of_linux()
    if sys.platform == "darwin":
        return Available(parse_vm_stat(subprocess.check_output(["vm_stat"], text=True)), "free by vm_stat")
    if sys.platform == "win32":
        return _host_of_windows()
    raise _unknown(f"a host of type '{sys.platform}'")


def _unknown(what: str) -> RuntimeError:
    return RuntimeError(
        f'memory="auto" needs to know how much memory is free, and {what} does not say; '
        'give a number, for example memory="8GiB"'
    )


# --------------------------------------------------------------------------------------------------- Linux


def host_of_linux(root: Path = Path("/")) -> Available:
    """The least of what the kernel has available and what each control group around this process has left."""
    found = [Available(_meminfo(root), "MemAvailable"), *_groups(root)]
    return min(found, key=lambda one: one.bytes)


def _meminfo(root: Path) -> int:
    match = re.search(r"^MemAvailable:\s*(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE)
    if match is None:
        raise _unknown("/proc/meminfo (no line MemAvailable)")
    return int(match[1]) * 1024


class _Files(NamedTuple):
    """What the files of a control group are called."""

    version: str
    limits: tuple[str, ...]
    usage: str
    #: The line of memory.stat with the file pages that the kernel drops first; they count as used.
    droppable: str


_V1 = _Files("v1", ("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Files("v2", ("memory.max", "memory.high"), "memory.current", "inactive_file")
#: Version 1 says "no limit" with the largest number of pages that fits in 63 bits.
_NO_LIMIT = 1 << 60


def _groups(root: Path) -> Iterator[Available]:
    """What is left of every limit on this process's control groups, from its own up to the mounted root."""
    paths = _own_paths(_text(root / "proc/self/cgroup"))
    for files, mounted_root, mount in _mounts(_text(root / "proc/self/mountinfo")):
        if files.version not in paths:
            continue
        # In a container the mount may show the group's own folder as its root, and the path be the host's.
        own, top = Path(paths[files.version]), Path(mounted_root)
        inside = own.relative_to(top) if own.is_relative_to(top) and ".." not in own.parts else Path()
        folder = root / mount.lstrip("/")
        for part in (inside, *inside.parents):
            left = _left(folder / part, files)
            if left is not None:
                yield Available(left, f"the rest of the control group /{'' if part == Path() else part}")


def _own_paths(text: str) -> dict[str, str]:
    """``/proc/self/cgroup``: lines of ``id:controllers:path``; version 2 has the id 0 and no controllers."""
    paths = {}
    for line in text.splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            paths["v2"] = path
        elif "memory" in controllers.split(","):
            paths["v1"] = path
    return paths


def _mounts(text: str) -> Iterator[tuple[_Files, str, str]]:
    """``/proc/self/mountinfo``: where control groups of memory are mounted, and which group the mount shows."""
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind, *rest = before.split(), *after.split()
        if kind == "cgroup2":
            yield _V2, _unescaped(fields[3]), _unescaped(fields[4])
        elif kind == "cgroup" and rest and "memory" in rest[-1].split(","):
            yield _V1, _unescaped(fields[3]), _unescaped(fields[4])


def _unescaped(field: str) -> str:
    """Spaces in a path of mountinfo are written ``\\040``."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _left(folder: Path, files: _Files) -> int | None:
    """What a group's limit leaves, or None where it has no limit."""
    limits = [int(text) for name in files.limits if (text := _text(folder / name).strip()).isdigit()]
    usage = _text(folder / files.usage).strip()
    if not limits or min(limits) >= _NO_LIMIT or not usage.isdigit():
        return None
    match = re.search(rf"^{files.droppable} (\d+)$", _text(folder / "memory.stat"), re.MULTILINE)
    droppable = min(int(match[1]) if match else 0, int(usage))
    return max(0, min(limits) - int(usage) + droppable)


def _text(path: Path) -> str:
    """A file's text; empty where there is no such file, or it must not be read."""
    try:
        return path.read_text()
    except OSError:
        return ""


# ------------------------------------------------------------------------------------------ macOS, Windows


def parse_vm_stat(text: str) -> int:
    """The bytes that macOS can give at once: pages that are free, and those it only keeps in case.

    >>> parse_vm_stat("(page size of 16384 bytes)\\nPages free: 10.\\nPages active: 99.\\nPages inactive: 5.")
    245760
    """
    size = re.search(r"page size of (\d+) bytes", text)
    pages = re.findall(r"^Pages (?:free|inactive|speculative):\s*(\d+)\.", text, re.MULTILINE)
    if size is None or not pages:
        raise _unknown("vm_stat")
    return int(size[1]) * sum(map(int, pages))


def _host_of_windows() -> Available:
    if sys.platform != "win32":  # for the type checker, which reads this file for one system at a time
        raise _unknown("this system")
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            *((name, ctypes.c_ulonglong) for name in ("total", "available", "pages", "free_pages")),
            *((name, ctypes.c_ulonglong) for name in ("virtual", "free_virtual", "extended")),
        )

    status = Status(length=ctypes.sizeof(Status))
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        raise _unknown("Windows")
    return Available(int(status.available), "available by GlobalMemoryStatusEx")
