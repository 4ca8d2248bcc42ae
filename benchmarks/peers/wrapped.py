"""lightstream as one function that autograd knows, on a machine without a GPU.

Nothing of its code is here or is changed; it is installed beside us (see README.md). What it takes to run on a CPU:

    its constructor      statistics_on_cpu=False moves the network to CUDA before measuring, True moves it there
                         afterwards; so it is made with True, and told False before it begins
    its inputs           normalize_on_gpu=False: images come as floats, normalised by nobody
    its two calls        y = net(x), then net.backward(x, dy): here both in one autograd.Function
    its prints           go nowhere

Its `torch.autocast("cuda")` warns on such a machine and does nothing.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["TILE", "lightstream"]

#: The tile of lightstream's own comparison with plain PyTorch (examples/compare_grads_resnet.py in its repository).
TILE = 1280


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, streamed: Any, x: Tensor, _: Tensor) -> Tensor:
        ctx.streamed = streamed
        ctx.save_for_backward(x)
        y: Tensor = streamed(x)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        with torch.enable_grad(), _quiet():
            ctx.streamed.backward(*ctx.saved_tensors, *gradients)
        return None, None, None


def lightstream(net: nn.Module, tile: int = TILE) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """The network as lightstream rebuilds it (parameters of the same names), and the function that runs it.

    Raises whatever lightstream raises, and ImportError with the way out where it is not installed.
    """
    try:
        from lightstream.core.constructor import StreamingConstructor
    except ImportError as error:
        raise ImportError(f"lightstream cannot be imported ({error}); benchmarks/peers/README.md says how") from error
    with _quiet():
        constructor = StreamingConstructor(
            net, tile, verbose=False, normalize_on_gpu=False, add_keep_modules=[nn.BatchNorm2d]
        )
        constructor.statistics_on_cpu = False
        streamed = constructor.prepare_streaming_model()
    torch.set_grad_enabled(True)  # measuring leaves it as its last step needs it
    moved = torch.zeros((), requires_grad=True)  # so that autograd asks for the backward
    return streamed.stream_module, lambda x: _Step.apply(streamed, x, moved)  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _quiet() -> Any:
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*CUDA is not available.*")
        warnings.filterwarnings("ignore", message=".*device_type of 'cuda'.*")
        warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
        yield
