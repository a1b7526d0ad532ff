"""Squared distances from differences, whose derivatives are matrix products instead of sums over an N x M x d array."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.autodiff import under_transforms

__all__ = ["Distances", "by_cdist", "squared_distances", "sums_of_differences"]

FEW = 2**15
"""Differences of so few numbers are simply stored: the calls cost more than the memory."""
SAFE = 64.0
"""Single precision serves the outer sums while centred points are at most so many times larger than the differences."""


Distances = Callable[[Tensor, Tensor], Tensor]
"""``(*batch, n, d)`` and ``(*batch, m, d)`` to squared distances ``(*batch, n, m)``, without derivatives."""


def by_cdist(x: Tensor, y: Tensor) -> Tensor:
    """Squared distances as PyTorch has them."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square_()


def squared_distances(
    x: Float[Tensor, "*batch n d"], y: Float[Tensor, "*batch m d"], by: Distances = by_cdist
) -> Float[Tensor, "*batch n m"]:
    """``|x_i - y_j|^2``, never as ``|x|^2 - 2 x y + |y|^2``; differentiable at every order. ``by``: what computes them."""
    few = x.shape[:-2].numel() * x.shape[-2] * y.shape[-2] * x.shape[-1] <= FEW
    if few or under_transforms() or torch.compiler.is_compiling() or x.shape[:-2] != y.shape[:-2]:
        return (x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1)
    distances: Tensor = _SquaredDistances.apply(x, y, by)  # type: ignore[no-untyped-call]
    return distances


class _SquaredDistances(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, by: Distances) -> Tensor:
        ctx.by = by
        ctx.save_for_backward(x, y)
        return by(x, y)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        x, y = ctx.saved_tensors
        of_x = 2.0 * sums_of_differences(cotangent, x, y, ctx.by) if ctx.needs_input_grad[0] else None
        of_y = 2.0 * sums_of_differences(cotangent.mT, y, x, ctx.by) if ctx.needs_input_grad[1] else None
        return of_x, of_y, None


def sums_of_differences(c: Tensor, x: Tensor, y: Tensor, by: Distances = by_cdist, known: Tensor | None = None) -> Tensor:
    """``sum_j c_ij (x_i - y_j)`` by matrix products, as exact as from the differences; differentiable in all three.

    ``known``: the squared distances, where they are at hand.
    """
    centre = y.detach().mean(-2, keepdim=True)
    dtype = x.dtype
    x, y = x - centre, y - centre
    if dtype not in (torch.float64, torch.float32) or (dtype == torch.float32 and not _single_serves(c, x, y, by, known)):
        c, x, y = (t.to(torch.float64) for t in (c, x, y))
    return (x * c.sum(-1, keepdim=True) - c @ y).to(dtype)


def _single_serves(c: Tensor, x: Tensor, y: Tensor, by: Distances, known: Tensor | None) -> bool:
    """Whether no difference that counts is much smaller than the points from which it is taken."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in (c, x, y)):
        return False  # derivatives in the coefficients count every pair
    size = torch.maximum(x.norm(dim=-1).amax(), y.norm(dim=-1).amax())
    s = by(x, y) if known is None else known
    weight = c.abs()
    return bool((weight.sum(-1) * size <= SAFE * (weight * s.sqrt()).sum(-1)).all())
