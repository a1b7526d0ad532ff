"""Automatic differentiation: gradients that are differentiable again, and recomputation in the place of memory."""

from ddeq.autodiff.derivatives import (
    alias,
    check_recordable,
    forward_levels,
    forward_mode_is_missing,
    gradient,
    graph_leaves,
    plain,
    reusable_graphs,
    under_transforms,
)
from ddeq.autodiff.inputs import OpenModule, unseen_leaves
from ddeq.autodiff.known_gradient import with_gradient
from ddeq.autodiff.recompute import autocast_now, forward_autocast, recompute, without_autocast

__all__ = [
    "OpenModule",
    "alias",
    "autocast_now",
    "check_recordable",
    "forward_autocast",
    "forward_levels",
    "forward_mode_is_missing",
    "gradient",
    "graph_leaves",
    "plain",
    "recompute",
    "reusable_graphs",
    "under_transforms",
    "unseen_leaves",
    "with_gradient",
    "without_autocast",
]
