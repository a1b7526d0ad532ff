"""Anderson's acceleration of fixed-point iterations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ddeq.solvers.problem import FixedPoint

__all__ = ["Anderson"]


class History(NamedTuple):
    """Differences of successive iterates and residuals, newest first, ``(*batch, memory, n, d)``."""

    z: Tensor | None
    residual: Tensor | None
    steps: Tensor
    changes: Tensor
    least: Tensor


@dataclass(frozen=True)
class Anderson:
    r"""Anderson's acceleration (type II) in :math:`L^2(\mu)`.

    With residuals :math:`r_k = \Phi(z_k) - z_k` and the differences :math:`\Delta z_j, \Delta r_j` of the last ``memory``
    steps,

    .. math:: z_{k+1} = z_k + \beta r_k - \sum_j \gamma_j (\Delta z_j + \beta \Delta r_j), \qquad
              \gamma = \arg\min \Big|r_k - \sum_j \gamma_j \Delta r_j\Big|_{L^2(\mu)} , \quad \beta = 1 - \text{damping}.

    The coefficients depend on inner products in :math:`L^2(\mu)` only, so the iterates commute with permuting and
    splitting atoms and with atoms of mass zero (T9). Each difference is scaled to norm one before the least-squares
    problem is solved, and ``ridge`` is added to its unit diagonal: the regularisation follows the scale of the residuals
    and vanishes with them. A sample whose residual grows to ``restart`` times its least one forgets its history.

    Parameters
    ----------
    memory
        Number of differences kept, at least one.
    damping
        Share of the plain step that is left out, ``0 <= damping < 1``.
    ridge
        Relative regularisation; default: :math:`10\, \epsilon^{2/3}` for the rounding unit :math:`\epsilon`. Smaller ones let
        rounding decide the coefficients where differences are nearly parallel.
    restart
        Growth of the residual that clears the history.

    Raises
    ------
    ValueError
        If an option is outside its range.

    References
    ----------
    Anderson (1965), Iterative procedures for nonlinear integral equations. Walker and Ni (2011), Anderson acceleration
    for fixed-point iterations.
    """

    memory: int = 10
    damping: float = 0.0
    ridge: float | None = None
    restart: float = 100.0

    def __post_init__(self) -> None:
        if not (isinstance(self.memory, int) and self.memory >= 1):
            raise ValueError(f"memory: expected a whole number >= 1, got {self.memory!r}")
        if not 0.0 <= self.damping < 1.0:
            raise ValueError(f"damping: expected 0 <= damping < 1, got {self.damping}")
        if self.ridge is not None and not 0.0 <= self.ridge < 1.0:
            raise ValueError(f"ridge: expected 0 <= ridge < 1, got {self.ridge}")
        if not self.restart > 1.0:
            raise ValueError(f"restart: expected a factor > 1, got {self.restart}")

    def init(self, problem: FixedPoint, z: Tensor) -> History:
        empty = z.new_zeros(*z.shape[:-2], self.memory, *z.shape[-2:])
        return History(None, None, empty, empty, z.new_full(z.shape[:-2], torch.inf))

    def step(self, problem: FixedPoint, z: Tensor, image: Tensor, state: History) -> tuple[Tensor, History]:
        r = image - z
        size = problem.norm(r.detach())
        steps, changes = state.steps, state.changes
        if state.z is not None and state.residual is not None:
            steps, changes = _push(steps, z - state.z), _push(changes, r - state.residual)
        keep = (size <= self.restart * state.least)[..., None, None, None]
        steps, changes = torch.where(keep, steps, 0.0), torch.where(keep, changes, 0.0)
        gamma = self._coefficients(problem, changes, r)
        beta = 1.0 - self.damping
        z_next = z + beta * r - torch.einsum("...m,...mnd->...nd", gamma, steps + beta * changes)
        return z_next, History(z, r, steps, changes, torch.minimum(size, state.least))

    def _coefficients(self, problem: FixedPoint, changes: Tensor, r: Tensor) -> Tensor:
        gram = problem.inner_products(changes, changes)
        right = problem.inner_products(changes, r.unsqueeze(-3)).squeeze(-1)
        square = gram.diagonal(dim1=-2, dim2=-1)
        used = square > 0
        scale = torch.where(used, square, 1.0).rsqrt()
        ridge = 10.0 * torch.finfo(r.dtype).eps ** (2 / 3) if self.ridge is None else self.ridge
        # An empty place in the history has a row of zeros: one on its diagonal makes its coefficient zero.
        system = gram * scale.unsqueeze(-1) * scale.unsqueeze(-2) + torch.diag_embed(torch.where(used, ridge, 1.0))
        solution, _ = torch.linalg.solve_ex(system.double(), (right * scale).double())
        coefficients: Tensor = solution.to(r.dtype) * scale
        return coefficients


def _push(history: Tensor, newest: Tensor) -> Tensor:
    return torch.cat([newest.unsqueeze(-3), history[..., :-1, :, :]], -3)
