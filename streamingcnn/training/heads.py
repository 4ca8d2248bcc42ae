"""What turns a trunk's feature map into one answer per image.

    trunk -> (N, C, *space) -> head -> (N, outputs)

Each is a plain module over the whole map, so ``StreamingModule(nn.Sequential(trunk, head))`` computes it exactly. And
each can say where its answer comes from: :meth:`Head.where` is a module from the same features to a map.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["HEADS", "AttentionHead", "Head", "LogitMap", "MeanHead", "TopHead", "make_head"]

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


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


class Head(nn.Module):
    """What all heads have: the number of their outputs, and a map of where an answer comes from."""

    outputs: int

    def where(self) -> nn.Module:
        """A module with this head's own parameters, from features (N, C, *space) to a map (N, maps, *space)."""
        raise NotImplementedError


class MeanHead(Head):
    """A logit per position and output, averaged over all positions.

    >>> head = MeanHead(64, 2)
    >>> head(torch.randn(1, 64, 9, 7)).shape, head.where()(torch.randn(1, 64, 9, 7)).shape
    (torch.Size([1, 2]), torch.Size([1, 2, 9, 7]))

    The same as a linear layer behind global average pooling; the map is the class activation map.
    """

    def __init__(self, channels: int, outputs: int = 1, *, space: int = 2) -> None:
        super().__init__()
        self.outputs = outputs
        self.logits = _CONVOLUTIONS[space](channels, outputs, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, *space) to (N, outputs)."""
        out: Tensor = self.logits(features).flatten(2).mean(2)
        return out

    def where(self) -> nn.Module:
        """The logits of every position."""
        return self.logits


class TopHead(Head):
    """A logit per position and output; the mean of the highest share of the positions.

    >>> head = TopHead(64, 1, share=0.05)
    >>> head(torch.randn(1, 64, 20, 20)).shape
    torch.Size([1, 1])

    For findings that fill a few percent of an image. ``share`` of the positions are averaged, at least one; only they
    receive a gradient.
    """

    def __init__(self, channels: int, outputs: int = 1, *, share: float = 0.05, space: int = 2) -> None:
        super().__init__()
        if not 0 < share <= 1:
            raise ValueError(f"share={share}: the share of positions that count lies above 0 and at most at 1")
        self.outputs, self.share = outputs, share
        self.logits = _CONVOLUTIONS[space](channels, outputs, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, *space) to (N, outputs)."""
        positions = self.logits(features).flatten(2)
        count = max(1, int(self.share * positions.shape[2]))
        out: Tensor = positions.topk(count, dim=2).values.mean(2)
        return out

    def where(self) -> nn.Module:
        """The logits of every position."""
        return self.logits


class AttentionHead(Head):
    """Gated attention: a weighted mean of the features of all positions, and a linear layer behind it.

    >>> head = AttentionHead(64, 1)
    >>> weights = head.where()(torch.randn(1, 64, 9, 7))
    >>> weights.shape, round(weights.sum().item(), 5)
    (torch.Size([1, 1, 9, 7]), 1.0)

    A position's weight is ``softmax(w . (tanh(V x) * sigmoid(U x)))`` over all positions (Ilse et al. 2018, as
    in CLAM's single branch). ``hidden`` is the size of V x and U x.
    """

    def __init__(self, channels: int, outputs: int = 1, *, hidden: int = 128, space: int = 2) -> None:
        super().__init__()
        self.outputs = outputs
        self.weights = AttentionWeights(channels, hidden, space)
        self.linear = nn.Linear(channels, outputs)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, *space) to (N, outputs)."""
        weighted = features.flatten(2) * self.weights(features).flatten(2)
        out: Tensor = self.linear(weighted.sum(2))
        return out

    def where(self) -> nn.Module:
        """The weight of every position; the weights of an image sum to 1."""
        return self.weights


class AttentionWeights(nn.Module):
    """The weights of gated attention, (N, C, *space) to (N, 1, *space)."""

    def __init__(self, channels: int, hidden: int, space: int) -> None:
        super().__init__()
        convolution = _CONVOLUTIONS[space]
        self.content = convolution(channels, hidden, 1)
        self.gate = convolution(channels, hidden, 1)
        self.score = convolution(hidden, 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Scores, softmax over all positions of each image."""
        scores: Tensor = self.score(torch.tanh(self.content(features)) * torch.sigmoid(self.gate(features)))
        return scores.flatten(2).softmax(2).view(scores.shape)


HEADS: dict[str, type[MeanHead] | type[TopHead] | type[AttentionHead]] = {
    "mean": MeanHead,
    "top": TopHead,
    "attention": AttentionHead,
}


def make_head(name: str, channels: int, outputs: int, space: int = 2) -> Head:
    """The head of a name: mean, top or attention.

    >>> make_head("mean", 64, 1)
    MeanHead(
      (logits): Conv2d(64, 1, kernel_size=(1, 1), stride=(1, 1))
    )
    """
    if name not in HEADS:
        raise ValueError(f"there is no head '{name}'; there are {', '.join(HEADS)}")
    return HEADS[name](channels, outputs, space=space)
