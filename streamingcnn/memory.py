"""How many bytes of tensors live at once, counted to the digit on any device.

The resident size of a process says what its allocator and its threads hold, and CUDA's counter exists on
CUDA only. What a plan promises is about tensors, so tensors are counted: a dispatch mode sees the result of
every operation, adds the bytes of each storage that it has not met, and a finaliser on that storage takes
them off again when it dies. PyTorch keeps ONE Python object per storage for as long as the storage lives,
also when only autograd holds it, so the life of that object is the life of the bytes.

    a storage is born (an operation returns it)       current += its bytes, peak = max(peak, current)
    a view of it, or an in-place result, is returned  nothing: the storage is known
    it is resized                                     corrected when an operation next returns it
    its last tensor is dropped                        current -= its bytes

Scratch memory inside a kernel (the workspace of a convolution, say) is no tensor and is not counted.
"""

from __future__ import annotations

import re
import threading
import weakref
from functools import cache, partial
from typing import Any, Self

import torch
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["LiveBytes", "format_bytes", "parse_bytes"]


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside the `with` block and live at the same time.

    >>> x = torch.ones(1000)  # made before: not counted
    >>> with LiveBytes() as live:
    ...     y = (x * 2).exp()
    >>> live.peak, live.current
    (8000, 4000)
    >>> del y
    >>> live.current
    0

    `peak` and `current` are bytes above what lived at entry; memory that was there before and is written
    in place costs nothing. `current` goes on falling after the block as tensors die. Backward counts like
    forward when it runs inside the block. Tensors over memory that PyTorch did not allocate (NumPy arrays,
    memory-mapped files) and sparse tensors are not counted.

    With `fake=True` it counts the tensors of `FakeTensorMode` and the meta device, which hold no bytes,
    by the bytes they stand for, and no others: a prediction. Without it they count nothing.
    """

    def __init__(self, *, fake: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self.current = 0
        self._fake = fake
        self._bytes_of: dict[int, int] = {}  # id of a living storage -> the bytes counted for it
        self._watched: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        # Finalisers run wherever the last reference is dropped: in another thread, or in the middle of us.
        self._lock = threading.RLock()

    def __enter__(self) -> Self:
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if _is_view(func):  # half of what a step asks for, and no bytes
            return func(*args, **kwargs)
        return self._run(func, args, kwargs)

    def _run(self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the operation and count what it made; a counter that knows its result beforehand need not run it."""
        result = func(*args, **kwargs)
        self._see(func, args, kwargs, result)
        return result

    def _see(self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Count the bytes that were not there before."""
        # `torch.tensor(data)` fills memory unseen and shows it for the first time as this op's argument.
        fresh = func is torch.ops.aten.lift_fresh.default
        given = set() if fresh else {id(storage) for storage in storages((args, kwargs))}
        for storage in storages(result):
            if id(storage) in self._bytes_of or id(storage) not in given:
                self._count(storage)

    def _counts(self, storage: torch.UntypedStorage) -> bool:
        if self._fake or storage.device.type == "meta":
            return self._fake and storage.device.type == "meta"
        return allocated(storage)

    def _count(self, storage: torch.UntypedStorage) -> None:
        if not self._counts(storage):
            return
        key, size = id(storage), storage.nbytes()
        with self._lock:
            if key not in self._bytes_of:
                self._watched[key] = weakref.ref(storage, partial(self._forget, key))
            self.current += size - self._bytes_of.get(key, 0)
            self._bytes_of[key] = size
            if self.current > self.peak:
                self.peak = self.current

    def _forget(self, key: int, _: weakref.ref[torch.UntypedStorage]) -> None:
        with self._lock:
            del self._watched[key]
            self.current -= self._bytes_of.pop(key)


@cache
def _is_view(func: torch._ops.OpOverload) -> bool:
    """Whether an operation shows bytes that were there, always: `reshape` and its like call themselves views too."""
    if not func.is_view or func.namespace != "aten" or func is torch.ops.aten.lift_fresh.default:
        return False
    return not func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)


def allocated(storage: torch.UntypedStorage) -> bool:
    """Whether PyTorch allocated this memory; a NumPy array's or a memory-mapped file's cannot be resized."""
    try:
        storage.data_ptr()
    except RuntimeError:  # of a wrapper around other tensors (torch.export makes them): a size without memory
        return False
    return storage.resizable()


def storages(tree: Any) -> list[torch.UntypedStorage]:
    """The bytes behind every tensor in nested containers."""
    found, waiting = [], [tree]
    while waiting:
        one = waiting.pop()
        if isinstance(one, torch.Tensor):
            # What torch.export wraps its fake tensors in names bytes that nobody holds.
            if one.layout is torch.strided and not isinstance(one, FunctionalTensor):
                found.append(one.untyped_storage())
        elif isinstance(one, (tuple, list)):
            # Most of what operations are given are a few integers; no list mixes them with tensors.
            if not (one and type(one) is list and type(one[0]) is int):
                waiting.extend(one)
        elif isinstance(one, dict):
            waiting.extend(one.values())
        elif isinstance(one, torch.UntypedStorage):  # the second argument of Tensor.set_
            found.append(one)
    return found


def format_bytes(count: float) -> str:
    """Bytes as a person reads them: three digits and a binary unit.

    >>> format_bytes(512), format_bytes(1536), format_bytes(28 * 2**30)
    ('512 B', '1.50 KiB', '28.0 GiB')
    """
    if abs(count) < 1000:
        return f"{count:.0f} B"
    units = ["KiB", "MiB", "GiB", "TiB"]
    count /= 1024
    while abs(count) >= 1000 and len(units) > 1:
        count /= 1024
        del units[0]
    digits = 2 if abs(count) < 10 else 1 if abs(count) < 100 else 0
    return f"{count:.{digits}f} {units[0]}"


def parse_bytes(memory: int | str) -> int:
    """``"4GiB"``, ``"500 MB"`` or a number of bytes.

    >>> parse_bytes("4GiB"), parse_bytes("1.5 MB"), parse_bytes(1000)
    (4294967296, 1500000, 1000)
    """
    if isinstance(memory, int) and not isinstance(memory, bool):
        count = memory
    else:
        match = re.fullmatch(r"\s*([0-9.]+)\s*([kKMGT]?)(i?)B?\s*", str(memory))
        if match is None:
            raise ValueError(f"memory={memory!r}; needed is a number of bytes or a text such as '4GiB' or '500MB'")
        base = 1024 if match[3] else 1000
        count = int(float(match[1]) * base ** " KMGT".index(match[2].upper() or " "))
    if count <= 0:
        raise ValueError(f"memory={memory!r}; a plan needs more than 0 bytes")
    return count
