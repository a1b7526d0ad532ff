"""What the other rooms ask of automatic differentiation: gradients that are differentiable again, and memory for time."""

from ddeq.autodiff.derivatives import alias, gradient, graph_leaves, under_transforms
from ddeq.autodiff.inputs import open_tensors, strangers
from ddeq.autodiff.recompute import autocast_now, recompute

__all__ = ["alias", "autocast_now", "gradient", "graph_leaves", "open_tensors", "recompute", "strangers", "under_transforms"]
