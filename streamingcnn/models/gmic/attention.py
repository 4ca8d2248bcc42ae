"""From many crops to one vector: each crop says how much it counts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from streamingcnn.models.resnet import resnet18

__all__ = ["LooksCloser", "attend", "repeated"]


def attend(
    features: Tensor, signal: nn.Linear, gate: nn.Linear, weigh: nn.Linear, valid: Tensor
) -> tuple[Tensor, Tensor]:
    """The weighted mean of the crops' features, (N, K, C) to (N, C), and the weights (N, K).

    >>> one = [nn.Linear(4, 2, bias=False), nn.Linear(4, 2, bias=False), nn.Linear(2, 1, bias=False)]
    >>> mean, weights = attend(torch.ones(1, 3, 4), *one, torch.tensor([[True, True, False]]))
    >>> weights.detach()
    tensor([[0.5000, 0.5000, 0.0000]])

    A crop's score is ``weigh(sigmoid(gate(h)) * tanh(signal(h)))``; the weights are the softmax of the scores over the
    valid crops. Where none is valid all weights are 0, and so is the mean.
    """
    scores = weigh(torch.sigmoid(gate(features)) * torch.tanh(signal(features)))[..., 0]
    lowest = torch.finfo(scores.dtype).min
    weights = scores.masked_fill(~valid, lowest).softmax(1) * valid
    return torch.einsum("nk,nkc->nc", weights, features), weights


class LooksCloser(nn.Module):
    """What GMIC and GMIC3D have in common: a local network on crops, attention over them, and their answer.

    The layers are attributes of the network itself, under the names that published weights have.
    """

    def __init__(self, classes: int, in_channels: int, local: nn.Module | None) -> None:
        super().__init__()
        self.dn_resnet = local or resnet18(in_channels=3 if in_channels == 1 else in_channels)
        wide = int(self.dn_resnet.out_channels)  # type: ignore[arg-type]
        self.mil_attn_V = nn.Linear(wide, 128, bias=False)
        self.mil_attn_U = nn.Linear(wide, 128, bias=False)
        self.mil_attn_w = nn.Linear(128, 1, bias=False)
        self.classifier_linear = nn.Linear(wide, classes, bias=False)

    def look_closer(self, crops: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
        """Crops (N, K, C, *space) to one vector per image, (N, features), and the crops' weights, (N, K)."""
        made = self.dn_resnet(repeated(crops.flatten(0, 1)))
        features = made.flatten(2).mean(2).unflatten(0, crops.shape[:2])
        return attend(features, self.mil_attn_V, self.mil_attn_U, self.mil_attn_w, counted)


def repeated(crops: Tensor) -> Tensor:
    """Grey crops (N, 1, ...) as three equal channels, which networks for colours take; others as they are.

    >>> repeated(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 3, 8, 8])
    """
    return crops.expand(-1, 3, *(-1,) * (crops.dim() - 2)) if crops.shape[1] == 1 else crops
