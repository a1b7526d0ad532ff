"""Sums over pairs by KeOps: compiled for each formula at first use, never storing a pair."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from ddeq.kernels import Gaussian, Kernel

__all__ = ["max_pairs", "sum_gradients", "sum_pairs", "try_out"]


@torch.compiler.disable  # type: ignore[untyped-decorator]  # formulas cannot be traced
def sum_pairs(kernel: Kernel, x: Tensor, y: Tensor, b: Tensor) -> Tensor:
    """``sum_j k(x_i, y_j) b_j``: ``(*batch, n, d)``, ``(*batch, m, d)``, ``(*batch, m, c)`` to ``(*batch, n, c)``."""
    total: Tensor = (kernel.pair(_row(x), _column(y)) * _column(b)).sum(dim=x.ndim - 1, backend=_backend(x))
    return total


@torch.compiler.disable  # type: ignore[untyped-decorator]
def sum_gradients(kernel: Kernel, x: Tensor, y: Tensor, b: Tensor) -> Tensor:
    """``sum_j grad_x k(x_i, y_j) b_j``: ``(*batch, n, d)``, ``(*batch, m, d)``, ``(*batch, m)`` to ``(*batch, n, d)``."""
    row = _row(x)
    gradient = kernel.pair(row, _column(y)).grad(row, _column(b.unsqueeze(-1)))
    total: Tensor = gradient.sum(dim=x.ndim - 1, backend=_backend(x))
    return total


@torch.compiler.disable  # type: ignore[untyped-decorator]
@torch.no_grad()
def max_pairs(kernel: Kernel, x: Tensor, y: Tensor, alive: Tensor) -> Tensor:
    """``max_j log k(x_i, y_j)`` over the ``alive`` ``(*batch, m)``: ``(*batch, n)``, without derivatives."""
    lowest = (~alive).to(x).unsqueeze(-1) * torch.finfo(x.dtype).min
    exponents = kernel.log_pair(_row(x), _column(y)) + _column(lowest)
    largest: Tensor = exponents.max(dim=x.ndim - 1, backend=_backend(x))
    return largest.squeeze(-1)


def try_out() -> None:
    """A first small sum, which raises whatever is missing for all others."""
    x = torch.zeros(2, 1)
    sum_pairs(Gaussian(1.0), x, x, x)


def _row(t: Tensor) -> Any:
    return _symbolic(t.unsqueeze(-2))


def _column(t: Tensor) -> Any:
    return _symbolic(t.unsqueeze(-3))


def _symbolic(t: Tensor) -> Any:
    for name in ("PYKEOPS_VERBOSE", "KEOPS_VERBOSE"):  # else it prints at import and at each compilation
        os.environ.setdefault(name, "0")
    from pykeops.torch import LazyTensor

    return LazyTensor(t.contiguous())


def _backend(x: Tensor) -> str:
    return "CPU" if x.device.type == "cpu" else "GPU"
