"""What GMIC, 3D-GMIC and GLAM are trained with: an answer per class from each head, and a saliency map that is sparse.

    sum over classes of   BCE(local) + BCE(global) + BCE(fusion) + beta * |saliency|  [+ auxiliary * BCE(mean logit)]

The mean of the highest cells alone starts badly: only a handful of cells receive a gradient, and which ones is chance.
The auxiliary term asks the mean of the whole map for the label as well.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamingcnn.models.gmic.glam import GLAMResult
from streamingcnn.models.gmic.gmic import GMICResult

__all__ = ["GLAMLoss", "GMICLoss"]


class _Loss(nn.Module):
    def __init__(
        self,
        beta: float,
        reduction: str,
        auxiliary: float,
        positive_weight: Sequence[float] | None,
        mean_scale: float,
    ) -> None:
        super().__init__()
        if reduction not in ("sum", "mean"):
            raise ValueError(f"reduction='{reduction}'; needed is 'sum' or 'mean' of the saliency maps")
        self.beta, self.reduction, self.auxiliary, self.mean_scale = beta, reduction, auxiliary, mean_scale
        self.register_buffer(
            "positive_weight", None if positive_weight is None else torch.tensor(positive_weight), persistent=False
        )

    def _answers(self, labels: Tensor, probabilities: Sequence[Tensor], logits: Sequence[Tensor]) -> Tensor:
        """BCE of every head, per class over the images whose label is known, summed over classes and heads."""
        _check_labels(labels, (*probabilities, *logits)[0])
        known = ~torch.isnan(labels) & (labels >= 0)
        wanted = torch.where(known, labels, torch.zeros_like(labels))
        weight: Tensor | None = self.positive_weight  # type: ignore[assignment]
        each = [
            F.binary_cross_entropy_with_logits(z, wanted.to(z), pos_weight=_as(weight, z), reduction="none")
            for z in logits
        ]
        for p in probabilities:
            factor = 1.0 if weight is None else 1.0 + (wanted > 0.5) * (weight.to(p) - 1.0)
            each.append(_cross_entropy(p, wanted) * factor)
        counts = known.sum(0).clamp(min=1)
        # Where, not times: what is unknown must not be NaN times zero.
        return torch.stack([(torch.where(known, e, 0.0).sum(0) / counts).sum() for e in each]).sum()

    def _size(self, maps: Tensor) -> Tensor:
        return maps.abs().sum() if self.reduction == "sum" else maps.abs().mean()


class GMICLoss(_Loss):
    """The loss of a :class:`GMICResult`, of images or volumes.

    >>> from streamingcnn.models import GMIC
    >>> model = GMIC(crop_shape=(64, 64), crops=1)
    >>> labels = torch.tensor([[0.0, 1.0], [1.0, float("nan")]])        # benign, malignant; unknown
    >>> GMICLoss(beta=1e-4)(model(torch.randn(2, 1, 256, 256)), labels).shape
    torch.Size([])

    Args:
        beta: how much the saliency's sum or mean counts.
        reduction: "sum" over all cells, classes and images, as the papers write it, or "mean", as their author
            advises. Between the two lies the number of cells: 10^-4.5 for the one is about 0.1 for the other.
        auxiliary: how much the mean logit of each map counts; 0 is as published.
        positive_weight: of positive labels, one per class; None: 1.
        mean_scale: how many times the mean logit is taken for the auxiliary term. Of a lesion that fills a hundredth of
            the map little is left in the mean; with 10 the term is content before the whole map has turned.

    Labels are (N, classes) of 0 and 1; what is unknown is NaN or below 0, and adds nothing.
    """

    def __init__(
        self,
        beta: float = 10**-4.5,
        reduction: str = "sum",
        auxiliary: float = 0.0,
        positive_weight: Sequence[float] | None = None,
        mean_scale: float = 1.0,
    ) -> None:
        super().__init__(beta, reduction, auxiliary, positive_weight, mean_scale)

    def forward(self, result: GMICResult, labels: Tensor) -> Tensor:
        """A number."""
        logits = [result.local_logits] + ([] if result.logits is None else [result.logits])
        loss = self._answers(labels, [result.y_global], logits) + self.beta * self._size(result.saliency)
        if self.auxiliary:
            loss = loss + self.auxiliary * self._answers(
                labels, [], [self.mean_scale * result.saliency_logits.flatten(2).mean(2)]
            )
        return loss


class GLAMLoss(_Loss):
    """The loss of a :class:`GLAMResult`: each scale's answer, the crops' answer, and the size of all maps.

    >>> from streamingcnn.models.gmic import GLAM, PyramidLocal
    >>> model = GLAM(crop_shape=(64, 64), local=PyramidLocal())
    >>> GLAMLoss()(model(torch.randn(2, 1, 256, 256)), torch.tensor([[0.0, 1.0], [1.0, 0.0]])).shape
    torch.Size([])

    The published code has no loss; this is the one that the paper's description suggests. Arguments and labels are
    those of :class:`GMICLoss`.
    """

    def __init__(
        self,
        beta: float = 0.1,
        reduction: str = "mean",
        auxiliary: float = 0.0,
        positive_weight: Sequence[float] | None = None,
        mean_scale: float = 1.0,
    ) -> None:
        super().__init__(beta, reduction, auxiliary, positive_weight, mean_scale)

    def forward(self, result: GLAMResult, labels: Tensor) -> Tensor:
        """A number."""
        answers = [*result.y_scales.unbind(1), result.y_local]
        loss = self._answers(labels, answers, [])
        for maps in (*result.scales, result.local_maps):
            loss = loss + self.beta * self._size(maps)
        if self.auxiliary:
            means = [self.mean_scale * each.flatten(2).mean(2) for each in result.scale_logits]
            means.append(self.mean_scale * result.local_logits.transpose(1, 2).flatten(2).mean(2))
            loss = loss + self.auxiliary * self._answers(labels, [], means)
        return loss


def _cross_entropy(p: Tensor, wanted: Tensor) -> Tensor:
    """The binary cross-entropy of probabilities, each by itself; that of NaN is NaN.

    PyTorch refuses NaN here, on CUDA with an assertion that ends the process, and refuses all under autocast.
    """
    with torch.autocast(p.device.type, enabled=False):
        p = p if p.dtype == torch.float64 else p.float()
        unknown = p.isnan()
        loss = F.binary_cross_entropy(p.masked_fill(unknown, 0.5), wanted.to(p), reduction="none")
        return loss.masked_fill(unknown, float("nan"))


def _as(weight: Tensor | None, like: Tensor) -> Tensor | None:
    return None if weight is None else weight.to(like)


def _check_labels(labels: Tensor, answer: Tensor) -> None:
    if labels.shape != answer.shape:
        raise ValueError(
            f"labels of the shape {tuple(labels.shape)} for answers of {tuple(answer.shape)}; needed is one number per "
            "image and class: 0, 1, or NaN where it is not known"
        )
