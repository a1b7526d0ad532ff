"""Krylov solves of linear equations whose operator is known by its products only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LinearSolution", "conjugate_gradients"]


@dataclass(frozen=True)
class LinearSolution:
    """What a linear solve gives."""

    x: Tensor
    """The solution ``(*batch, ...)``: of each sample, the iterate of least residual."""
    residual: Tensor
    """Relative residuals ``|b - A x| / |b|``, ``(*batch,)``, as the iteration knows them; 0 where ``b`` is."""
    steps: Tensor
    """Products that each sample took, ``(*batch,)``."""
    converged: Tensor
    """Whether the residual is at most the tolerance, ``(*batch,)``."""


def conjugate_gradients(
    operator: Callable[[Tensor], Tensor],
    b: Tensor,
    *,
    weights: Tensor | None = None,
    dims: int = 1,
    rtol: float | Tensor = 1e-8,
    max_steps: int = 500,
) -> LinearSolution:
    r"""Solve :math:`A x = b` for an operator that is self-adjoint and positive semidefinite in an inner product.

    Of a singular consistent equation it gives the solution of least norm. Samples stop each by itself. It is a loop of its
    own: it runs within steps of `iterate`, whose bookkeeping would cost more than the products of a small operator.

    Parameters
    ----------
    operator
        :math:`A`, linear, on tensors ``(*batch, ...)``.
    b
        Right-hand side ``(*batch, ...)``.
    weights
        The inner product is :math:`\langle a, c\rangle = \sum_i \omega_i a_i c_i`, for weights :math:`\omega` that broadcast with
        ``b``; entries of weight zero are left alone, and must not influence the others. Default 1.
    dims
        How many of the last dimensions make one unknown; those before are the batch.
    rtol
        Relative residual at which a sample stops; a number, or one for each sample ``(*batch,)``.
    max_steps
        Most products.

    References
    ----------
    Hestenes and Stiefel (1952), Methods of conjugate gradients for solving linear systems.
    """
    over = tuple(range(-dims, 0))

    def inner(a: Tensor, c: Tensor) -> Tensor:
        return (a * c if weights is None else weights * a * c).sum(over, keepdim=True)

    size = (b if weights is None else torch.where(weights > 0, b, 0.0)).abs().amax(over, keepdim=True)
    size = torch.where(size > 0, size, 1.0)
    x, r = torch.zeros_like(b), b / size  # squares of small numbers would be zero
    square = inner(r, r)
    start = square.sqrt()
    bound = start * (rtol.reshape(start.shape) if isinstance(rtol, Tensor) else rtol)
    best, least, p = x, start, r
    running = square > 0
    steps = torch.zeros_like(start, dtype=torch.long)
    for _ in range(max_steps):
        if not bool(running.any()):
            break
        image = operator(p)
        curvature = inner(p, image)
        running = running & (curvature > 0) & torch.isfinite(curvature)  # else the rest is in the kernel, to rounding
        step = torch.where(running, square / torch.where(running, curvature, 1.0), 0.0)
        x, r = x + step * p, r - step * image
        following = inner(r, r)
        norm = following.clamp_min(0).sqrt()
        better = running & (norm < least)
        best, least = torch.where(better, x, best), torch.where(better, norm, least)
        steps = steps + running
        p = r + torch.where(running, following / torch.where(square > 0, square, 1.0), 0.0) * p
        square = following
        running = running & (norm > bound)
    residual = torch.where(start > 0, least / torch.where(start > 0, start, 1.0), 0.0)
    flat = (t.reshape(b.shape[: b.ndim - dims]) for t in (residual, steps, least <= bound))
    return LinearSolution(best * size, *flat)
