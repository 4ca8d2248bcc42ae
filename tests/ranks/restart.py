"""A training whose rank is killed, and which torchrun starts again."""

from __future__ import annotations

import os
import runpy
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from streamingcnn.distributed import load_checkpoint
from streamingcnn.models import DiceCrossEntropy, UNet3D

from .case import Case, same


def restart(names: list[str]) -> Iterator[Case]:
    """The example, whose second rank is killed in its third step of six, once; and as it is where nothing happens."""
    folder, backward = Path(names[0]), Tensor.backward
    done = 0

    def killing(self: Tensor, *arguments: Any) -> None:
        nonlocal done
        done += 1
        if done == 3 and dist.get_rank() == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        backward(self, *arguments)  # type: ignore[no-untyped-call]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "backward", killing)
        example(folder / "killed")
    example(folder / "peace")
    nets = []
    for name in ("killed", "peace"):
        net = UNet3D(1, 3, levels=2, filters=4, norm="instance", loss=DiceCrossEntropy([1, 1, 1]))
        optimizer = torch.optim.AdamW(net.parameters())
        assert load_checkpoint(folder / name / "checkpoints", net, optimizer) == 6
        nets.append([*net.state_dict().values(), *(t for each in optimizer.state.values() for t in each.values())])
    yield {"case": "restart", "life": os.environ["TORCHELASTIC_RESTART_COUNT"], "steps": done, "same": same(*nets)}


def example(out: Path) -> None:
    """`examples/volume_segmentation/train.py` with little to do."""
    program = Path(__file__).parents[2] / "examples" / "volume_segmentation" / "train.py"
    given = f"--size 16x24x24 --volumes 2 --steps 6 --every 1 --levels 2 --filters 4 --memory 16MiB --out {out}"
    arguments, sys.argv = sys.argv, [str(program), *given.split()]
    sys.path.insert(0, str(program.parent))
    try:
        runpy.run_path(str(program), run_name="__main__")
    finally:
        sys.argv = arguments
        sys.path.remove(str(program.parent))
