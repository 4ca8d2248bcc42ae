"""What a server of processes imports before it forks: everything, also what a first plan imports."""

from __future__ import annotations

import importlib
import pkgutil

import torch
from torch import nn

import streamingcnn.cli
from streamingcnn import StreamingModule

NEEDED = ["tests.faults", "tests.networks", "tests.ranks.__main__", "torch.utils.tensorboard", "tomli_w"]
NEEDED += [f"streamingcnn.cli.{module.name}" for module in pkgutil.iter_modules(streamingcnn.cli.__path__)]

torch.set_num_threads(1)  # threads do not live through a fork
for name in NEEDED:
    importlib.import_module(name)
StreamingModule(nn.Conv2d(3, 1, 3), tile=8).plan((1, 3, 16, 16))
