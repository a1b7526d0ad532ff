"""Sums over pairs in plain PyTorch: broadcast where the pairs are few, in blocks of rows that are computed again where not."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ddeq.reductions.backend import rows_per_block
from ddeq.reductions.recompute import recompute

__all__ = ["sum_pairs"]


def sum_pairs(pair: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, b: Tensor) -> Tensor:
    """``sum_j pair(x_i, y_j) b_j``: ``(*batch, n, d)``, ``(*batch, m, d)``, ``(*batch, m, c)`` to ``(*batch, n, c)``.

    ``pair`` maps ``(*batch, n, 1, d)`` and ``(*batch, 1, m, d)`` to ``(*batch, n, m)``. If it holds tensors that require
    grad of its own, blocks are kept for backward instead of being computed again.
    """

    def rows(x: Tensor, y: Tensor, b: Tensor) -> tuple[Tensor]:
        return (pair(x.unsqueeze(-2), y.unsqueeze(-3)) @ b,)

    size = rows_per_block(x, y)
    if size >= x.shape[-2]:
        return rows(x, y, b)[0]
    again = not (torch._C._are_functorch_transforms_active() or _captures(pair, x, y))
    blocks = [recompute(rows, block, y, b)[0] if again else rows(block, y, b)[0] for block in x.split(size, -2)]
    return torch.cat(blocks, -2)


def _captures(pair: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> bool:
    """Whether ``pair`` requires grad when its arguments do not."""
    with torch.enable_grad():
        return pair(x[..., :1, None, :].detach(), y[..., None, :1, :].detach()).requires_grad
