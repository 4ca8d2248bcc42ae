"""How well scores tell the two kinds of slides apart."""

from __future__ import annotations

from collections.abc import Sequence

from streamingcnn.extras import require

__all__ = ["auc"]


def auc(labels: Sequence[int], scores: Sequence[float]) -> float:
    """The area under the ROC curve: how often a positive slide scores above a negative one.

    >>> auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    0.75

    Raises:
        ValueError: all labels are the same.
        ModuleNotFoundError: scikit-learn is missing.
    """
    if len(set(labels)) < 2:
        raise ValueError(f"the AUC needs slides of both labels; all {len(labels)} have label {set(labels)}")
    require("sklearn")
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, scores))
