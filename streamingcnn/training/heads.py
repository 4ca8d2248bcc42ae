"""What turns a trunk's feature map into a map of logits."""

from __future__ import annotations

from torch import nn

__all__ = ["LogitMap"]


class LogitMap(nn.Conv2d):
    """A 1x1 convolution to one logit per position that starts at zero everywhere.

    >>> import torch
    >>> LogitMap(64)(torch.randn(2, 64, 8, 8)).shape
    torch.Size([2, 1, 8, 8])

    A random head has an opinion on every slide, which ten times the mean logit makes loud, and training begins
    with unlearning it. A head of zeros begins with even odds.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 1, kernel_size=1)

    def reset_parameters(self) -> None:
        """Back to zero."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
