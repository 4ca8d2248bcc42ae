"""From a saliency map to one number per class: the mean of its highest cells."""

from __future__ import annotations

from torch import Tensor

__all__ = ["count_of", "top_mean"]


def count_of(cells: int, share: float) -> int:
    """How many cells a share of them is, rounded half to even, and at least one.

    >>> [count_of(46 * 30, share) for share in (0.02, 0.03, 0.05, 0.1)]
    [28, 41, 69, 138]
    >>> count_of(4, 0.01)
    1
    """
    if not share > 0:
        raise ValueError(f"the share of the highest cells is {share}; needed is a number above 0, such as 0.02")
    return max(1, round(cells * share))


def top_mean(maps: Tensor, count: int) -> Tensor:
    """The mean of the highest cells of each map: (N, classes, *space) to (N, classes).

    >>> top_mean(torch.tensor([[[[0.1, 0.9], [0.5, 0.2]]]]), 2)
    tensor([[0.7000]])

    Raises ValueError where a map has fewer cells than are wanted.
    """
    flat = maps.flatten(2)
    if count > flat.shape[2]:
        raise ValueError(
            f"the {count} highest cells of a map of {' x '.join(map(str, maps.shape[2:]))} are wanted, which has "
            f"{flat.shape[2]}; take a smaller percent_t, or a larger image"
        )
    return flat.topk(count, dim=2, sorted=False).values.mean(2)
