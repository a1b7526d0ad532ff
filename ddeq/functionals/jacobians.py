r"""Derivatives of the equations of potentials, as operators, and solves with them; no derivatives of these.

Let ``c`` be the masses that the plan of a potential gives to the atoms, and ``-J`` the derivative of the residual. Then
``diag(c) J`` is symmetric and positive semidefinite, :math:`\mathrm{diag}(c) - \tau^2\pi^\top\mathrm{diag}(r)^{-1}\pi` between
two measures, :math:`\mathrm{diag}(c) + \tau\pi` between a measure and itself, with the plan :math:`\pi` and its other marginal
``r`` (the catalogue, T3).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ddeq.functionals.cells import Cells
from ddeq.functionals.entropic import EntropicTransport
from ddeq.functionals.plans import Plan
from ddeq.iteration import conjugate_gradients

__all__ = ["BetweenJacobian", "Jacobian", "Place", "WithinJacobian"]

KRYLOV_STEPS = 500
"""Most products of one linear solve."""


@dataclass(frozen=True)
class Place:
    """What a potential ``z`` makes, ``(*batch, m)`` each; no derivatives."""

    plan: Plan
    masses: Tensor
    """What the plan gives to the atoms."""
    residual: Tensor
    """The image under Sinkhorn's iteration minus the potential."""
    shift: Tensor
    """The constant ``(*batch, 1)`` by which the potential would have to move for the largest dual value."""


class Jacobian(ABC):
    """``J``, minus the derivative of the residual: self-adjoint in L2 of the masses of the plan.

    Parameters
    ----------
    transport, place
        The transport, and what the potential makes of it.
    rough
        Whether three digits are enough.
    """

    def __init__(self, transport: EntropicTransport, place: Place, rough: bool) -> None:
        self.plan = place.plan.rough() if rough else place.plan
        self.tau, self.masses = transport.tau, place.masses
        self.alive = self.masses > 0
        self.inverse = torch.where(self.alive, 1.0 / torch.where(self.alive, self.masses, 1.0), 0.0)

    @abstractmethod
    def product(self, a: Tensor) -> Tensor:
        """``J a`` at the atoms with mass, zero at the others."""

    @abstractmethod
    def prepare(self) -> None:
        """Make ready for solves."""

    def precondition(self, a: Tensor) -> Tensor:
        """About ``J^-1 a``, self-adjoint in the same inner product."""
        return a

    def solve(self, b: Tensor, rtol: float | Tensor) -> Tensor:
        """``J a = b`` at the atoms with mass, ``(*batch, m)``."""
        b = torch.where(self.alive, b, 0.0)
        return conjugate_gradients(
            self.product, b, weights=self.masses, rtol=rtol, max_steps=KRYLOV_STEPS, precondition=self.precondition
        ).x

    def change(self, residual: Tensor, rtol: float | Tensor) -> Tensor:
        """The step of Newton's method, where ``residual`` is that with the best constant added."""
        return self.solve(residual, rtol)

    def seen(self, b: Tensor) -> Tensor:
        """``b`` without what is not in the range."""
        return b


class BetweenJacobian(Jacobian):
    r""":math:`J = 1 - \tau^2 \mathrm{diag}(c)^{-1} P^\top \mathrm{diag}(r) P`.

    Constants have the eigenvalue :math:`1 - \tau^2`. Conjugate gradients off the constants, with a correction on cells of atoms:
    what is slow varies little within a cell.
    """

    def __init__(self, transport: EntropicTransport, place: Place, rough: bool, rows: Tensor, cells: Cells | None) -> None:
        super().__init__(transport, place, rough)
        self._rows, self._cells, self._balanced = rows, cells, transport.reach is None
        rho, epsilon = transport.rho, transport.epsilon
        self._of_constants = 1.0 if self._balanced else epsilon * (2 * rho + epsilon) / (rho + epsilon) ** 2
        self._lift = 4.0 * self.plan.eps
        self._factor: Tensor | None = None
        self._scale = self.masses

    def product(self, a: Tensor) -> Tensor:
        back = self.plan.transposed(self._rows * self.plan.product(a))
        # Eigenvalues below rounding may be negative in it.
        return torch.where(self.alive, (1.0 + self._lift) * a, 0.0) - self.tau**2 * self.inverse * back

    @property
    def _is_exact(self) -> bool:
        """Whether the factorised matrix is that of the atoms."""
        return self._factor is not None and self._cells is not None and self._cells.count == self.masses.shape[-1]

    def solve(self, b: Tensor, rtol: float | Tensor) -> Tensor:
        mean = self._mean(b)
        rest = torch.where(self.alive, b - mean, 0.0)
        a = self.precondition(rest) if self._is_exact else super().solve(rest, rtol)
        a = a - self._mean(a)
        if not self._balanced:
            a = a + mean / self._of_constants
        return torch.where(self.alive, a, 0.0)

    def change(self, residual: Tensor, rtol: float | Tensor) -> Tensor:
        # Divided by a small eigenvalue a constant would keep no digits; the best one is in the residual.
        mean = self._mean(residual)
        return self.solve(residual - mean, rtol) + mean

    def seen(self, b: Tensor) -> Tensor:
        return torch.where(self.alive, b - self._mean(b), 0.0) if self._balanced else b

    def _mean(self, a: Tensor) -> Tensor:
        return (self.masses * torch.where(self.alive, a, 0.0)).sum(-1, keepdim=True) / self.masses.sum(-1, keepdim=True)

    def prepare(self) -> None:
        if self._cells is None:
            return
        sums, rows = self.plan.summed(self._cells, self._rows)
        masses = (rows.unsqueeze(-1) * sums).sum(-2)
        matrix = torch.diag_embed(masses) - self.tau**2 * sums.mT @ (rows.unsqueeze(-1) * sums)
        # Constants need no solve, and would leave the matrix singular.
        matrix = matrix + masses.unsqueeze(-1) * masses.unsqueeze(-2) / masses.sum(-1, keepdim=True).unsqueeze(-1)
        self._scale = torch.where(masses > 0, masses, 1.0).rsqrt()
        matrix = self._scale.unsqueeze(-1) * matrix * self._scale.unsqueeze(-2)
        self._factor = _factorised(matrix + torch.diag_embed((masses == 0).to(matrix)))

    def precondition(self, a: Tensor) -> Tensor:
        if self._factor is None or self._cells is None:
            return a
        of_cells = (self._scale * self._cells.sums(self.masses * a)).unsqueeze(-1)
        of_cells = self._scale * torch.cholesky_solve(of_cells, self._factor).squeeze(-1)
        spread = torch.where(self.alive, self._cells.spread(of_cells), 0.0)
        return spread if self._is_exact else a + spread


class WithinJacobian(Jacobian):
    r""":math:`J = 1 + \tau P`, whose eigenvalues lie between 1 and 2."""

    def prepare(self) -> None:
        pass

    def product(self, a: Tensor) -> Tensor:
        return torch.where(self.alive, a + self.tau * self.plan.product(a), 0.0)


def _factorised(matrix: Tensor) -> Tensor:
    """Cholesky factor of a semidefinite matrix with a unit diagonal: eigenvalues below rounding are lifted to it."""
    lift = matrix.shape[-1] * torch.finfo(matrix.dtype).eps
    diagonal = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(matrix + lift * diagonal)
    while bool((failed > 0).any()) and lift < 1.0:
        lift = 100.0 * lift
        again, still = torch.linalg.cholesky_ex(matrix + lift * diagonal)
        factor = torch.where((failed > 0)[..., None, None], again, factor)
        failed = torch.where(failed > 0, still, failed)
    return factor
