"""The trunk of both tasks: small convolutions, and how much of what they find is around.

    (N, 3, H, W) -> 7x7 /4, 5x5 /2, 3x3 /2 -> mean of 8x8, every 4 -> 1x1 -> (N, 32, about H/64, about W/64)

Behind every convolution a batch norm: it needs batches of several slides, or it takes out how much of everything
there is on a slide, and that is what is asked for.
"""

from torch import nn

CHANNELS = (16, 24, 32)


def trunk() -> nn.Module:
    """A position sees 151 x 151 pixels."""
    first, second, third = CHANNELS
    layers = nn.Sequential(
        *_normed(nn.Conv2d(3, first, 7, stride=4, padding=3, bias=False)),
        *_normed(nn.Conv2d(first, second, 5, stride=2, padding=2, bias=False)),
        *_normed(nn.Conv2d(second, third, 3, stride=2, padding=1, bias=False)),
        nn.AvgPool2d(8, stride=4),
        *_normed(nn.Conv2d(third, third, 1, bias=False)),
    )
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return layers


def _normed(convolution: nn.Conv2d) -> tuple[nn.Module, ...]:
    return convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU()
