"""The quadratic model of an energy in a Krylov space: what some products with its Hessian tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["QuadraticModel"]

PRODUCTS = 64
"""Most products with the operator."""
REMEMBERED = 2**26
"""Numbers that the basis of the Krylov space may hold."""


@dataclass(frozen=True)
class QuadraticModel:
    """A self-adjoint operator in the Krylov space of a field ``b``: the quadratic model of Newton's method."""

    basis: Tensor
    """``(k, *batch, n, d)``, orthonormal; zero beyond the space of a sample."""
    values: Tensor
    """Eigenvalues, ``(*batch, k)``; infinite where they are zero to rounding."""
    vectors: Tensor
    """Coordinates of the eigenvectors as columns, ``(*batch, k, k)``."""
    size: Tensor
    """Norm of ``b``, ``(*batch,)``."""
    convex: Tensor
    """Whether no eigenvalue is negative, ``(*batch,)``."""
    sound: Tensor
    """Whether all is finite and some eigenvalue is not zero, ``(*batch,)``."""
    products: Tensor
    """``(*batch,)``"""

    @classmethod
    def of(cls, operator: Callable[[Tensor], Tensor], b: Tensor, weights: Tensor, rtol: Tensor) -> QuadraticModel:
        """Of an operator on fields that are zero at atoms of mass zero, in L2 with ``weights`` ``(*batch, n, 1)``.

        Grows until the residual of the unshifted step is ``rtol``, ``(*batch,)``; ``b`` is zero where no model is wanted.
        """

        def inner(a: Tensor, c: Tensor) -> Tensor:
            return (weights * a * c).sum((-2, -1))

        eps = torch.finfo(b.dtype).eps
        largest = torch.where(weights > 0, b, 0.0).abs().amax((-2, -1))
        largest = torch.where(largest > 0, largest, 1.0)
        unit = b / largest[..., None, None]  # squares of small numbers would be zero
        length = inner(unit, unit).sqrt()
        running = length > 0
        most = max(1, min(PRODUCTS, b.shape[-1] * b.shape[-2], REMEMBERED // max(1, b.numel())))
        basis = b.new_zeros((most, *b.shape))
        v = unit / torch.where(running, length, 1.0)[..., None, None]
        diagonal: list[Tensor] = []
        off_diagonal: list[Tensor] = []
        products = torch.zeros_like(length)
        for k in range(most):
            basis[k] = torch.where(running[..., None, None], v, 0.0)
            y = operator(basis[k])
            products = products + running
            diagonal.append(inner(basis[k], y))
            known = basis[: k + 1]
            for _ in range(2):
                y = y - (inner(known, y)[..., None, None] * known).sum(0)
            beta = inner(y, y).clamp_min(0).sqrt()
            norm = torch.stack(diagonal + off_diagonal).abs().amax(0)
            running = running & (beta > eps ** (2 / 3) * norm) & torch.isfinite(beta)  # else it is rounding
            if k % 4 == 3 or k == most - 1:
                running = running & (_last_coordinate(diagonal, off_diagonal, products) * beta > rtol)
            if k == most - 1 or not bool(running.any()):
                break
            off_diagonal.append(torch.where(running, beta, 0.0))
            v = y / torch.where(running, beta, 1.0)[..., None, None]
        values, vectors = _eigen(diagonal, off_diagonal, products)
        cutoff = eps ** (2 / 3) * values.abs().amax(-1, keepdim=True)
        seen = values.abs() > cutoff
        finite = torch.isfinite(torch.stack(diagonal + off_diagonal)).all(0)
        return cls(
            basis=basis[: len(diagonal)],
            values=torch.where(seen, values, torch.inf),
            vectors=vectors,
            size=length * largest,
            convex=(values >= -cutoff).all(-1),
            sound=finite & (products > 0) & seen.any(-1),
            products=products,
        )

    def step(self, shift: Tensor) -> tuple[Tensor, Tensor]:
        """The step for a shift ``(*batch,)``, and by how much the quadratic model falls with it."""
        first = self.vectors[..., 0, :]
        seen = torch.isfinite(self.values)
        along = torch.where(seen, -first / (self.values.abs() + shift.unsqueeze(-1).to(first)), 0.0)
        curvature = torch.where(seen, self.values, 0.0) * along.square()
        falls = -(along * first + 0.5 * curvature).sum(-1)
        coordinates = (self.vectors @ along.unsqueeze(-1)).squeeze(-1).to(self.size) * self.size.unsqueeze(-1)
        x = (coordinates.movedim(-1, 0)[..., None, None] * self.basis).sum(0)
        return x, falls.to(self.size) * self.size.square()


def _eigen(diagonal: list[Tensor], off_diagonal: list[Tensor], count: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and vectors of the first ``count`` rows of tridiagonal matrices, in double precision.

    Further rows are filled such that they are decoupled, and neither the largest nor negative.
    """
    a = torch.stack(diagonal, -1).double()
    rows = torch.arange(a.shape[-1], device=a.device)
    a = torch.where(rows < count.unsqueeze(-1), a, a.abs().amax(-1, keepdim=True))
    matrix = torch.diag_embed(a)
    if a.shape[-1] > 1:
        b = torch.stack(off_diagonal[: a.shape[-1] - 1], -1).double()
        matrix = matrix + torch.diag_embed(b, 1) + torch.diag_embed(b, -1)
    usable = torch.isfinite(matrix).all(-1).all(-1)
    values, vectors = torch.linalg.eigh(torch.where(usable[..., None, None], matrix, 0.0))
    return values, vectors


def _last_coordinate(diagonal: list[Tensor], off_diagonal: list[Tensor], count: Tensor) -> Tensor:
    """Size of the last coordinate of the unshifted step for a unit vector, ``(*batch,)``: times beta, what it leaves."""
    values, vectors = _eigen(diagonal, off_diagonal, count)
    least = torch.finfo(values.dtype).eps * values.abs().amax(-1, keepdim=True)
    along = torch.where(values.abs() > least, vectors[..., 0, :] / torch.where(values.abs() > least, values.abs(), 1.0), 0.0)
    last = (count.long() - 1).clamp_min(0).unsqueeze(-1)
    return (vectors @ along.unsqueeze(-1)).squeeze(-1).gather(-1, last).squeeze(-1).abs().to(diagonal[0])
