"""From a map of logits to one score per slide, and to a loss that knows slide labels only.

A lesion is a few percent of a slide. The mean of all logits drowns it; the maximum follows one pixel, and a
gradient through the top 1 % alone never found the way from a random start. So there are two terms::

    the mean of the top 5 %     is the score: it says what the hottest part looks like 10 x the mean of all
    tells every position from the first step on, when the hottest part is arbitrary
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

__all__ = ["slide_loss", "slide_score"]

_TOP = 0.05
_MEAN_SCALE = 10.0


def slide_score(logits: Tensor, top: float = _TOP) -> Tensor:
    """The mean of the highest ``top`` share of each map of logits, (N, 1, *space) to (N,).

    >>> slide_score(torch.arange(100.0).view(1, 1, 10, 10))
    tensor([97.])
    """
    positions = logits.flatten(1)
    count = max(1, int(top * positions.shape[1]))
    return positions.topk(count, dim=1).values.mean(1)


def slide_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of the score plus that of ten times the mean logit; a scalar.

    >>> slide_loss(torch.zeros(2, 1, 8, 8), torch.tensor([0.0, 1.0]))
    tensor(1.3863)

    ``logits`` is (N, 1, *space), ``labels`` (N,) of 0 and 1.
    """
    mean = _MEAN_SCALE * logits.flatten(1).mean(1)
    return binary_cross_entropy_with_logits(slide_score(logits), labels) + binary_cross_entropy_with_logits(
        mean, labels
    )
