"""Norms: by running statistics, by those of the whole batch and image, by one sample's."""

from __future__ import annotations

from torch import nn

from .network import LINE, VOLUME, Network, between, rows

ROWS = [
    # Batch norm: running statistics used, and statistics of the whole batch and image.
    Network("batch_norm_eval", between(lambda: nn.BatchNorm2d(4)), train=False),
    Network("batch_norm", between(lambda: rows(nn.BatchNorm2d(4), nn.ReLU()))),
    Network("batch_norm_cumulative", between(lambda: nn.BatchNorm2d(4, momentum=None))),
    Network("batch_norm_untracked", between(lambda: nn.BatchNorm2d(4, track_running_stats=False))),
    Network(
        "batch_norm_untracked_eval",
        between(lambda: nn.BatchNorm2d(4, track_running_stats=False)),
        train=False,
    ),
    Network("batch_norm_plain_scale", between(lambda: nn.BatchNorm2d(4, affine=False, eps=0.1, momentum=0.9))),
    Network("batch_norm_of_input", lambda: rows(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 3, 2))),
    Network(
        "batch_norm_1d",
        lambda: rows(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, 2, 3)),
        LINE,
    ),
    Network(
        "batch_norm_3d",
        lambda: rows(nn.Conv3d(2, 3, 3), nn.BatchNorm3d(3), nn.ReLU(), nn.Conv3d(3, 2, 3)),
        VOLUME,
    ),
    # Norms of one sample.
    Network("group_norm", between(lambda: nn.GroupNorm(2, 4))),
    Network("group_norm_of_all", between(lambda: nn.GroupNorm(1, 4, affine=False))),
    Network("instance_norm", between(lambda: nn.InstanceNorm2d(4, affine=True))),
    Network("instance_norm_tracked", between(lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True))),
    Network(
        "instance_norm_tracked_eval",
        between(lambda: nn.InstanceNorm2d(4, track_running_stats=True)),
        train=False,
    ),
    Network(
        "instance_norm_3d",
        lambda: rows(nn.Conv3d(2, 3, 3, padding=1), nn.InstanceNorm3d(3), nn.PReLU(), nn.Conv3d(3, 2, 3)),
        VOLUME,
    ),
]
