"""What the other rooms ask of automatic differentiation: gradients that are differentiable again, and memory for time."""

from ddeq.autodiff.derivatives import (
    alias,
    check_recordable,
    forward_levels,
    gradient,
    graph_leaves,
    reusable_graphs,
    under_transforms,
)
from ddeq.autodiff.inputs import OpenModule, strangers
from ddeq.autodiff.recompute import autocast_now, recompute, without_autocast

__all__ = [
    "OpenModule",
    "alias",
    "autocast_now",
    "check_recordable",
    "forward_levels",
    "gradient",
    "graph_leaves",
    "recompute",
    "reusable_graphs",
    "strangers",
    "under_transforms",
    "without_autocast",
]
