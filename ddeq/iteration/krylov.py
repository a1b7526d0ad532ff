"""Krylov solves of linear equations whose operator is known by its products only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LeastSquares", "LinearSolution", "conjugate_gradients", "minimal_residual"]

REMEMBERED = 2**26
"""Numbers that the vectors may hold against which `minimal_residual` orthogonalises again."""


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
    precondition: Callable[[Tensor], Tensor] | None = None,
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
    precondition
        About :math:`A^{-1}`: linear, self-adjoint and positive definite in the same inner product.

    References
    ----------
    :cite:t:`hestenes1952methods`.
    """
    over = tuple(range(-dims, 0))

    def inner(a: Tensor, c: Tensor) -> Tensor:
        return (a * c if weights is None else weights * a * c).sum(over, keepdim=True)

    size = (b if weights is None else torch.where(weights > 0, b, 0.0)).abs().amax(over, keepdim=True)
    size = torch.where(size > 0, size, 1.0)
    x, r = torch.zeros_like(b), b / size  # squares of small numbers would be zero
    start = inner(r, r).sqrt()
    bound = start * (rtol.reshape(start.shape) if isinstance(rtol, Tensor) else rtol)
    p = r if precondition is None else precondition(r)
    square = inner(r, p)
    best, least = x, start
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
        towards = r if precondition is None else precondition(r)
        following = inner(r, towards)
        norm = (following if precondition is None else inner(r, r)).clamp_min(0).sqrt()
        better = running & (norm < least)
        best, least = torch.where(better, x, best), torch.where(better, norm, least)
        steps = steps + running
        p = towards + torch.where(running, following / torch.where(square > 0, square, 1.0), 0.0) * p
        square = following
        running = running & (norm > bound) & (square > 0)
    residual = torch.where(start > 0, least / torch.where(start > 0, start, 1.0), 0.0)
    flat = (t.reshape(b.shape[: b.ndim - dims]) for t in (residual, steps, least <= bound))
    return LinearSolution(best * size, *flat)


@dataclass(frozen=True)
class LeastSquares(LinearSolution):
    """What `minimal_residual` gives; where an equation has no solution, the one of least squares."""

    flat: Tensor
    """Whether the solve ended because the operator does not see what is left of ``b``, ``(*batch,)``: then that lies in
    the kernel to the cutoff, and the equation has no solution unless it is rounding."""
    norm: Tensor
    """A lower estimate of the norm of the operator, ``(*batch,)``, nearly always within a factor of two."""


def minimal_residual(
    operator: Callable[[Tensor], Tensor],
    b: Tensor,
    *,
    weights: Tensor | None = None,
    dims: int = 1,
    rtol: float | Tensor = 1e-8,
    max_steps: int = 500,
    cutoff: float | None = None,
    scale: Tensor | None = None,
) -> LeastSquares:
    r"""Minimise :math:`|b - A x|` for an operator that is self-adjoint in an inner product, definite or not (MINRES).

    Of a singular equation it gives the solution of least squares and least norm, :math:`x = A^+ b` (equilibria, T16). What is
    left of :math:`b` is then its part in the kernel; this is how a singular equation is told from one that takes long. Samples
    stop each by itself.

    Parameters
    ----------
    operator, b, weights, dims, rtol, max_steps
        As in `conjugate_gradients`; :math:`A` need not be positive.
    cutoff
        Where :math:`|A r| \le \text{cutoff} \cdot |A| \cdot |r|` for the residual :math:`r`, this is taken for a vector of the
        kernel. Default: the rounding unit to the power of two thirds.
    scale
        Norms ``(*batch,)`` to which the cutoff refers where :math:`|A|` is seen to be smaller: an operator that should be
        zero is not zero in floating point.

    References
    ----------
    :cite:t:`paige1975solution`; :cite:t:`choi2011minres`, on singular equations.
    """
    over = tuple(range(-dims, 0))
    cutoff = torch.finfo(b.dtype).eps ** (2 / 3) if cutoff is None else cutoff

    def inner(a: Tensor, c: Tensor) -> Tensor:
        return (a * c if weights is None else weights * a * c).sum(over, keepdim=True)

    def length(a: Tensor) -> Tensor:
        return inner(a, a).clamp_min(0).sqrt()

    def over_(a: Tensor, c: Tensor, where: Tensor) -> Tensor:
        return torch.where(where, a / torch.where(where, c, 1.0), 0.0)

    size = (b if weights is None else torch.where(weights > 0, b, 0.0)).abs().amax(over, keepdim=True)
    size = torch.where(size > 0, size, 1.0)
    b = b / size  # squares of small numbers would be zero
    start = length(b)
    bound = start * (rtol.reshape(start.shape) if isinstance(rtol, Tensor) else rtol)
    norm = torch.zeros_like(start)
    least = norm if scale is None else scale.reshape(start.shape)
    running = (start > 0) & torch.isfinite(start)
    flat, steps = torch.zeros_like(running), torch.zeros_like(start, dtype=torch.long)
    x, v, v_before = torch.zeros_like(b), over_(b, start, running), torch.zeros_like(b)
    w, w_before = torch.zeros_like(b), torch.zeros_like(b)
    beta, rest = torch.zeros_like(start), start  # `rest` is the norm of the residual
    cosine, sine = -torch.ones_like(start), torch.zeros_like(start)
    diagonal, above = torch.zeros_like(start), torch.zeros_like(start)
    basis: list[Tensor] = []
    for _ in range(max_steps):
        if not bool(running.any()):
            break
        image = operator(v)
        # One step of Lanczos' recurrence: A v = beta v_before + alpha v + beta_next v_next.
        y = image - beta * v_before
        alpha = inner(v, y)
        y = y - alpha * v
        # Once more against all before: what rounding brings back of the kernel would be divided by nearly nothing.
        if (len(basis) + 1) * b.numel() <= REMEMBERED:
            basis.append(v)
        before = torch.stack(basis)
        for _ in range(2):
            y = y - (inner(before, y) * before).sum(0)
        beta_next = length(y)
        norm = torch.where(running, torch.maximum(norm, (beta**2 + alpha**2 + beta_next**2).sqrt()), norm)
        # The rotation of the last step, on the new column of the tridiagonal matrix.
        above_before = above
        delta = cosine * diagonal + sine * alpha
        corner = sine * diagonal - cosine * alpha
        above, diagonal = sine * beta_next, -cosine * beta_next
        seen = torch.hypot(corner, diagonal)  # |A r| / |r|
        steps = steps + running
        flat = flat | (running & (seen <= cutoff * torch.maximum(norm, least)))
        running = running & ~flat & torch.isfinite(seen)
        gamma = torch.hypot(corner, beta_next)
        running = running & (gamma > 0)
        cosine, sine = over_(corner, gamma, running), over_(beta_next, gamma, running)
        w, w_before = over_(v - above_before * w_before - delta * w, gamma, running), w
        x = x + torch.where(running, cosine * rest, 0.0) * w
        rest = torch.where(running, sine * rest, rest)
        running = running & (rest > bound)
        v, v_before, beta = over_(y, beta_next, running & (beta_next > 0)), v, beta_next
    if bool(flat.any()):
        # Within the Krylov space the kernel is the line along the residual: off it is the solution of least norm.
        r = b - operator(x)
        x = x - torch.where(flat, over_(inner(x, r), inner(r, r), inner(r, r) > 0), 0.0) * r
    residual = torch.where(start > 0, rest / torch.where(start > 0, start, 1.0), 0.0)
    parts = (t.reshape(b.shape[: b.ndim - dims]) for t in (residual, steps, rest <= bound, flat, norm))
    return LeastSquares(x * size, *parts)
