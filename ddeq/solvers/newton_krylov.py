"""Newton's method whose linear equations are solved by GMRES on products with the Jacobian."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ddeq.iteration.gmres import gmres
from ddeq.iteration.loop import choose
from ddeq.solvers.problem import FixedPoint

__all__ = ["NewtonKrylov"]

SHORTEST = 1e-3
"""A step that had to be shortened more than that is given up for a plain one."""
TRIES = 10
"""After so many plain steps that led to nothing finite a sample has diverged."""


class NewtonState(NamedTuple):
    """Where the last direction started, and how far it has been followed."""

    base: Tensor
    residual: Tensor
    direction: Tensor
    size: Tensor  # norm of the residual at the base, infinite before the first one
    length: Tensor  # share of the direction that was taken
    forcing: Tensor  # relative residual to which the linear equation was solved
    failures: Tensor  # plain steps in a row that led nowhere


@dataclass(frozen=True)
class NewtonKrylov:
    r"""Inexact Newton steps for :math:`\Phi(z) - z = 0` in :math:`L^2(\mu)`, with backtracking on the residual.

    .. math:: z_{k+1} = z_k + t_k d_k, \qquad |(I - J_k)\, d_k - r_k| \le \eta_k |r_k|, \qquad
              J_k = \partial \Phi(z_k), \quad r_k = \Phi(z_k) - z_k ,

    where GMRES in :math:`L^2(\mu)` finds :math:`d_k` from products with :math:`J_k`, by forward mode or, where an operation
    has none, by two reverse ones. :math:`\eta_k = 0.9\,(|r_k|/|r_{k-1}|)^2` (Eisenstat and Walker), and :math:`t_k` is
    shortened until :math:`|r_{k+1}| \le (1 - 10^{-4}\, t_k (1 - \eta_k))\,|r_k|`. Every trial is a step and an evaluation of
    its own, and every product counts as an evaluation. Converges fast near a fixed point at which :math:`I - J` is
    regular, whether the map contracts or not.

    Parameters
    ----------
    memory
        Size of the Krylov spaces.
    products
        Most products for a direction.

    Raises
    ------
    ValueError
        If an option is not a whole number of at least one; in a solve that autograd records: use `Implicit`.

    References
    ----------
    :cite:t:`knoll2004jacobian`; :cite:t:`eisenstat1996choosing`, the tolerance of the linear equations.
    """

    memory: int = 30
    products: int = 60

    retreats: ClassVar[bool] = True
    """What is not finite, or too large, is left to `step`, which goes back."""

    def __post_init__(self) -> None:
        for name in ("memory", "products"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: expected a whole number >= 1, got {value!r}")

    def init(self, problem: FixedPoint, z: Tensor) -> NewtonState:
        if torch.is_grad_enabled():
            raise ValueError(
                "solver: autograd cannot record the steps of NewtonKrylov; use adjoint=Implicit(), or another solver"
            )
        batch, nothing = z.shape[:-2], torch.zeros_like(z)
        infinite, zero = z.new_full(batch, torch.inf), z.new_zeros(batch)
        return NewtonState(z, nothing, nothing, infinite, zero + 1.0, zero + 0.1, zero)

    def step(self, problem: FixedPoint, z: Tensor, image: Tensor, state: NewtonState) -> tuple[Tensor, NewtonState]:
        return self.step_of(problem, z, image, state, torch.ones_like(state.size, dtype=torch.bool))

    def step_of(
        self, problem: FixedPoint, z: Tensor, image: Tensor, state: NewtonState, active: Tensor
    ) -> tuple[Tensor, NewtonState]:
        """The step of the samples that are ``active``, ``(*batch,)``; for the others no equations are solved.

        ``problem``, ``z``, ``image`` and ``state`` as in `step`.
        """
        r, size = problem.residual(z, image)
        taken = active & (size <= (1.0 - 1e-4 * state.length * (1.0 - state.forcing)) * state.size) & torch.isfinite(size)
        # Forcing terms by how well the last step did.
        known = torch.isfinite(state.size)
        ratio = (size / torch.where(known, state.size, 1.0)).square()
        forcing = torch.maximum(0.9 * ratio, torch.where(0.9 * state.forcing.square() > 0.1, 0.9 * state.forcing.square(), 0.0))
        forcing = torch.where(taken & known, forcing.clamp(1e-6, 0.9), state.forcing)
        # Shortened steps by a parabola through the squares of the residuals.
        slope = -2.0 * state.size.square() * (1.0 - state.forcing)
        rise = size.square() - state.size.square() - state.length * slope
        shorter = (-0.5 * slope * state.length / rise).nan_to_num(0.0, 0.0, 0.0).clamp(0.1, 0.5) * state.length
        length = torch.where(taken, 1.0, shorter)
        plain = ~taken & ((length < SHORTEST) | ~known)
        failures = torch.where(taken, 0.0, state.failures + plain)
        base, residual = choose(taken, z, state.base), choose(taken, r, state.residual)
        direction = self._directions(problem, base, residual, state.direction, forcing, taken)
        direction = choose(plain, residual, direction)
        length = torch.where(plain, 0.5 ** (failures - 1.0).clamp_min(0.0), length)
        proposal = base + length[..., None, None] * direction
        lost = ~torch.isfinite(size) & (failures > TRIES)
        proposal = choose(lost & active, torch.full_like(z, torch.nan), proposal)
        following = NewtonState(
            base=base,
            residual=residual,
            direction=direction,
            # After a plain step, and where others step, any finite residual is a new beginning.
            size=torch.where(active & ~plain, torch.where(taken, size, state.size), torch.inf),
            length=length,
            forcing=torch.where(plain, 0.1, forcing),
            failures=failures,
        )
        return proposal, following

    def _directions(self, problem: FixedPoint, z: Tensor, r: Tensor, before: Tensor, forcing: Tensor, wanted: Tensor) -> Tensor:
        if not bool(wanted.any()):
            return before
        push = problem.linearized(z)
        found = gmres(
            lambda v: v - push(v),
            torch.where(wanted[..., None, None], r, 0.0),
            weights=problem.weights.unsqueeze(-1),
            dims=2,
            rtol=forcing,
            max_steps=self.products,
            restart=self.memory,
        )
        length, size = problem.norms(found.x, r)
        # A step that is this much longer was asked for by rounding.
        moves = (found.residual < 1.0) & (length <= size * torch.finfo(size.dtype).eps ** (-2 / 3))
        return choose(wanted, choose(moves, found.x, r), before)  # a plain step where the equation is singular
