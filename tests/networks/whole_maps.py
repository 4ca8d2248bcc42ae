"""What needs a map as a whole: heads over a trunk, and operations that keep it a map."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.blocks import Net, Residual

from .network import Network, between, rows


def whole(head: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Put a head over a small trunk."""
    return lambda: rows(
        nn.Conv2d(3, 6, 3, 2, 1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(),
        head(),
    )


def attention(net: Net, x: Tensor) -> Tensor:
    """Self-attention over all pixels of a coarse map, as in a transformer's stage."""
    features = net.down(x)
    tokens = features.flatten(2).transpose(1, 2)
    tokens = tokens + net.attend(tokens, tokens, tokens, need_weights=False)[0]
    return net.out(tokens.transpose(1, 2).reshape(features.shape))


def fourier(net: Net, x: Tensor) -> Tensor:
    """A layer of a Fourier neural operator: a low-pass filter of the whole map."""
    spectrum = torch.fft.rfft2(net.a(x))
    return net.b(torch.fft.irfft2(spectrum * net.gain, s=x.shape[2:]))


def transformer(net: Net, x: Tensor) -> Tensor:
    """A spatial transformer: where a pixel comes from depends on the whole image."""
    theta = net.fc(x.mean((2, 3))).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return net.conv(F.grid_sample(net.first(x), grid, align_corners=False))


HEADS = [
    # Whole networks: what is global runs plainly on stored maps.
    Network("classifier", whole(lambda: rows(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)))),
    Network("classifier_max", whole(lambda: rows(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 5)))),
    Network("classifier_grid", whole(lambda: rows(nn.Flatten(), nn.Linear(8 * 9 * 11, 5)))),
    Network(
        "classifier_ragged_bins",
        whole(lambda: rows(nn.AdaptiveAvgPool2d((2, 3)), nn.Flatten(), nn.Dropout(0.0), nn.Linear(48, 5))),
    ),
    Network("mean_of_space", whole(lambda: Net(lambda net, x: net.fc(x.mean((2, 3))), fc=nn.Linear(8, 3)))),
    Network("amax_of_space", whole(lambda: Net(lambda net, x: x.amax((-2, -1))))),
    Network(
        "mean_and_max",
        whole(lambda: Net(lambda net, x: torch.cat([x.mean((2, 3)), x.amax((2, 3)), x.sum((2, 3))], 1))),
    ),
    Network("log_sum_exp", whole(lambda: Net(lambda net, x: torch.logsumexp(x, (2, 3))))),
    Network(
        "top_of_map",
        whole(lambda: Net(lambda net, x: net.c(x).flatten(1).topk(5, 1).values.mean(1), c=nn.Conv2d(8, 1, 1))),
    ),
    Network(
        "attention_pool",
        whole(
            lambda: Net(
                lambda net, x: (torch.softmax(net.c(x).flatten(2), -1) * x.flatten(2)).sum(-1),
                c=nn.Conv2d(8, 1, 1),
            )
        ),
    ),
    Network(
        "resnet_classifier",
        lambda: rows(
            nn.Conv2d(3, 4, 7, 2, 3, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
            Residual(4, 4),
            Residual(4, 6, 2),
            nn.AdaptiveAvgPool2d((1, 1)),
            nn.Flatten(1),
            nn.Linear(6, 3),
        ),
        (3, 61, 49),
    ),
]


OPERATIONS = [
    # Operations that need the whole map and keep it a map: they run plainly on what is stored.
    Network(
        "attention",
        lambda: Net(
            attention,
            down=nn.Conv2d(3, 4, 4, 4),
            attend=nn.MultiheadAttention(4, 2, batch_first=True),
            out=nn.Conv2d(4, 2, 3),
        ),
    ),
    Network(
        "fourier",
        lambda: Net(
            fourier, a=nn.Conv2d(3, 3, 3, padding=1), b=nn.Conv2d(3, 2, 3), gain=nn.Parameter(torch.randn(3, 1, 1))
        ),
    ),
    Network(
        "spatial_transformer",
        lambda: Net(transformer, first=nn.Conv2d(3, 3, 3, padding=1), fc=nn.Linear(3, 6), conv=nn.Conv2d(3, 2, 3)),
    ),
    Network("flip_and_roll", between(lambda: Net(lambda net, x: x.flip(3) + x.roll((2, -5), (2, 3))))),
    Network("cumulative_sum", between(lambda: Net(lambda net, x: x.cumsum(2) / 10))),
    Network("softmax_of_space", between(lambda: Net(lambda net, x: x * x.softmax(3)))),
    Network("norm_of_space", between(lambda: Net(lambda net, x: F.normalize(x, dim=(2, 3))))),  # type: ignore[arg-type]  # torch says int
    Network("layer_norm_of_space", between(lambda: nn.LayerNorm((37, 45)))),
]
