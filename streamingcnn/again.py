"""A module that holds nothing between forward and backward but its input and its result.

    forward     x -> y                                  without a graph
    ...         (whatever comes after has the memory for itself)
    backward    x -> y again, now with its graph, gradient, forgotten

It costs one more forward pass. The second run is the first one to the bit: it draws the same random numbers, has the
buffers and modes of the first, and what it writes to buffers (the running statistics of a batch norm) is thrown away,
since the first run has written it.

torch.utils.checkpoint would do for a plain module. For a streamed one it would not: what that holds for its backward is
no tensor that autograd saved, which is all that checkpoint drops (``use_reentrant=False``), and the older kind calls
``backward`` inside, so that ``torch.autograd.grad`` is refused; either would update running statistics twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .errors import DoubleBackwardError
from .ops.noise import torch_states
from .sources.source import Source

__all__ = ["recomputed"]


def recomputed(module: nn.Module, x: Tensor | Source) -> Any:
    """What a module, plain or streamed, makes of an image; the module runs again in the backward pass.

    >>> layer = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Dropout())
    >>> recomputed(layer, torch.ones(1, 1, 8, 8)).sum().backward()
    >>> layer[0].weight.grad.shape
    torch.Size([4, 1, 3, 3])

    The result is a tensor or a tuple of them, as of the module. Where no gradient is wanted, it runs once.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    wanted = bool(parameters) or (isinstance(x, Tensor) and x.requires_grad)
    if not (torch.is_grad_enabled() and wanted):
        return module(x)
    return _Again.apply(module, x, *parameters)  # type: ignore[no-untyped-call]


class _Again(torch.autograd.Function):
    """One operation whose backward is a forward and a backward."""

    @staticmethod
    def forward(ctx: Any, module: nn.Module, x: Tensor | Source, *parameters: Tensor) -> Any:
        ctx.module, ctx.source = module, None if isinstance(x, Tensor) else x
        # As saved tensors, so that a change in place between forward and backward is an error.
        ctx.save_for_backward(*((x,) if isinstance(x, Tensor) else ()), *parameters)
        ctx.set_materialize_grads(False)
        ctx.first = _FirstRun(module, x.device if isinstance(x, Tensor) else parameters[0].device)
        made = module(x)
        ctx.first.forget_generators_not_used()
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        if torch.is_grad_enabled():
            raise DoubleBackwardError(
                "a module that is computed again in the backward pass was differentiated with create_graph=True; the "
                "gradient of its gradient is not there. Call the module itself, at a size that fits"
            )
        saved = ctx.saved_tensors
        parameters = list(saved if ctx.source is not None else saved[1:])
        wants_image = ctx.needs_input_grad[1]
        x = ctx.source if ctx.source is not None else saved[0].detach().requires_grad_(wants_image)
        with torch.enable_grad(), ctx.first.as_it_was(ctx.module) as buffers:
            made = torch.func.functional_call(ctx.module, buffers, (x,))
        made = made if isinstance(made, tuple) else (made,)
        pairs = [(y, g) for y, g in zip(made, gradients, strict=True) if g is not None and y.requires_grad]
        wanted = [*([x] if wants_image else []), *parameters]
        found: tuple[Tensor | None, ...] = (None,) * len(wanted)
        if pairs:
            found = torch.autograd.grad([y for y, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True)
        return (None, *(found if wants_image else (None, *found)))


class _FirstRun:
    """What the first run depended on beside its input and its parameters."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.device = device
        self.buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        self.modes = [each.training for each in module.modules()]
        self.generators: tuple[Tensor, Tensor | None] | None = torch_states(device)
        kind = device.type
        known = torch.amp.is_autocast_available(kind)
        self.autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)) if known else None

    def forget_generators_not_used(self) -> None:
        """Keep no state of generators where the run drew nothing: 5 KB for each slice of a volume."""
        assert self.generators is not None
        now = torch_states(self.device)
        same = [torch.equal(a, b) for a, b in zip(self.generators, now, strict=True) if a is not None and b is not None]
        if all(same):
            self.generators = None

    @contextmanager
    def as_it_was(self, module: nn.Module) -> Iterator[dict[str, Tensor]]:
        """Modes, generators and autocast of the first run; and copies of its buffers, to be written to."""
        modes = [each.training for each in module.modules()]
        _set_modes(module, self.modes)
        devices = [self.device] if self.device.type == "cuda" else []
        drawn = self.generators is not None
        try:
            with (
                torch.random.fork_rng(devices, enabled=drawn),
                torch.autocast(*self.autocast) if self.autocast else nullcontext(),
            ):
                if self.generators is not None:
                    torch.set_rng_state(self.generators[0])
                    if self.generators[1] is not None:
                        torch.cuda.set_rng_state(self.generators[1], self.device)
                yield {name: buffer.clone() for name, buffer in self.buffers.items()}
        finally:
            _set_modes(module, modes)


def _set_modes(module: nn.Module, modes: list[bool]) -> None:
    # By train(), which a streamed module passes on; parents come before their children, which may differ from them.
    for each, mode in zip(list(module.modules()), modes, strict=True):
        if each.training != mode:
            each.train(mode)
