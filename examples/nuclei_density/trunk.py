"""The trunk of both tasks: a small residual network without normalisation.

A norm over a slide takes out how much of everything there is on it, and that is what is asked for.
"""

from torch import nn

from streamingcnn.models.resnet import BasicBlock, ResNet


def trunk(width: int = 8) -> nn.Module:
    """From (N, 3, height, width) to (N, 8 * width, height / 32, width / 32); a position sees 195 x 195 pixels."""
    return ResNet(BasicBlock, depths=(1, 1, 1, 1), width=width, norm=lambda channels: nn.Identity())
