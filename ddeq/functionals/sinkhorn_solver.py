r"""Solves for the potentials of entropic transport: Newton's method along a falling blur, and derivatives of solutions.

Let ``c`` be the masses that the plan of a potential gives to the atoms, and ``J`` the derivative of the equation. Then
``diag(c) J`` is symmetric and positive semidefinite, :math:`\mathrm{diag}(c) - \tau^2\pi^\top\mathrm{diag}(r)^{-1}\pi` between
two measures, :math:`\mathrm{diag}(c) + \tau\pi` between a measure and itself, with the plan :math:`\pi` and its other marginal
``r`` (T3).
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ddeq.functionals.entropic import EntropicTransport
from ddeq.iteration import ConvergenceWarning, Evaluation, Outcome, Status, Stop, implicit_function, iterate
from ddeq.iteration.krylov import conjugate_gradients
from ddeq.measures import DiscreteMeasure, unchecked
from ddeq.ranks import beside, is_sharded, whole
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
    return _solved(lambda *t: _Between(transport, *t), (mu.points, mu.weights, nu.points, nu.weights), stop)


def potential_within(transport: EntropicTransport, mu: DiscreteMeasure, stop: Stop) -> tuple[Tensor, Tensor]:
    """The potential of a measure and itself at its atoms, ``(*batch, n)``, differentiable, and the status."""
    return _solved(lambda *t: _Within(transport, *t), (mu.points, mu.weights), stop)


def _solved(system: Callable[..., _System], tensors: tuple[Tensor, ...], stop: Stop) -> tuple[Tensor, Tensor]:
    here = system(*(t.detach() for t in tensors))
    outcome = here.solve(stop)
    failed = outcome.status != Status.CONVERGED
    if bool(failed.any()):
        warnings.warn(
            f"Sinkhorn: {int(failed.sum())} of {failed.numel()} solves did not reach a relative error of {stop.rtol:.0e} in the "
            f"marginals within {stop.max_steps} steps; the largest is {float(outcome.residual.max()):.1e}. Take a larger "
            "blur, or a `stop` with more steps or a larger rtol",
            ConvergenceWarning,
            stacklevel=6,
        )
    z = outcome.value
    solve = here.linear_solver(z, here.masses(z, torch.zeros_like(z)), stop.rtol)
    return implicit_function(lambda z, *t: system(*t).equation(z), solve, z, *tensors), outcome.status


class _System(ABC):
    """An equation of potentials at the atoms of a measure."""

    transport: EntropicTransport
    at: DiscreteMeasure
    other: DiscreteMeasure
    step: float
    """How much of the defect a step of Sinkhorn's iteration subtracts."""
    singular: bool
    """Whether a constant may be added to a solution."""
    annealed: bool
    """Whether solutions at larger blurs are a help."""

    @abstractmethod
    def equation(self, z: Tensor) -> Tensor:
        """The potential minus its image."""

    @abstractmethod
    def symmetric(self, z: Tensor, masses: Tensor) -> Tensor:
        """``diag(c) J`` as a matrix ``(*batch, m, m)``."""

    @abstractmethod
    def with_transport(self, transport: EntropicTransport) -> _System:
        """The same measures at another blur."""

    def fixed(self, z: Tensor) -> Tensor:
        """A solution of which there is one only, where a constant may be added."""
        return z

    def masses(self, z: Tensor, defect: Tensor) -> Tensor:
        """What the plan of ``z`` gives to the atoms, by the defect of the equation."""
        exponents = (z - (z - defect) / self.transport.tau) / self.transport.epsilon
        masses: Tensor = self.at.weights * torch.where(self.at.support(), exponents, 0.0).exp()
        return masses

    def linear_solver(self, z: Tensor, masses: Tensor, rtol: float | Tensor) -> _SelfAdjointSolve:
        """The solver of linear equations with the derivative at ``z``."""
        m, n = self.at.n, self.other.n
        numbers = m * (n + m)
        every = self.at.weights[..., 0].numel() * numbers
        dense = numbers <= DENSE_UP_TO and not blocks_are_below(every) and not is_sharded(z)
        return _SelfAdjointSolve(masses, self.symmetric(z, masses) if dense else None, self.singular, rtol)

    def solve(self, stop: Stop) -> Outcome:
        """From a blur as large as the measures down to its own, each level from the solution of the one before."""
        z, diameter, blur = torch.zeros_like(self.at.weights), self._diameter(), self.transport.blur
        if self.annealed:
            # Each sample begins at the level of its own diameter, whatever else is in the batch.
            levels = ((diameter / blur).log() / -math.log(SHRINK)).nan_to_num(posinf=0.0, neginf=0.0).ceil()
            for level in range(int(levels.max()) if levels.numel() else 0, 0, -1):
                larger = self.with_transport(replace(self.transport, blur=blur / SHRINK**level))
                begun = beside((levels >= level).unsqueeze(-1), z)
                z = torch.where(begun, larger._newton(z, LEVEL).value, z)
        eps = torch.finfo(z.dtype).eps
        stop = replace(stop, rtol=max(stop.rtol, eps))
        leeway = beside((32 * eps * diameter.square() / self.transport.epsilon / stop.rtol).clamp_min(1.0), z)
        outcome = self._newton(z, stop, leeway)
        outcome = replace(outcome, residual=outcome.residual * leeway)
        z = outcome.value
        # The potential at an atom of mass zero is what the others make of it.
        z = torch.where(self.at.support(), z, z - self.equation(z))
        return replace(outcome, value=self.fixed(z))

    def _diameter(self) -> Tensor:
        """Diagonal of the least box around the atoms that carry mass, ``(*batch,)``, the same on all ranks."""
        highest, lowest = [], []
        for mu in (self.at, self.other):
            dead = ~mu.support().unsqueeze(-1)
            highest.append(whole(mu.points.masked_fill(dead, -torch.inf).amax(-2)))
            lowest.append(whole(mu.points.masked_fill(dead, torch.inf).amin(-2)))
        diameter: Tensor = torch.linalg.vector_norm(torch.maximum(*highest) - torch.minimum(*lowest), dim=-1)
        return diameter

    def _newton(self, z: Tensor, stop: Stop, leeway: Tensor | float = 1.0) -> Outcome:
        batch = self.at.batch_shape
        memory = (z.new_full(batch, torch.inf), z)
        return iterate(_Newton(self, leeway), z, memory, stop=stop, batch_shape=batch, patient=True)


class _Between(_System):
    step = 1.0
    annealed = True

    def __init__(self, transport: EntropicTransport, x: Tensor, w: Tensor, y: Tensor, v: Tensor) -> None:
        self.transport, self.other, self.at = transport, unchecked(x, w), unchecked(y, v)
        self.singular = transport.reach is None

    def equation(self, z: Tensor) -> Tensor:
        transport = self.transport
        f = transport.transform(z, self.at, self.other.points)
        return z - transport.transform(f, self.other, self.at.points)

    def symmetric(self, z: Tensor, masses: Tensor) -> Tensor:
        f = self.transport.transform(z, self.at, self.other.points)
        plan = self.transport.plan(f, self.other, z, self.at)
        rows = plan.sum(-1, keepdim=True)
        scaled = torch.where(rows > 0, plan / torch.where(rows > 0, rows, 1.0), 0.0)
        return torch.diag_embed(masses) - self.transport.tau**2 * plan.mT @ scaled

    def with_transport(self, transport: EntropicTransport) -> _Between:
        return _Between(transport, self.other.points, self.other.weights, self.at.points, self.at.weights)

    def fixed(self, z: Tensor) -> Tensor:
        if not self.singular:
            return z
        f = self.transport.transform(z, self.at, self.other.points)
        means = [(m.weights * p).sum(-1) / m.mass() for m, p in ((self.other, f), (self.at, z))]
        return z + (means[0] - means[1]).unsqueeze(-1) / 2


class _Within(_System):
    step = 0.5  # the image has the derivative -P with 0 <= P <= 1: a whole step may alternate
    singular = annealed = False

    def __init__(self, transport: EntropicTransport, x: Tensor, w: Tensor) -> None:
        self.transport = transport
        self.at = self.other = unchecked(x, w)

    def equation(self, z: Tensor) -> Tensor:
        return z - self.transport.transform(z, self.at, self.at.points)

    def symmetric(self, z: Tensor, masses: Tensor) -> Tensor:
        return torch.diag_embed(masses) + self.transport.tau * self.transport.plan(z, self.at, z, self.at)

    def with_transport(self, transport: EntropicTransport) -> _Within:
        return _Within(transport, self.at.points, self.at.weights)


@dataclass(frozen=True)
class _Newton:
    """Sinkhorn's iteration until it is near, then damped Newton steps."""

    system: _System
    leeway: Tensor | float = 1.0
    """How many times the tolerance each sample may miss, for what rounding of large distances hides."""

    def evaluate(self, value: Tensor, memory: Any) -> tuple[Evaluation, Any]:
        system = self.system
        with torch.enable_grad():
            z = value.detach().requires_grad_()
            defect = system.equation(z)
        size = defect.detach() / system.transport.epsilon
        residual = ((system.at.weights * size.square()).sum(-1) / system.at.mass()).sqrt()
        nothing = 0.0 * residual
        absolute = residual * system.transport.epsilon
        return Evaluation(residual / self.leeway, absolute, nothing, nothing, (residual, z, defect)), memory

    def advance(self, value: Tensor, memory: Any, found: Any, step: int) -> tuple[Tensor, Any]:
        system, (residual, z, defect), (before, safe) = self.system, found, memory
        fallen, image = residual <= before, value - system.step * defect.detach()
        near = residual <= NEWTON_BELOW
        following = torch.where((fallen | near).unsqueeze(-1), image, safe)
        if bool(near.any()):
            masses = system.masses(value, defect.detach())

            def transposed(u: Tensor) -> Tensor:
                product: Tensor = torch.autograd.grad(defect, z, u, retain_graph=True)[0]
                return product

            # J a = -defect is, by symmetry, J^T (c a) = -c defect: what the adjoint's solver solves.
            solve = system.linear_solver(value, masses, residual.clamp(1e-4, 0.1))
            cotangent = solve(transposed, masses * defect.detach(), True)
            change = torch.where(masses > 0, cotangent / torch.where(masses > 0, masses, 1.0), 0.0)
            # The dual objective is generalised self-concordant with the constant 1/epsilon: such a step is safe.
            length = (change.amax(-1, keepdim=True) - change.amin(-1, keepdim=True)) / system.transport.epsilon
            damping = torch.where(length > 0, torch.log1p(length) / torch.where(length > 0, length, 1.0), 1.0)
            newton = near.unsqueeze(-1) & (masses > 0) & torch.isfinite(change)
            following = torch.where(newton, value + damping * change, following)
        return following, (residual, image)

    def select(self, keep: Tensor) -> _Newton:
        raise AssertionError("samples are frozen, not removed")


@dataclass(frozen=True)
class _SelfAdjointSolve:
    """Solves ``A(x) + b = 0`` for the derivative ``J`` of an equation of potentials, or, ``dual``, its transpose.

    By ``matrix``, which is ``diag(masses) J``, where there is one; else by conjugate gradients, in the L2 of the masses or in
    its dual. A ``singular`` derivative does not see constants.
    """

    masses: Tensor
    matrix: Tensor | None
    singular: bool
    rtol: float | Tensor

    def __call__(self, operator: Callable[[Tensor], Tensor], b: Tensor, dual: bool) -> Tensor:
        masses, alive = self.masses, self.masses > 0
        right = torch.where(alive, -b, 0.0)  # in the dual a cotangent, else a potential
        if self.singular:
            constant, total = (masses, right) if dual else (alive.to(b), masses * right)
            right = right - constant * (total.sum(-1, keepdim=True) / masses.sum(-1, keepdim=True))
        if self.matrix is not None:
            x = self._direct(right if dual else masses * right)
            if dual:
                cotangent: Tensor = masses * x
                return cotangent
            return torch.where(alive, x, -b - operator(x))
        inverse = torch.where(alive, 1.0 / torch.where(alive, masses, 1.0), 0.0)

        def on_live(x: Tensor) -> Tensor:
            return torch.where(alive, operator(x), 0.0)

        inner = inverse if dual else masses
        x = conjugate_gradients(on_live, right, weights=inner, rtol=self.rtol, max_steps=KRYLOV_STEPS).x
        # At atoms of mass zero the derivative is the identity plus what the others contribute.
        return x if dual else torch.where(alive, x, -b - operator(x))

    def _direct(self, right: Tensor) -> Tensor:
        """``diag(masses) J a = right``, with ``a`` zero at atoms of mass zero, and of mean zero where constants are not seen."""
        assert self.matrix is not None
        masses = self.masses
        matrix = self.matrix + torch.diag_embed((masses == 0).to(right))
        if self.singular:
            total = masses.sum(-1, keepdim=True).unsqueeze(-1)
            matrix = matrix + masses.unsqueeze(-1) * masses.unsqueeze(-2) / total
        scale = torch.diagonal(matrix, dim1=-2, dim2=-1).rsqrt()
        scaled = scale.unsqueeze(-1) * matrix * scale.unsqueeze(-2)
        solution: Tensor = scale * torch.linalg.solve(scaled, scale * right)
        return solution
