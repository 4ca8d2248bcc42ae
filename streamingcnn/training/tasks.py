"""What a label is and what an answer means: two classes, several, ordered ones, or a number.

| task       | labels            | outputs | loss                                  | answer                         |
|------------|-------------------|---------|---------------------------------------|--------------------------------|
| binary     | 2 classes         | 1       | cross-entropy of a logit              | probability of both            |
| multiclass | K classes         | K       | cross-entropy                         | probability of each            |
| ordinal    | K ordered classes | K - 1   | sum of cross-entropies of "above k?"  | probability of each            |
| regression | a number          | 1       | squares, in standard deviations       | the number, in the label's units |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["TASKS", "Cumulative", "Task"]

TASKS = ("binary", "multiclass", "ordinal", "regression")


@dataclass(frozen=True)
class Task:
    """A task: its kind, the names of its classes in their order, and what its loss needs.

    >>> task = Task("binary", ("normal", "tumour"))
    >>> task.loss(torch.zeros(2, 1), torch.tensor([0.0, 1.0]))
    tensor(0.6931)
    >>> task.probabilities(torch.tensor([[2.0]]))
    tensor([[0.1192, 0.8808]])

    Attributes:
        kind: binary, multiclass, ordinal or regression.
        classes: names; a label is an index into them. Empty for regression.
        weights: what a case of each class counts in the loss; empty: 1.
        mean, std: of the labels of a regression; its network learns ``(label - mean) / std``.
    """

    kind: str
    classes: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in TASKS:
            raise ValueError(f"there is no task '{self.kind}'; there are {', '.join(TASKS)}")
        if self.kind == "binary" and len(self.classes) != 2:
            have = ", ".join(self.classes[:8]) or "none"
            raise ValueError(f"task 'binary' needs 2 classes, and there are {len(self.classes)}: {have}")
        if self.kind in ("multiclass", "ordinal") and len(self.classes) < 2:
            raise ValueError(f"task '{self.kind}' needs at least 2 classes; got {', '.join(self.classes) or 'none'}")
        if self.weights and len(self.weights) != len(self.classes):
            raise ValueError(f"{len(self.weights)} class weights for {len(self.classes)} classes")

    @property
    def outputs(self) -> int:
        """How many numbers the network gives per image."""
        return {"multiclass": len(self.classes), "ordinal": len(self.classes) - 1}.get(self.kind, 1)

    def loss(self, result: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of results (N, outputs) against labels (N,); a scalar."""
        if self.kind == "regression":
            wanted = (labels.to(result.dtype) - self.mean) / self.std
            return functional.mse_loss(result.squeeze(1), wanted)
        if self.kind == "binary":
            each = functional.binary_cross_entropy_with_logits(
                result.squeeze(1), labels.to(result.dtype), reduction="none"
            )
        elif self.kind == "multiclass":
            each = functional.cross_entropy(result, labels.long(), reduction="none")
        else:
            above = labels.view(-1, 1) > torch.arange(self.outputs, device=labels.device)
            each = functional.binary_cross_entropy_with_logits(result, above.to(result.dtype), reduction="none").sum(1)
        # Not divided by the batch's own weights: a batch of one image would make every weight 1.
        return (each * result.new_tensor(self.weights)[labels.long()] if self.weights else each).mean()

    def probabilities(self, result: Tensor) -> Tensor:
        """The probability of each class, (N, outputs) to (N, classes).

        Raises:
            ValueError: a regression has none; see :meth:`values`.
        """
        if self.kind == "regression":
            raise ValueError("a regression has no probabilities; values() gives its numbers")
        if self.kind == "multiclass":
            return result.softmax(1)
        above = torch.sigmoid(result)
        one, none = torch.ones_like(above[:, :1]), torch.zeros_like(above[:, :1])
        return torch.cat([one, above], 1) - torch.cat([above, none], 1)

    def values(self, result: Tensor) -> Tensor:
        """One answer per image, (N, outputs) to (N,): a class's index, or a number in the label's own units."""
        if self.kind == "regression":
            return result.squeeze(1) * self.std + self.mean
        if self.kind == "ordinal":
            return (result > 0).sum(1)
        return self.probabilities(result).argmax(1)


class Cumulative(nn.Module):
    """From one score to the logits of "above class k" with thresholds that stay in their order, (N, 1) to (N, K - 1).

    >>> Cumulative(4)(torch.zeros(1, 1)).detach().round(decimals=2)
    tensor([[ 1.,  0., -1.]])

    The proportional-odds model: ``logit_k = score - threshold_k`` with thresholds that rise by softplus of a parameter,
    so that "above 2" is never likelier than "above 1".
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        thresholds = classes - 1
        self.first = nn.Parameter(torch.full((1,), -(thresholds - 1) / 2))
        one = torch.tensor(1.0).expm1().log()  # softplus of it is 1
        self.rises = nn.Parameter(one.repeat(thresholds - 1))

    def forward(self, score: Tensor) -> Tensor:
        """The logits; they fall from class to class."""
        rises = functional.softplus(self.rises)
        return score - torch.cat([self.first, self.first + rises.cumsum(0)])


def balanced(labels: Sequence[float], classes: int) -> tuple[float, ...]:
    """Class weights by which every class counts the same, with a mean over the cases of 1.

    >>> balanced([0, 0, 0, 1], 2)
    (0.666..., 2.0)
    """
    counts = [sum(label == number for label in labels) for number in range(classes)]
    return tuple(len(labels) / (classes * count) if count else 0.0 for count in counts)
