"""Losses inside the wrapped module: the logits never exist as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from monai.losses.dice import DiceCELoss, DiceLoss, GeneralizedDiceLoss
from monai.losses.tversky import TverskyLoss
from torch import Tensor, nn

from tests.blocks import Net

from .network import LINE, PLANE, VOLUME, Network


def loss_inside(net: Net, x: Tensor, *, target: Tensor) -> Tensor:
    """Network and loss in one: a scalar comes out, and the logits never exist as a whole."""
    logits = net.b(torch.tanh(net.a(x)))
    return F.mse_loss(logits, target) + 0.1 * logits.abs().mean() + logits.square().sum() / logits.numel()


def with_loss(
    loss: Callable[..., Tensor], image: tuple[int, ...] = PLANE, classes: int | None = 3
) -> tuple[Callable[[], nn.Module], tuple[int, ...], Callable[[int], dict[str, Any]]]:
    """A small network with a loss inside, and its target: classes (N, *space), or a map like the logits."""
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(image) - 2]

    def forward(net: Net, x: Tensor, *, target: Tensor) -> Tensor:
        return loss(net.b(torch.tanh(net.a(x))), target, net.weight.detach())

    def build() -> nn.Module:
        weight = nn.Parameter(torch.tensor([0.5, 1.0, 3.0]))
        return Net(forward, a=conv(image[0], 4, 3, padding=1), b=conv(4, 3, 3, padding=1), weight=weight)

    def target(batch: int) -> dict[str, Any]:
        if classes is None:
            return {"target": torch.rand(batch, 3, *image[1:], dtype=torch.float64)}
        return {"target": torch.randint(0, classes, (batch, *image[1:]))}

    return build, image, target


def one_hot(target: Tensor, like: Tensor) -> Tensor:
    return F.one_hot(target, 3).movedim(-1, 1).to(like.dtype)


def dice(p: Tensor, g: Tensor, over: tuple[int, ...]) -> Tensor:
    """Soft Dice as people write it, of probabilities and a one-hot target."""
    return 1 - ((2 * (p * g).sum(over) + 1) / (p.sum(over) + g.sum(over) + 1)).mean()


def dice_and_entropy(x: Tensor, t: Tensor, w: Tensor) -> Tensor:
    over = (0, *range(2, x.dim()))
    return 0.2 * dice(x.softmax(1), one_hot(t, x), over) + 0.8 * F.cross_entropy(x, t, w)


def masked_mean(x: Tensor, t: Tensor, w: Tensor) -> Tensor:
    mask = t != 2
    return (F.cross_entropy(x, t, reduction="none") * mask).sum() / mask.sum()


def scattered(x: Tensor, t: Tensor, w: Tensor) -> Tensor:
    hot = torch.zeros_like(x).scatter_(1, t[:, None], 1.0)
    own = torch.gather(x.log_softmax(1), 1, t[:, None])
    return (x.softmax(1) - hot).square().mean() - (own * w[t][:, None]).sum() / t.numel()


#: Losses inside the wrapped module, name -> (loss of logits, target and class weights; image; classes or None).
LOSSES: dict[str, tuple[Callable[..., Tensor], tuple[int, ...], int | None]] = {
    "entropy": (lambda x, t, w: F.cross_entropy(x, t), PLANE, 3),
    "entropy_1d": (lambda x, t, w: F.cross_entropy(x, t, w), LINE, 3),
    "entropy_3d": (lambda x, t, w: F.cross_entropy(x, t, w, ignore_index=1), VOLUME, 3),
    "entropy_smoothed": (lambda x, t, w: F.cross_entropy(x, t, w, ignore_index=0, label_smoothing=0.1), PLANE, 3),
    "entropy_sum": (lambda x, t, w: F.cross_entropy(x, t, w, reduction="sum"), PLANE, 3),
    "entropy_each": (lambda x, t, w: F.cross_entropy(x, t, w, reduction="none"), PLANE, 3),
    "entropy_of_probabilities": (lambda x, t, w: F.cross_entropy(x, t, w, label_smoothing=0.2), PLANE, None),
    "entropy_flattened": (
        lambda x, t, w: F.cross_entropy(x.permute(0, 2, 3, 1).reshape(-1, 3), t.view(-1), w, ignore_index=2),
        PLANE,
        3,
    ),
    "likelihood": (lambda x, t, w: F.nll_loss(x.log_softmax(1), t, w), PLANE, 3),
    "binary": (lambda x, t, w: F.binary_cross_entropy(x.sigmoid(), t, w[:, None, None].expand_as(x)), PLANE, None),
    "binary_logits": (
        lambda x, t, w: F.binary_cross_entropy_with_logits(x, t, pos_weight=w[:, None, None]),
        PLANE,
        None,
    ),
    "binary_logits_3d": (
        lambda x, t, w: F.binary_cross_entropy_with_logits(x, t, w[:, None, None, None], reduction="sum"),
        VOLUME,
        None,
    ),
    "binary_logits_flat": (lambda x, t, w: F.binary_cross_entropy_with_logits(x.flatten(), t.flatten()), PLANE, None),
    "squares": (lambda x, t, w: F.mse_loss(x, t), PLANE, None),
    "squares_each": (lambda x, t, w: F.mse_loss(x, t, reduction="none"), PLANE, None),
    "distances": (lambda x, t, w: F.l1_loss(x, t, reduction="sum"), VOLUME, None),
    "smooth_distances": (lambda x, t, w: F.smooth_l1_loss(x, t, beta=0.3), PLANE, None),
    "huber": (lambda x, t, w: F.huber_loss(x, t, delta=0.4), PLANE, None),
    "divergence": (lambda x, t, w: F.kl_div(x.log_softmax(1), t, reduction="batchmean"), PLANE, None),
    "dice": (lambda x, t, w: dice(x.softmax(1), one_hot(t, x), (2, 3)), PLANE, 3),
    "dice_of_batch_3d": (lambda x, t, w: dice(x.softmax(1), one_hot(t, x), (0, 2, 3, 4)), VOLUME, 3),
    "dice_flattened": (lambda x, t, w: dice(x.sigmoid().flatten(1), t.flatten(1), (1,)), PLANE, None),
    "dice_of_one": (
        lambda x, t, w: dice(x[:, 1].sigmoid().reshape(-1), (t == 1).to(x.dtype).reshape(-1), (0,)),
        PLANE,
        3,
    ),
    "dice_and_entropy": (dice_and_entropy, PLANE, 3),
    "dice_and_entropy_3d": (dice_and_entropy, VOLUME, 3),
    "masked_mean": (masked_mean, PLANE, 3),
    "scattered": (scattered, PLANE, 3),
    "monai_dice": (
        lambda x, t, w: DiceLoss(softmax=True, to_onehot_y=True)(x, t[:, None]),
        PLANE,
        3,
    ),
    "monai_dice_squared": (
        lambda x, t, w: DiceLoss(sigmoid=True, squared_pred=True, batch=True)(x, t),
        VOLUME,
        None,
    ),
    "monai_dice_entropy": (
        lambda x, t, w: DiceCELoss(softmax=True, to_onehot_y=True, include_background=False)(x, t[:, None]),
        VOLUME,
        3,
    ),
    "monai_tversky": (
        lambda x, t, w: TverskyLoss(softmax=True, to_onehot_y=True)(x, t[:, None]),
        PLANE,
        3,
    ),
    "monai_generalized_dice": (
        lambda x, t, w: GeneralizedDiceLoss(softmax=True, to_onehot_y=True)(x, t[:, None]),
        PLANE,
        3,
    ),
}


ROWS = [
    Network(
        "loss_inside",
        lambda: Net(loss_inside, a=nn.Conv2d(3, 4, 3, padding=1), b=nn.Conv2d(4, 2, 3, padding=1)),
        more=lambda batch: {"target": torch.randn(batch, 2, 37, 45, dtype=torch.float64)},
    ),
    *(
        Network(f"loss_{name}", build, image, more=more)
        for name, (loss, image, classes) in LOSSES.items()
        for build, image, more in [with_loss(loss, image, classes)]
    ),
    Network(
        "losses_at_two_scales",
        lambda: Net(
            lambda net, x, *, target: (
                F.cross_entropy(net.b(torch.tanh(net.a(x))), target)
                + 0.5 * F.cross_entropy(net.c(torch.tanh(net.a(x))), target[:, ::2, ::2])
            ),
            a=nn.Conv2d(3, 4, 3, padding=1),
            b=nn.Conv2d(4, 3, 1),
            c=nn.Conv2d(4, 3, 3, 2, 1),
        ),
        more=lambda batch: {"target": torch.randint(0, 3, (batch, 37, 45))},
    ),
    Network(
        "loss_and_logits",
        lambda: Net(
            lambda net, x, *, target: (lambda y: {"loss": F.cross_entropy(y, target), "logits": y})(net.a(x)),
            a=nn.Conv2d(3, 3, 3, padding=1),
        ),
        more=lambda batch: {"target": torch.randint(0, 3, (batch, 37, 45))},
    ),
]
