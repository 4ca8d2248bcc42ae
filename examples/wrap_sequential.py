"""Wrap an nn.Sequential, look at its plan, take one step: python examples/wrap_sequential.py."""

import torch
from torch import nn

from streamingcnn import StreamingModule

trunk = nn.Sequential(
    nn.Sequential(nn.Conv2d(3, 16, 7, stride=2, padding=3), nn.ReLU(), nn.MaxPool2d(2)),
    nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
    nn.Sequential(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU()),
)
head = nn.Linear(64, 1)
image, label = torch.rand(1, 3, 2048, 2048), torch.ones(1, 1)

streamed = StreamingModule(trunk, tile=512)
print(streamed.plan(image))

logit = head(streamed(image).mean((2, 3)))
nn.functional.binary_cross_entropy_with_logits(logit, label).backward()
print("gradient of the first convolution:", tuple(trunk[0][0].weight.grad.shape))
