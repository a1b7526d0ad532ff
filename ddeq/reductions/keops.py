"""Sums over pairs by KeOps: compiled for each formula at first use, never storing a pair."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from ddeq.kernels import Gaussian, Kernel

__all__ = ["sum_pairs", "try_out"]


@torch.compiler.disable  # type: ignore[untyped-decorator]  # formulas cannot be traced
def sum_pairs(kernel: Kernel, x: Tensor, y: Tensor, b: Tensor) -> Tensor:
    """``sum_j k(x_i, y_j) b_j``: ``(*batch, n, d)``, ``(*batch, m, d)``, ``(*batch, m, c)`` to ``(*batch, n, c)``."""
    os.environ.setdefault("PYKEOPS_VERBOSE", "0")  # else it prints at import and at each compilation
    from pykeops.torch import LazyTensor

    def column(t: Tensor) -> LazyTensor:
        return LazyTensor(t.unsqueeze(-3).contiguous())

    k = kernel.pair(LazyTensor(x.unsqueeze(-2).contiguous()), column(y))
    total: Tensor = (k * column(b)).sum(dim=x.ndim - 1, backend="CPU" if x.device.type == "cpu" else "GPU")
    return total


def try_out() -> None:
    """A first small sum, which raises whatever is missing for all others."""
    x = torch.zeros(2, 1)
    sum_pairs(Gaussian(1.0), x, x, x)
