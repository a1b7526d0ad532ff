"""Newton's method whose linear equations are solved by GMRES on products with the Jacobian."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ddeq.integers import set_whole
from ddeq.iteration.equation import Equation, Linear
from ddeq.iteration.gmres import gmres
from ddeq.iteration.inverse import Inverse
from ddeq.iteration.iterate import Iterate, Step
from ddeq.iteration.method import Solver
from ddeq.iteration.samples import choose
from ddeq.iteration.status import Status

__all__ = ["NewtonKrylov"]

SHORTEST = 1e-3
"""A step that had to be shortened more than that is given up for a plain one."""
TRIES = 10
"""After so many plain steps that led to nothing finite a sample has diverged."""
FAITHFUL = 0.03
"""Share of the square of the residual down to which a step must lead for the next one to build on the products before it."""


class NewtonState(NamedTuple):
    """Where the last direction started, and how far it has been followed."""

    base: Tensor
    residual: Tensor
    direction: Tensor
    size: Tensor  # norm of the residual at the base, infinite before the first one
    length: Tensor  # share of the direction that was taken
    forcing: Tensor  # relative residual to which the linear equation was solved
    failures: Tensor  # plain steps in a row that led to no smaller residual
    forward_mode: bool  # whether no operation is known to lack forward-mode derivatives
    inverse: Inverse
    products: Tensor  # evaluations that the last direction took, besides those of steps; (*batch,)


@dataclass(frozen=True)
class NewtonKrylov(Solver):
    r"""Inexact Newton steps for :math:`\Phi(z) - z = 0` in :math:`L^2(\mu)`, with backtracking on the residual.

    .. math:: z_{k+1} = z_k + t_k d_k, \qquad |(I - J_k)\, d_k - r_k| \le \eta_k |r_k|, \qquad
              J_k = \partial \Phi(z_k), \quad r_k = \Phi(z_k) - z_k ,

    where GMRES in :math:`L^2(\mu)` finds :math:`d_k` from products with :math:`J_k`, by forward mode or, where an operation
    has none, by two reverse ones. What these have told of the inverse is kept where a step has at least halved the residual,
    and preconditions the next equation. :math:`\eta_k = 0.9\,(|r_k|/|r_{k-1}|)^2` (Eisenstat and Walker), and :math:`t_k` is
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
        If an option is not a whole number of at least one.

    References
    ----------
    :cite:t:`knoll2004jacobian`; :cite:t:`eisenstat1996choosing`, the tolerance of the linear equations.
    """

    memory: int = 30
    products: int = 60

    recovers: ClassVar[bool] = True
    differentiable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        set_whole(self, 1, "memory", "products")

    def init(self, equation: Equation, at: Iterate) -> NewtonState:
        nothing, zero = torch.zeros_like(at.z), torch.zeros_like(at.norm)
        return NewtonState(
            at.z, nothing, nothing, zero + torch.inf, zero + 1.0, zero + 0.1, zero, True, Inverse.identity(at), zero
        )

    def step(self, equation: Equation, at: Iterate, state: NewtonState) -> Step:
        return self.step_of(equation, at, state, torch.ones_like(state.size, dtype=torch.bool))

    def step_of(self, equation: Equation, at: Iterate, state: NewtonState, active: Tensor, most: Tensor | None = None) -> Step:
        """The step of the samples that are ``active``, ``(*batch,)``; for the others no equations are solved.

        ``equation``, ``at`` and ``state`` as in `step`; ``most`` is how many evaluations it may take, ``(*batch,)``.
        """
        z, r, size = at.z, at.residual, at.norm
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
        # Where a step was not as good as the equations promised, the derivative has changed.
        state = state._replace(inverse=state.inverse.where(known & (ratio <= FAITHFUL)))
        direction, inverse, products, linear = self._directions(equation, base, residual, state, forcing, taken, most)
        direction = choose(plain, residual, direction)
        length = torch.where(plain, 0.5 ** (failures - 1.0).clamp_min(0.0), length)
        diverged = active & ~torch.isfinite(size) & (failures > TRIES)
        following = NewtonState(
            base=base,
            residual=residual,
            direction=direction,
            # After a plain step, and where others step, any finite residual is a new beginning.
            size=torch.where(active & ~plain, torch.where(taken, size, state.size), torch.inf),
            length=length,
            forcing=torch.where(plain, 0.1, forcing),
            failures=failures,
            forward_mode=state.forward_mode and (linear is None or linear.forward_mode),
            inverse=inverse,
            products=products,
        )
        return Step(
            base + length.reshape(*length.shape, *(1,) * (z.ndim - length.ndim)) * direction,
            following,
            evaluations=0 if linear is None else linear.evaluations,
            status=torch.where(diverged, Status.DIVERGED.value, -1),
        )

    def _directions(
        self,
        equation: Equation,
        z: Tensor,
        r: Tensor,
        state: NewtonState,
        forcing: Tensor,
        wanted: Tensor,
        most: Tensor | None,
    ) -> tuple[Tensor, Inverse, Tensor, Linear | None]:
        """Newton's directions of the samples ``wanted``, what is known of the inverse then, and the evaluations in all."""
        if not bool(wanted.any()):
            return state.direction, state.inverse, torch.zeros_like(forcing), None
        inner, linear = equation.inner, equation.linearize(z, forward_mode=state.forward_mode)
        inverse, metric = state.inverse, inner.field_weights.expand(z.shape).flatten(-inner.dims)
        found = gmres(
            lambda u: inner.bounded(-linear.product(inverse.of(u, metric)), u),
            choose(wanted, r, torch.zeros_like(r)),
            weights=inner.field_weights,
            dims=inner.dims,
            rtol=forcing,
            max_steps=self.products,
            restart=self.memory,
            most=None if most is None else most - 1,  # the first product may need one more evaluation
        )
        direction = inverse.of(found.x, metric)
        length, size = inner.norms(direction, r)
        # A step that is this much longer is an effect of rounding.
        moves = (found.residual < 1.0) & (length <= size * torch.finfo(size.dtype).eps ** (-2 / 3))
        # A plain step where the equation is singular.
        direction = choose(wanted, choose(moves, direction, r), state.direction)
        # By reverse mode there is an evaluation besides the products.
        products = torch.where(wanted, found.steps + (not linear.forward_mode), 0).to(forcing)
        return direction, inverse.updated(found.inputs, found.outputs, wanted, metric, self.memory), products, linear
