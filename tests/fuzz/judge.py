"""Plain against streamed, by two plans of one example."""

from __future__ import annotations

import copy

import torch

from streamingcnn import StreamingModule
from streamingcnn.comparison import Row, Step, rows_of, run_step, same_noise
from streamingcnn.plan.search import BudgetError
from tests.background import Known, background, small_cells, with_patch
from tests.fuzz.networks import Example

BOUND = 1e-10


def judged(case: Example) -> tuple[StreamingModule, list[tuple[Row, float]]]:
    """The streamed network, and every tensor of both plans' steps with how far it is from plain's."""
    first = StreamingModule(copy.deepcopy(case.net), tile=case.tile)
    steps = [run_step(first, case.image)]
    if case.other == "shared tiles":
        return first, against_plain(case, first, steps) + _shared(case)
    second = _other(case)
    # One capture serves both; it takes longer than the steps.
    second._graphs.update(first._graphs)
    steps.append(run_step(second, case.image))
    return first, against_plain(case, first, steps)


def against_plain(case: Example, net: StreamingModule, steps: list[Step]) -> list[tuple[Row, float]]:
    """Every tensor of some steps with how far it is from plain's; `net` made them and knows what it dropped."""
    reference = run_step(copy.deepcopy(case.net), case.image, noise=same_noise(net))
    rows = [row for step in steps for row in rows_of(step, reference)]
    return [(row, _error(row, rows, case)) for row in rows]


def _shared(case: Example) -> list[tuple[Row, float]]:
    """The network on an image of one value but for a part of it: equal tiles run once."""
    image = background(*case.image.shape)
    with_patch(image, *((size // 3, size) for size in image.shape[2:]))
    net = StreamingModule(copy.deepcopy(case.net), tile=case.tile)
    with small_cells():
        step = run_step(net, Known(image, 3), input_gradients=False)
    reference = run_step(copy.deepcopy(case.net), image, input_gradients=False, noise=same_noise(net))
    rows = list(rows_of(step, reference))
    return [(row, _error(row, rows, case)) for row in rows]


def _other(case: Example) -> StreamingModule:
    """The second plan: other tiles, or the smallest that the planner finds."""
    net = copy.deepcopy(case.net)
    if not isinstance(case.other, str):
        return StreamingModule(net, tile=case.other)
    streamed = StreamingModule(net, memory=1)
    try:
        streamed.plan(case.image.clone().requires_grad_())
    except BudgetError as error:
        streamed = StreamingModule(net, memory=error.smallest)
    return streamed


def _error(row: Row, rows: list[Row], case: Example) -> float:
    """The project's error; with normalisations, of the largest gradient where the tensor's own is smaller.

    A scale or a bias in front of a normalisation has a gradient that cancels but for eps. What is left is rounding, in
    plain PyTorch too, which changes as much when the image changes in its last bits: 1.1e-10 of itself was seen.
    """
    if not case.norms:
        return row.error
    scale = max((each.norm for each in rows if each.kind.endswith("gradient")), default=0.0)
    parameters = max((each.norm for each in rows if each.kind == "parameter gradient"), default=0.0)
    difference = row.error * max(row.norm, 1e-6 * parameters)
    return difference / max(row.norm, scale, torch.finfo(torch.float64).tiny)
