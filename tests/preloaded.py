"""What the server of `tests.faults` imports before it forks: everything, also what a first plan imports."""

from __future__ import annotations

import tensorboard  # noqa: F401
import torch
import torch.utils.tensorboard
from torch import nn

import tests.faults  # noqa: F401
from streamingcnn import StreamingModule

torch.set_num_threads(1)  # threads do not live through a fork
StreamingModule(nn.Conv2d(3, 1, 3), tile=8).plan((1, 3, 16, 16))
