"""The bytes that each size of image may take: said by the user, found out once, or learnt the hard way.

``memory="auto"`` asks the system once for each kind of call (shapes, dtypes, device, training or not) and keeps
the answer: what is free changes from step to step, but a plan that changed with it would not give the same bits
twice. A step that runs out of memory lowers the answer for its own kind of call. Both belong into a checkpoint:
a run that is resumed then makes the plans that it had.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from .available import available
from .errors import StepMemoryError
from .memory import format_bytes, parse_bytes

logger = logging.getLogger("streamingcnn")
Result = TypeVar("Result")

#: What the next plan may take, as a share of the one that ran out of memory.
LESS = 0.8
#: How PyTorch's CPU allocator fails, on Linux and macOS, and on Windows.
_CPU_SAYS = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory")


class Budgets:
    """The budget of each kind of call.

    >>> budgets = Budgets("4GiB")
    >>> budgets.of("1x3x64x64 float32 on cpu", torch.device("cpu"))
    4294967296
    """

    def __init__(self, memory: int | str | None, found: int | None = None) -> None:
        self.given: int | str | None = memory if memory is None or memory == "auto" else parse_bytes(memory)
        #: What "auto" stands for, where it is not for this process alone to say.
        self.found = found
        #: By kind of call: the budgets that were found out or lowered.
        self.frozen: dict[str, int] = {}
        #: By kind of call: the predicted peak of the plan whose last step ran out of memory.
        self.failed: dict[str, int] = {}

    def of(self, call: str, device: torch.device) -> int | None:
        """The bytes that a kind of call may take, or None where nothing limits them."""
        if call in self.frozen:
            return self.frozen[call]
        if not isinstance(self.given, str):
            return self.given
        if self.found is not None:
            self.frozen[call] = self.found
            return self.found
        found = available(device)
        self.frozen[call] = found.bytes
        logger.info('memory="auto" for %s: %s (%s)', call, format_bytes(found.bytes), found.source)
        return found.bytes

    def lower(self, call: str, possible: Callable[[int], int]) -> None:
        """Give a kind of call that ran out of memory less of it, and say so.

        Args:
            call: the kind of call, one of :attr:`failed`.
            possible: of a budget the bytes of a plan that fits in it, or of the smallest plan where none does.
        """
        failed = self.failed.pop(call)
        wanted = possible(int(LESS * failed))
        said = f"the last step ({call}) ran out of memory with a plan of {format_bytes(failed)}"
        if wanted >= failed:
            warnings.warn(f"{said}, and there is no smaller one: this step tries the same again", stacklevel=5)
            return
        self.frozen[call] = wanted
        warnings.warn(
            f"{said}; it is planned anew for {format_bytes(wanted)}. Give memory={wanted} to begin with that, or "
            "load_plan_state() from a checkpoint",
            stacklevel=5,
        )

    def explained(self, call: str, taken: int, tiles: int, fixed: str | None, said: str) -> StepMemoryError:
        """What a step says that ran out of memory; the next one of its kind will take less.

        Args:
            call: the kind of call.
            taken: the bytes of its plan, of so many ``tiles``.
            fixed: why the next plan will be the same, and what to do; None where it will take less.
            said: the allocator's own words.
        """
        budget = self.frozen.get(call, None if isinstance(self.given, str) else self.given)
        if fixed is None:
            self.failed[call] = taken
        then = fixed or f"the next step is planned for {format_bytes(LESS * taken)}"
        made_for = "no budget" if budget is None else f"a budget of {format_bytes(budget)}"
        return StepMemoryError(
            f"a streamed step ({call}) ran out of memory. Its plan was made for {made_for} and takes "
            f"{format_bytes(taken)} beside parameters and image, in {tiles} tiles. No gradient of this module was "
            "changed; those of layers after it may have been, so call optimizer.zero_grad() before the step is run "
            f"again; {then}. It was: {said}",
            taken,
            budget,
        )

    def state(self) -> dict[str, int]:
        """What a checkpoint should hold."""
        return dict(self.frozen)

    def load(self, state: Mapping[str, int]) -> None:
        """Put back what :meth:`state` gave.

        Raises:
            ValueError: it is no table of bytes by kind of call.
        """
        if not isinstance(state, Mapping):
            raise ValueError(f"a plan state is a dict as plan_state() gives it; got {type(state).__name__}")
        for call, count in state.items():
            if not isinstance(call, str) or not isinstance(count, int) or isinstance(count, bool) or count <= 0:
                raise ValueError(f"a plan state holds bytes by kind of call; got {call!r}: {count!r}")
        self.frozen = dict(state)


def kind_of_call(leaves: Iterable[Any], device: torch.device, training: bool) -> str:
    """A name for calls that share a budget; the same in every process and on every machine.

    >>> kind_of_call([torch.empty(1, 3, 64, 64)], torch.device("cpu"), True)
    '1x3x64x64 float32 on cpu, training, with gradients'
    """
    shapes = ", ".join(
        f"{'x'.join(map(str, leaf.shape))} {str(leaf.dtype).removeprefix('torch.')}"
        for leaf in leaves
        if isinstance(leaf, Tensor)
    )
    mode = "training" if training else "evaluating"
    gradients = "with" if torch.is_grad_enabled() else "without"
    return f"{shapes} on {device.type}, {mode}, {gradients} gradients"


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed; on the CPU it has no type of its own."""
    if isinstance(error, torch.OutOfMemoryError):
        return not isinstance(error, StepMemoryError)
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _CPU_SAYS)


def guarded(run: Callable[[], Result], explain: Callable[[str], StepMemoryError]) -> Result:
    """Run; where memory runs out, let go of all that the run held, then raise what ``explain`` makes of it.

    An exception holds the frames that it passed, and they hold tensors. So the new one is raised when the old
    one is gone: a caller who catches it and goes on has the memory back.
    """
    try:
        return run()
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        said = str(error)
    raise explain(said)
