"""One training step, plainly and streamed: the bytes of each, and how far their gradients are apart."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from torch import Tensor

from streamingcnn.check import compare, run_step
from streamingcnn.memory import LiveBytes
from streamingcnn.module import StreamingModule
from streamingcnn.slides.stain import standardised

__all__ = ["Proof", "prove"]


@dataclass(frozen=True)
class Proof:
    """Bytes of live tensors at the peak of one step, beside input and parameters, and the worst error.

    ``error`` is the project's error, over every parameter gradient, in float64 (with the tensor's name).
    """

    plain_bytes: int
    streamed_bytes: int
    error: float
    worst: str


def prove(net: StreamingModule, image: Tensor, *, batch: int = 2) -> Proof:
    """Take one training step each way, on copies of a streamed network; the network itself stays as it is.

    Example::

        proof = prove(StreamingModule(trunk, tile=256), image)
        proof.streamed_bytes / proof.plain_bytes, proof.error

    Args:
        net: the streamed network.
        image: one slide, (3, height, width) uint8.
        batch: slides per step for the bytes, of which all are this one; the gradients are compared on one.
    """
    x = standardised(image[None])
    peaks = []
    for module in (copy.deepcopy(net.module).train(), copy.deepcopy(net).train()):
        with LiveBytes() as live:
            run_step(module, x.repeat(batch, 1, 1, 1), input_gradients=False)
        peaks.append(live.peak)
    plain, streamed = (copy.deepcopy(module).train().double() for module in (net.module, net))
    rows = compare(plain, streamed, x.double())
    worst = max((row for row in rows if row.kind == "parameter gradient"), key=lambda row: row.error)
    return Proof(peaks[0], peaks[1], worst.error, worst.name)
