"""Newton's method for divergences that a kernel regularises, and what their targets alone determine; no derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ddeq.functionals.gram import Gram, RegularizedSystem
from ddeq.iteration import (
    Equation,
    InnerProblemWarning,
    InnerProduct,
    Iterate,
    Method,
    Sizes,
    Status,
    Step,
    Stop,
    iterate,
)
from ddeq.memory import Cached
from ddeq.messages import warn

__all__ = ["STOP", "Penalty", "RegularizedTarget", "solve_dual"]

MOST_STEPS = 200
"""Newton steps. A handful is usual; more than a hundred occur where the regularisation is 1e-6 and the kernel wide."""
STOP = Stop(max_steps=MOST_STEPS, atol=0.0)
MOST_HALVINGS = 60
"""How often a Newton step is halved at most."""
FALLS = 0.5
"""Share of the residual that a full step, and a further one with the same factorisation, may leave."""
MOST_CORRECTIONS = 10
"""Further steps with the same factorisation at most."""


@runtime_checkable
class Penalty(Protocol):
    """What an equation asks of a divergence, as functions of the values ``u`` of the dual function, ``(*batch, m)``."""

    linear: bool
    """Whether the density is affine, so that the slope is the same for all ``u``."""

    def density(self, u: Tensor) -> Tensor:
        """The density that belongs to ``u``."""
        ...

    def slope(self, u: Tensor) -> Tensor:
        """Its derivative, not negative."""
        ...

    def penalty(self, u: Tensor) -> Tensor:
        """What the density costs."""
        ...


@dataclass(frozen=True)
class RegularizedTarget(Cached):
    """What the equations take from the target, the kernel and, where they are linear, the regularisation.

    Each is for all measures of a batch or has one entry for each.
    """

    gram: Gram
    """The Gram matrix of the atoms of the target."""
    embedded: Tensor
    """Integral of the kernel against the target with the density at zero, ``(*batch, m)`` or ``(m,)``."""
    system: RegularizedSystem | None
    """The factorised system, where the equations are linear."""

    @classmethod
    @torch.no_grad()
    def of(cls, divergence: Penalty, gram: Gram, weights: Tensor, regularization: Tensor) -> RegularizedTarget:
        """Of a target with these masses ``(*batch, m)``."""
        zero = torch.zeros_like(weights)
        system = RegularizedSystem(gram, weights * divergence.slope(zero), regularization) if divergence.linear else None
        return cls(gram, gram.product(weights * divergence.density(zero)), system)

    def rows(self, keep: Tensor) -> RegularizedTarget:
        embedded = self.embedded[keep] if self.embedded.ndim > 1 else self.embedded
        return RegularizedTarget(self.gram.rows(keep), embedded, None if self.system is None else self.system.rows(keep))


def solve_dual(
    divergence: Penalty,
    target: RegularizedTarget,
    weights: Tensor,
    right: Tensor,
    regularization: Tensor,
    starts: Sequence[Tensor] = (),
) -> Tensor:
    """The solution ``u`` of ``right - regularization * u - K (weights * density(u)) = 0``, under ``torch.no_grad``.

    Parameters
    ----------
    divergence, target
        The density, and the Gram matrix ``K``.
    weights, right, regularization
        ``(*batch, m)``, ``(*batch, m)`` and ``(*batch, 1)``.
    starts
        Guesses of the solution; each sample takes the best of them and zero.

    Warns
    -----
    InnerProblemWarning
        If some equations were not solved to rounding.
    """
    if target.system is not None:
        return target.system.solve(right - target.embedded)
    equation = _DensityEquation(divergence, target, weights, right, regularization)
    eps = torch.finfo(right.dtype).eps
    stop = replace(STOP, rtol=eps * (8 + right.shape[-1] ** 0.5))
    newton = _Newton(stop.rtol)
    z = equation.best(starts)
    if starts:  # from there one step is enough, mostly
        z, solved = newton.once(equation, z)
        if solved:
            return z
    # While the density is far from its own the residual may rise for long: patience.
    outcome = iterate(equation, stop, z=z, method=newton, patient=True)
    failed = (outcome.status != Status.CONVERGED.value) & (outcome.residual > 1e4 * eps)
    if bool(failed.any()):
        text = (
            f"{type(divergence).__name__}: some problems were not solved within {MOST_STEPS} Newton steps; the best "
            "iterate is used. Take a larger regularization, or a narrower kernel"
        )
        warn(InnerProblemWarning(text, failed=failed, residual=outcome.residual, wanted=stop.rtol))
    return outcome.value


class _DensityEquation(Equation):
    """The equation without derivatives, its kernel as a Gram matrix."""

    def __init__(
        self, divergence: Penalty, target: RegularizedTarget, weights: Tensor, right: Tensor, regularization: Tensor
    ) -> None:
        self.divergence, self.target, self.weights, self.right = divergence, target, weights, right
        self.gram, self.regularization = target.gram, regularization
        self.inner = InnerProduct(weights, dims=1)
        self.removable = right.ndim > 1 and self.gram.matrix is not None

    def best(self, guesses: Sequence[Tensor]) -> Tensor:
        """The guess of least residual, or zero."""
        found = torch.zeros_like(self.right)
        if not guesses:
            return found
        least = _largest(self.right - self.target.embedded)
        for guess in guesses:
            left = _largest(self.residual(guess))
            found = torch.where((left <= least).unsqueeze(-1), guess, found)
            least = torch.fmin(left, least)
        return found

    def masses(self, z: Tensor) -> Tensor:
        """What the density of ``z`` makes of the weights."""
        return self.weights * self.divergence.density(z)

    def residual(self, z: Tensor, *tensors: Tensor) -> Tensor:
        return self.right - self.regularization * z - self.gram.product(self.masses(z))

    def uncertain(self, z: Tensor) -> Tensor:
        """Masses, the rounding of the value in the density included."""
        return self.masses(z).abs() + (self.weights * self.divergence.slope(z) * z).abs()

    def sizes(self, z: Tensor, residual: Tensor, previous: Iterate | None) -> Sizes:
        # Relative to what is added up in the residual.
        size = ((self.regularization * z).abs() + self.gram.product(self.uncertain(z)) + self.right.abs()).amax(-1)
        return Sizes(_largest(residual), torch.where(size > 0, size, 1.0))

    def iterate(self, z: Tensor) -> Iterate:
        """The iterate ``z``, its residual and sizes."""
        residual = self.residual(z)
        norm, size, *_ = self.sizes(z, residual, None)
        assert size is not None
        return Iterate(z, residual, norm, size, 0)

    def objective(self, z: Tensor) -> Tensor:
        """What the density of ``z`` costs, but for a constant."""
        masses = self.masses(z)
        distance = masses * (self.gram.product(masses) / 2 - self.right) / self.regularization
        return (distance + self.weights * self.divergence.penalty(z)).sum(-1)

    def rows(self, keep: Tensor) -> _DensityEquation:
        tensors = (t[keep] for t in (self.weights, self.right, self.regularization))
        return _DensityEquation(self.divergence, self.target.rows(keep), *tensors)


@dataclass(frozen=True)
class _Newton(Method[_DensityEquation]):
    """Newton's method. Where a full step does not make the residual fall, it is damped so that the dual objective, a convex
    function of the density, does; where it does, further steps with the same factorisation follow while they help."""

    rtol: float
    """Relative residual that is wanted."""

    def init(self, equation: _DensityEquation, at: Iterate) -> None:
        return None

    def step(self, equation: _DensityEquation, at: Iterate, state: None) -> Step:
        system = RegularizedSystem(equation.gram, equation.weights * equation.divergence.slope(at.z), equation.regularization)
        z = at.z + system.solve_once(at.residual)
        residual = equation.residual(z)
        norm = _largest(residual)
        falling = norm <= FALLS * at.norm
        if not bool(falling.all()):
            z = torch.where(falling.unsqueeze(-1), z, self._damped(equation, at, system))
        for _ in range(MOST_CORRECTIONS):
            falling = falling & (norm > 0.5 * self.rtol * at.size)
            if not bool(falling.any()):
                break
            further = z + system.solve_once(residual)
            residual = equation.residual(further)
            before, norm = norm, _largest(residual)
            z = torch.where((falling & (norm < before)).unsqueeze(-1), further, z)
            falling = falling & (norm <= FALLS * before)
        return Step(z, None)

    def once(self, equation: _DensityEquation, z: Tensor) -> tuple[Tensor, bool]:
        """At most one step from ``z``, by the samples that need and like it, and whether all are then solved."""
        at = equation.iterate(z)
        solved = at.norm <= self.rtol * at.size
        if bool(solved.all()):
            return z, True
        moved = self.step(equation, at, None).z
        there = equation.iterate(moved)
        better = ~solved & (there.norm < at.norm)
        solved = solved | (better & (there.norm <= self.rtol * there.size))
        return torch.where(better.unsqueeze(-1), moved, z), bool(solved.all())

    @staticmethod
    def _damped(equation: _DensityEquation, at: Iterate, system: RegularizedSystem) -> Tensor:
        z, regularization = at.z, equation.regularization
        direction = system.solve(at.residual)
        objective = equation.objective(z)
        noise = at.size * equation.uncertain(z).sum(-1) / regularization.squeeze(-1)
        slope = -(system.density * at.residual * direction).sum(-1) / regularization.squeeze(-1)
        slack = 10 * torch.finfo(z.dtype).eps * (noise + objective.abs())
        length = torch.ones_like(objective)
        proposal = z + direction
        for _ in range(MOST_HALVINGS):
            enough = equation.objective(proposal) <= objective + 1e-4 * length * slope + slack
            if bool(enough.all()):
                break
            length = torch.where(enough, length, 0.5 * length)
            proposal = z + length.unsqueeze(-1) * direction
        return proposal


def _largest(residual: Tensor) -> Tensor:
    return residual.abs().amax(-1)
