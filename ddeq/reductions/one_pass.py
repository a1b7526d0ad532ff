"""When several sums over the same pairs are found in one pass over them."""

from __future__ import annotations

import torch
from torch import Tensor

from ddeq.autodiff import under_transforms
from ddeq.kernels import Kernel
from ddeq.measures import DiscreteMeasure
from ddeq.reductions.builtin import DENSE
from ddeq.reductions.dispatch import backend_for
from ddeq.reductions.pairs import are_summed_by_coordinates
from ddeq.reductions.settings import rows_per_block

__all__ = ["in_one_pass"]


def in_one_pass(kernel: Kernel, x: Tensor, mu: DiscreteMeasure) -> bool:
    """Whether sums of `ddeq.reductions.pairs`, whose slopes are stored, take the place of those of the backend."""
    if under_transforms() or torch.compiler.is_compiling() or not are_summed_by_coordinates(kernel, x):
        return False
    few = rows_per_block(x, mu.points, 1, cached=True) >= x.shape[-2]
    return few and backend_for(kernel, x, mu.points, mu.weights) is DENSE
