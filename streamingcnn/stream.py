"""The one operation that autograd sees.

A ``torch.autograd.Function`` runs the whole plan. Its inputs are the module's inputs and every parameter, so
autograd, DDP, hooks, ``torch.autograd.grad``, GradScaler and clipping see one ordinary operation, and every
parameter receives one gradient however many stages and tiles share it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .budget import guarded
from .errors import DoubleBackwardError, StepMemoryError
from .ops.rule import Value
from .record import Record
from .runner import Runner
from .signature import Sharing


@dataclass
class Job:
    """One call of the Function: the runner, and which given value each tensor argument is."""

    runner: Runner
    tensors: tuple[Value, ...]
    #: Further given values that are no tensors, or that the forward itself changes.
    fixed: dict[str, Any]
    #: Which tiles run, and for how many each stands.
    sharing: Sharing = field(default_factory=Sharing)
    #: What the forward made and the caller has yet to fetch: the new buffer values.
    results: dict[str, Any] = field(default_factory=dict)
    #: Makes the error of a backward that ran out of memory.
    explain: Callable[[str], StepMemoryError] = field(default=lambda said: StepMemoryError(said, 0, None), kw_only=True)


class StreamFunction(torch.autograd.Function):
    """The one operation that autograd sees."""

    @staticmethod
    def forward(ctx: Any, job: Job, *tensors: Tensor) -> tuple[Tensor, ...]:
        record = Record()
        env = {**job.fixed, **{v.name: t.detach() for v, t in zip(job.tensors, tensors, strict=True)}}
        job.results.update(job.runner.forward(env, record, job.sharing))
        # Saved by autograd, not by the record: it checks versions, and frees them with the graph.
        ctx.save_for_backward(*tensors)
        for value in job.tensors:
            del env[value.name]
            if value.spatial:
                job.runner.owner.release(record.maps, value)
        ctx.job, ctx.record, ctx.failed = job, record, False
        ctx.set_materialize_grads(False)
        outputs = tuple(job.results[v.name] for v in job.runner.outputs)
        ctx.mark_non_differentiable(
            *(o for v, o in zip(job.runner.outputs, outputs, strict=True) if v.name not in job.runner.needs)
        )
        job.results = {v.name: job.results[v.name] for _, v in job.runner.graph.mutations}
        return outputs

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise DoubleBackwardError(
                "a streamed module was differentiated with create_graph=True; the gradient of a streamed gradient "
                "is not there. Compute a gradient penalty on the plain module (net.module) at a size that fits"
            )
        job, record = ctx.job, ctx.record
        if record is None and ctx.failed:
            raise RuntimeError("the backward of this step ran out of memory and freed its maps; run the forward again")
        if record is None:
            raise RuntimeError(
                "backward ran a second time through a streamed module whose maps were already freed; "
                "pass retain_graph=True the first time"
            )
        tensors = ctx.saved_tensors
        retain = torch._C._autograd._get_current_graph_task_keep_graph()
        for value, tensor in zip(job.tensors, tensors, strict=True):
            record.env[value.name] = tensor.detach()
            if value.spatial:
                job.runner.owner.retake(record.maps, value, tensor.detach())
        gradients = job.runner.owner.gradients(record.places, record.sharing.tables)
        for value, gradient in zip(job.runner.outputs, given, strict=True):
            gradients.add_by_all(value, gradient)
        try:
            guarded(lambda: job.runner.backward(record, gradients, retain), job.explain)
        except StepMemoryError:
            # This frame is part of the error's traceback: what it holds would live as long as the error.
            record.clear()
            gradients.clear()
            ctx.record, ctx.failed = None, True
            raise
        wanted = [value for value, needed in zip(job.tensors, ctx.needs_input_grad[1:], strict=True) if needed]
        gradients.settle(wanted)
        results = []
        for value, tensor in zip(job.tensors, tensors, strict=True):
            gradient = gradients.pop_given(value, tensor) if value in wanted else None
            results.append(None if gradient is None else gradient.to(tensor.dtype))
        if not retain:
            ctx.record = None
        return (None, *results)
