"""What a trained network says of one slide, and where it looks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from streamingcnn.slides.cases import Case
from streamingcnn.slides.stain import standardised

__all__ = ["Prediction", "predict", "saliency"]


@dataclass(frozen=True)
class Prediction:
    """One slide's result: its case, its score (a logit), and the map of logits that the score comes from."""

    case: Case
    score: float
    logits: Tensor


def predict(net: nn.Module, case: Case, image: Tensor, score: Callable[[Tensor], Tensor]) -> Prediction:
    """Run a network in eval mode on one slide of (3, height, width) uint8.

    Example::

        result = predict(net, case, image, slide_score)
        result.score, result.logits.shape                # 2.7, (64, 64)
    """
    net.eval()
    with torch.no_grad():
        logits = net(standardised(image[None].to(_device(net))))
    return Prediction(case, float(score(logits)), logits[0, 0].cpu())


def saliency(net: nn.Module, image: Tensor, score: Callable[[Tensor], Tensor], cell: int = 16) -> Tensor:
    """How much each cell of pixels moves the score: the absolute gradient of the score, summed over the cell.

    Example::

        saliency(net, image, slide_score).shape          # (64, 64) for a slide of 1024 x 1024

    The gradient runs through the streamed network to the pixels, in eval mode. The result is scaled so that
    its 99th percentile is 1.
    """
    net.eval()
    x = standardised(image[None].to(_device(net))).requires_grad_()
    (gradient,) = torch.autograd.grad(score(net(x)).sum(), x)
    heat = torch.nn.functional.avg_pool2d(gradient.abs().sum(1, keepdim=True), cell, ceil_mode=True)[0, 0].cpu()
    return heat / heat.quantile(0.99).clamp(min=1e-12)


def _device(net: nn.Module) -> torch.device:
    return next(net.parameters()).device
