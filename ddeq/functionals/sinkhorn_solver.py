r"""Solves for the potentials of entropic transport: Newton's method along a falling blur, and derivatives of solutions.

Let ``c`` be the masses that the plan of a potential gives to the atoms, and ``-J`` the derivative of the residual. Then
``diag(c) J`` is symmetric and positive semidefinite, :math:`\mathrm{diag}(c) - \tau^2\pi^\top\mathrm{diag}(r)^{-1}\pi` between
two measures, :math:`\mathrm{diag}(c) + \tau\pi` between a measure and itself, with the plan :math:`\pi` and its other marginal
``r`` (the catalogue, T3).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ddeq.functionals.entropic import EntropicTransport
from ddeq.iteration import (
    Equation,
    Implicit,
    InnerProblemWarning,
    InnerProduct,
    Iterate,
    LinearAnswer,
    LinearSolver,
    Method,
    Outcome,
    Sizes,
    Status,
    Step,
    Stop,
    conjugate_gradients,
    iterate,
)
from ddeq.measures import DiscreteMeasure, unchecked
from ddeq.messages import warn
from ddeq.reductions.settings import blocks_are_below

__all__ = ["potential_between", "potential_within"]

SHRINK = 0.6
"""By this factor the blur falls from level to level, from the diameter of the measures down to its own value."""
LEVEL = Stop(rtol=0.1, max_steps=20)
"""How well a level is solved before the next one."""
NEWTON_BELOW = 1.0
"""Newton's method takes over once potentials change by less than so many epsilon."""
DENSE_UP_TO = 2**21
"""Linear systems are solved as matrices of up to so many numbers for each sample, and by conjugate gradients beyond."""
KRYLOV_STEPS = 500


def potential_between(
    transport: EntropicTransport, mu: DiscreteMeasure, nu: DiscreteMeasure, stop: Stop
) -> tuple[Tensor, Tensor]:
    """The potential ``g`` at the atoms of ``nu``, ``(*batch, m)``, differentiable in both measures, and the status."""
    return _solved(_Between(transport, mu.points, mu.weights, nu.points, nu.weights), stop)


def potential_within(transport: EntropicTransport, mu: DiscreteMeasure, stop: Stop) -> tuple[Tensor, Tensor]:
    """The potential of a measure and itself at its atoms, ``(*batch, n)``, differentiable, and the status."""
    return _solved(_Within(transport, mu.points, mu.weights), stop)


def _solved(equation: PotentialEquation, stop: Stop) -> tuple[Tensor, Tensor]:
    found: list[Tensor] = []

    def run(of: Equation, stop: Stop, *, watch: bool = False) -> Outcome:
        outcome = equation.detached().annealed(stop)
        failed = outcome.status != Status.CONVERGED.value
        if bool(failed.any()):
            text = (
                "Sinkhorn: some solves did not reach the relative error that `stop` wants in the marginals. Take a larger blur, "
                "or a `stop` with more steps or a larger rtol"
            )
            warn(InnerProblemWarning(text, failed=failed, residual=outcome.residual, wanted=stop.rtol))
        found.append(outcome.status)
        # What it did not reach it has said already.
        return replace(outcome, status=torch.full_like(outcome.status, Status.CONVERGED.value))

    equation.adjoint_rtol = stop.rtol
    outcome = Implicit().solve(equation, run, stop)
    return outcome.value, found[0]


class PotentialEquation(Equation):
    r"""An equation of potentials at the atoms of a measure: the image under Sinkhorn's iteration minus the potential.

    Parameters
    ----------
    transport
        The entropic transport.
    at, other
        The measure at whose atoms the potential is sought, and the other one.
    tensors
        The points and weights of both.
    """

    name = "potentials"
    shardable = True

    relaxation: ClassVar[float] = 1.0
    """How much of the residual a step of Sinkhorn's iteration adds."""
    benefits_from_annealing: ClassVar[bool] = False
    """Whether solutions at larger blurs help."""

    def __init__(
        self, transport: EntropicTransport, at: DiscreteMeasure, other: DiscreteMeasure, tensors: tuple[Tensor, ...]
    ) -> None:
        self.transport, self.at, self.other, self.tensors = transport, at, other, tensors
        self.inner = InnerProduct(at.weights.detach(), dims=1)
        self.singular = False
        """Whether a constant may be added to a solution."""
        self.adjoint_rtol = 1e-12
        """Relative residual of the linear equations of derivatives, where they are not solved directly."""
        self.leeway: Tensor | float = 1.0
        """How many times the tolerance each sample may miss, for what rounding of large distances hides."""

    @abstractmethod
    def symmetric(self, z: Tensor, masses: Tensor) -> Tensor:
        """``diag(c) J`` as a matrix ``(*batch, m, m)``, for minus the derivative of the residual as ``J``."""

    @abstractmethod
    def with_transport(self, transport: EntropicTransport) -> PotentialEquation:
        """The same measures at another blur."""

    @abstractmethod
    def detached(self) -> PotentialEquation:
        """The same equation without derivatives."""

    def normalised(self, z: Tensor) -> Tensor:
        """A solution of which there is one only, where a constant may be added."""
        return z

    def sizes(self, z: Tensor, residual: Tensor, previous: Iterate | None) -> Sizes:
        error = self.inner.norm(residual / self.transport.epsilon) / self.at.mass().sqrt()
        return Sizes(error, self.leeway * torch.ones_like(error))

    def masses(self, z: Tensor, residual: Tensor) -> Tensor:
        """What the plan of ``z`` gives to the atoms, by the residual there."""
        exponents = (z - (z + residual) / self.transport.tau) / self.transport.epsilon
        masses: Tensor = self.at.weights * torch.where(self.at.support(), exponents, 0.0).exp()
        return masses

    def linear_solver(self, z: Tensor, status: Tensor) -> LinearSolver:
        return self.self_adjoint_solver(z, self.masses(z, torch.zeros_like(z)), self.adjoint_rtol)

    def self_adjoint_solver(self, z: Tensor, masses: Tensor, rtol: float | Tensor) -> _SelfAdjointSolver:
        """The solver of linear equations with the derivative at ``z``."""
        m, n = self.at.n, self.other.n
        numbers = m * (n + m)
        every = self.at.weights[..., 0].numel() * numbers
        dense = numbers <= DENSE_UP_TO and not blocks_are_below(every) and not self.inner.is_sharded
        with torch.no_grad():
            return _SelfAdjointSolver(masses, self.symmetric(z, masses) if dense else None, self.singular, rtol)

    @torch.no_grad()
    def annealed(self, stop: Stop) -> Outcome:
        """From a blur as large as the measures down to its own, each level from the solution of the one before."""
        z, diameter, blur = torch.zeros_like(self.at.weights), self._diameter(), self.transport.blur
        if self.benefits_from_annealing:
            # Each sample begins at the level of its own diameter, whatever else is in the batch.
            levels = ((diameter / blur).log() / -math.log(SHRINK)).nan_to_num(posinf=0.0, neginf=0.0).ceil()
            for level in range(int(levels.max()) if levels.numel() else 0, 0, -1):
                larger = self.with_transport(replace(self.transport, blur=blur / SHRINK**level))
                begun = self.inner.per_sample((levels >= level).unsqueeze(-1))
                z = torch.where(begun, larger._by_newton(z, LEVEL).value, z)
        eps = torch.finfo(z.dtype).eps
        stop = replace(stop, rtol=max(stop.rtol, eps), atol=0.0)
        leeway = (32 * eps * diameter.square() / self.transport.epsilon / stop.rtol).clamp_min(1.0)
        self.leeway = self.inner.per_sample(leeway)
        outcome = self._by_newton(z, stop)
        z = outcome.value
        # The potential at an atom of mass zero is what the others make of it.
        z = torch.where(self.at.support(), z, z + self.residual(z))
        return replace(outcome, value=self.normalised(z), residual=outcome.absolute)

    def _diameter(self) -> Tensor:
        """Diagonal of the least box around the atoms that carry mass, ``(*batch,)``, the same on all ranks."""
        highest, lowest = [], []
        for mu in (self.at, self.other):
            dead = ~mu.support().unsqueeze(-1)
            highest.append(self.inner.everywhere(mu.points.masked_fill(dead, -torch.inf).amax(-2)))
            lowest.append(self.inner.everywhere(mu.points.masked_fill(dead, torch.inf).amin(-2)))
        diameter: Tensor = torch.linalg.vector_norm(torch.maximum(*highest) - torch.minimum(*lowest), dim=-1)
        return diameter

    def _by_newton(self, z: Tensor, stop: Stop) -> Outcome:
        return iterate(self, replace(stop, atol=0.0), z=z, method=_Newton(), patient=True)


class _Between(PotentialEquation):
    benefits_from_annealing = True

    def __init__(self, transport: EntropicTransport, x: Tensor, w: Tensor, y: Tensor, v: Tensor) -> None:
        super().__init__(transport, unchecked(y, v), unchecked(x, w), (x, w, y, v))
        self.singular = transport.reach is None

    def residual(self, z: Tensor, *tensors: Tensor) -> Tensor:
        x, w, y, v = tensors or self.tensors
        f = self.transport.transform(z, unchecked(y, v), x)
        return self.transport.transform(f, unchecked(x, w), y) - z

    def symmetric(self, z: Tensor, masses: Tensor) -> Tensor:
        f = self.transport.transform(z, self.at, self.other.points)
        plan = self.transport.plan(f, self.other, z, self.at)
        rows = plan.sum(-1, keepdim=True)
        scaled = torch.where(rows > 0, plan / torch.where(rows > 0, rows, 1.0), 0.0)
        return torch.diag_embed(masses) - self.transport.tau**2 * plan.mT @ scaled

    def with_transport(self, transport: EntropicTransport) -> _Between:
        return _Between(transport, *self.tensors)

    def detached(self) -> _Between:
        return _Between(self.transport, *(t.detach() for t in self.tensors))

    def normalised(self, z: Tensor) -> Tensor:
        if not self.singular:
            return z
        f = self.transport.transform(z, self.at, self.other.points)
        means = [(m.weights * p).sum(-1) / m.mass() for m, p in ((self.other, f), (self.at, z))]
        return z + (means[0] - means[1]).unsqueeze(-1) / 2


class _Within(PotentialEquation):
    relaxation = 0.5  # the image has the derivative -P with 0 <= P <= 1: a whole step may alternate

    def __init__(self, transport: EntropicTransport, x: Tensor, w: Tensor) -> None:
        mu = unchecked(x, w)
        super().__init__(transport, mu, mu, (x, w))

    def residual(self, z: Tensor, *tensors: Tensor) -> Tensor:
        x, w = tensors or self.tensors
        return self.transport.transform(z, unchecked(x, w), x) - z

    def symmetric(self, z: Tensor, masses: Tensor) -> Tensor:
        return torch.diag_embed(masses) + self.transport.tau * self.transport.plan(z, self.at, z, self.at)

    def with_transport(self, transport: EntropicTransport) -> _Within:
        return _Within(transport, *self.tensors)

    def detached(self) -> _Within:
        return _Within(self.transport, *(t.detach() for t in self.tensors))


class _State(NamedTuple):
    before: Tensor
    """The error at the last iterate, ``(*batch,)``."""
    safe: Tensor
    """Where Sinkhorn's iteration would have gone from there."""


@dataclass(frozen=True)
class _Newton(Method[PotentialEquation]):
    """Sinkhorn's iteration until it is near, then damped Newton steps."""

    def init(self, equation: PotentialEquation, at: Iterate) -> _State:
        return _State(torch.full_like(at.norm, torch.inf), at.z)

    def step(self, equation: PotentialEquation, at: Iterate, state: _State) -> Step:
        z, residual, error = at.z, at.residual, at.norm
        fallen, image = error <= state.before, z + equation.relaxation * residual
        near = error <= NEWTON_BELOW
        following = torch.where((fallen | near).unsqueeze(-1), image, state.safe)
        evaluations = 0
        if bool(near.any()):
            masses, linear = equation.masses(z, residual), equation.linearize(z)
            # J a = residual is, by symmetry, J^T (c a) = c residual: what the adjoint's solver solves.
            solver = equation.self_adjoint_solver(z, masses, error.clamp(1e-4, 0.1))
            cotangent = solver.solve(linear.transposed, masses * residual, True).x
            evaluations = linear.evaluations
            change = torch.where(masses > 0, cotangent / torch.where(masses > 0, masses, 1.0), 0.0)
            # The dual objective is generalised self-concordant with the constant 1/epsilon: such a step is safe.
            length = (change.amax(-1, keepdim=True) - change.amin(-1, keepdim=True)) / equation.transport.epsilon
            damping = torch.where(length > 0, torch.log1p(length) / torch.where(length > 0, length, 1.0), 1.0)
            newton = near.unsqueeze(-1) & (masses > 0) & torch.isfinite(change)
            following = torch.where(newton, z + damping * change, following)
        return Step(following, _State(error, image), evaluations=evaluations)


class _SelfAdjointSolver(LinearSolver):
    """Solves ``A x + b = 0`` for the derivative ``-J`` of an equation of potentials, or, ``dual``, its transpose.

    By ``matrix``, which is ``diag(masses) J``, where there is one; else by conjugate gradients, in the L2 of the masses or in
    its dual. A ``singular`` derivative does not see constants.
    """

    def __init__(self, masses: Tensor, matrix: Tensor | None, singular: bool, rtol: float | Tensor) -> None:
        self._masses, self._matrix, self._singular, self._rtol = masses, matrix, singular, rtol

    def solve(self, operator: Callable[[Tensor], Tensor], b: Tensor, dual: bool) -> LinearAnswer:
        masses, alive = self._masses, self._masses > 0
        right = torch.where(alive, b, 0.0)  # in the dual a cotangent, else a potential
        if self._singular:
            constant, total = (masses, right) if dual else (alive.to(b), masses * right)
            right = right - constant * (total.sum(-1, keepdim=True) / masses.sum(-1, keepdim=True))
        if self._matrix is not None:
            x = self._direct(right if dual else masses * right)
            return LinearAnswer(masses * x if dual else torch.where(alive, x, b + operator(x)))
        inverse = torch.where(alive, 1.0 / torch.where(alive, masses, 1.0), 0.0)

        def on_live(x: Tensor) -> Tensor:
            return torch.where(alive, -operator(x), 0.0)

        weights = inverse if dual else masses
        x = conjugate_gradients(on_live, right, weights=weights, rtol=self._rtol, max_steps=KRYLOV_STEPS).x
        # At atoms of mass zero the derivative is the identity plus what the others contribute.
        return LinearAnswer(x if dual else torch.where(alive, x, b + operator(x)))

    def _direct(self, right: Tensor) -> Tensor:
        """``diag(masses) J a = right``, with ``a`` zero at atoms of mass zero, and of mean zero where constants are not seen."""
        assert self._matrix is not None
        masses = self._masses
        matrix = self._matrix + torch.diag_embed((masses == 0).to(right))
        if self._singular:
            total = masses.sum(-1, keepdim=True).unsqueeze(-1)
            matrix = matrix + masses.unsqueeze(-1) * masses.unsqueeze(-2) / total
        scale = torch.diagonal(matrix, dim1=-2, dim2=-1).rsqrt()
        scaled = scale.unsqueeze(-1) * matrix * scale.unsqueeze(-2)
        solution: Tensor = scale * torch.linalg.solve(scaled, scale * right)
        return solution
