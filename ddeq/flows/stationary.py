"""Stationary measures as an equation, and the linear equations of their derivatives, judged (equilibria, T16)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ddeq.draws import Draws
from ddeq.flows.descent import FunctionalDescent
from ddeq.flows.on_space import InChart
from ddeq.flows.symmetries import Place, Symmetries, find_symmetries, generic_field
from ddeq.functionals.base import Functional, Smoothness
from ddeq.iteration import (
    ConvergenceWarning,
    Equation,
    LeastSquares,
    LinearAnswer,
    LinearSolver,
    Status,
    SymmetryWarning,
    UntrustedDerivativeWarning,
    minimal_residual,
)
from ddeq.measures import DiscreteMeasure
from ddeq.spaces.euclidean import Euclidean
from ddeq.spaces.space import Space

__all__ = ["Stationary"]

TRUST = 0.1
"""Relative residual that a solution may have where Newton's method would move the atoms; else they are not stationary."""
SHARP = 0.1
"""Relative difference between a small change of the gradient and what its derivative says, from which there is a kink."""
PUSHED = 1e-2
"""Share of what a tensor does to generic fields that it may do to those which the functional does not see."""
ROUNDS = 3
"""Solves of an equation, each of what the one before has left."""

Operator = Callable[[Tensor], Tensor]


class Stationary(Equation):
    r"""The atoms at which the Wasserstein gradient of a functional vanishes, whatever the geometry of the flow.

    At atoms of mass zero the residual is zero, and the derivative of their places, by convention.

    Parameters
    ----------
    functional
        The functional.
    mu0
        Where the atoms started; their weights and marks stay.
    space
        Where the atoms live. Once a solution is known (`prepared`), the equation is the one in coordinates around it.
    conserves_mean
        Whether the flow keeps the mean where it can.
    rtol
        Relative residual of the linear equations.
    """

    name = "flows"
    remedy = "take more steps, another stepper or a larger rtol in stop=Stop(...)"
    how_to_remove = "declare the functional `removable`, so that they take no part in backward"

    def __init__(
        self,
        functional: Functional,
        mu0: DiscreteMeasure,
        *,
        space: Space = Euclidean(),
        conserves_mean: bool,
        rtol: float,
    ) -> None:
        self.descent = FunctionalDescent(functional, mu0.with_points(mu0.points.detach()), space=space)
        self.tensors = self.descent.tensors
        self.inner = self.descent.inner
        self.removable = self.descent.removable
        self.conserves_mean, self.rtol = conserves_mean, rtol
        self._chart: InChart | None = None

    @property
    def start(self) -> Tensor:
        """Where the atoms started."""
        return self.descent.like.points

    @property
    def frozen(self) -> Tensor:
        """Atoms that do not count, because their mass is zero, ``(*batch, n, 1)``."""
        return (self.descent.like.weights.detach() <= 0).unsqueeze(-1)

    @cached_property
    def moving(self) -> Operator:
        """The projection of fields to those along which atoms can move."""
        return torch.positive if self._chart is None else self._chart.moving

    def residual(self, z: Tensor, *tensors: Tensor) -> Tensor:
        return torch.where(self.frozen, z.detach() - z, self.descent.residual(z, *tensors))

    def linear_solver(self, z: Tensor, status: Tensor) -> LinearSolver:
        return _StationarySolver(self, z, status)

    def prepared(self, z: Tensor, memory: Any, step: int, draw: Draws | None) -> tuple[Stationary, Any]:
        descent, memory = self.descent.prepared(z, memory, step, draw)
        descent, chart = descent.in_chart(z.detach())
        if descent is self.descent:
            return self, memory
        other = copy.copy(self)
        other.descent = descent
        other._chart = chart
        return other, memory

    def rows(self, keep: Tensor) -> Stationary:
        chosen = copy.copy(self)
        chosen.__dict__.pop("moving", None)
        chosen.descent = self.descent.rows(keep)
        chosen._chart = None if self._chart is None else self._chart.rows(keep, self.descent.like.batch_shape)
        chosen.tensors, chosen.inner = chosen.descent.tensors, chosen.descent.inner
        return chosen

    def unseen(self, shapes: str) -> str:
        return self.descent.unseen(shapes)


class _StationarySolver(LinearSolver):
    r"""Solves :math:`A x + b = 0` for minus the Hessian :math:`H` at a stationary measure, where that has an answer.

    Parameters
    ----------
    equation
        What was solved.
    points
        The atoms of the stationary measure.
    status
        How each flow ended; of those that did not converge nothing is asked.
    """

    def __init__(self, equation: Stationary, points: Tensor, status: Tensor) -> None:
        self._equation, self._points, self._status = equation, points, status
        # Of samples that diverged and could not be left out nothing is known.
        self._frozen = equation.frozen | (status == Status.DIVERGED.value)[..., None, None]
        self._rtol, self._functional = equation.rtol, equation.descent.functional
        self._tensors = [t.detach() for t in equation.tensors]
        self._asked = [i for i, t in enumerate(equation.tensors) if t.requires_grad]
        weights = equation.descent.like.weights.detach()
        self._scale = torch.where(self._frozen, 1.0, weights.unsqueeze(-1))
        self._weights = torch.where(self._frozen.squeeze(-1), 0.0, weights)

    def solve(self, operator: Operator, b: Tensor, dual: bool) -> LinearAnswer:
        # With H in the place of A: H x = b, or of cotangents, which carry the masses of their atoms.
        scale = self._scale
        wanted = b / scale if dual else b
        right = torch.where(self._frozen, 0.0, wanted)
        certificate, place = self._certificate, self._place
        symmetries = certificate.symmetries
        size = place.norm(right)
        right = self._equation.moving(right)
        whole, right = right, symmetries.without(right)

        def hessian(x: Tensor) -> Tensor:
            image = operator(x * scale) / scale if dual else operator(x)
            return symmetries.without(torch.where(self._frozen, 0.0, -image))

        x, rest, solved = self._solve(hessian, right, self._rtol)
        # Of a loss that is flat but for its part along the symmetries, rounding is left: no equation to judge.
        norm = place.norm(right)
        norm = torch.where(norm > 100 * torch.finfo(b.dtype).eps * size, norm, 0.0)
        residual = place.norm(rest) / torch.where(norm > 0, norm, 1.0)
        shifted = place.norm(symmetries.without(certificate.shifted(x)) - right) / torch.where(norm > 0, norm, 1.0)
        accepted = residual <= max(10 * self._rtol, torch.finfo(b.dtype).eps ** 0.5)
        flat = solved.flat[..., None, None]
        asked = norm > 0
        failures = _Failures(
            kinked=certificate.kinked & (size > 0),
            untrue=certificate.untrue & (size > 0),
            flat=~accepted & flat & asked,
            pushed=certificate.pushed & (size > 0),
            unsolved=~accepted & ~flat & asked,
            moving=~(shifted <= TRUST) & asked,
        )
        refused, failed = self._judged(failures, residual)
        notices = self._along_symmetries(whole, size) if dual else ()
        x = torch.where(refused | ~(norm > 0), 0.0, x)
        x = torch.where(torch.isfinite(norm), x, torch.nan)
        x = torch.where(self._frozen, wanted, x)
        return LinearAnswer(x * scale if dual else x, failed, notices)

    @cached_property
    def _place(self) -> Place:
        return Place.of(self._points, self._weights, self._equation.start)

    def _gradient(self, points: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.where(self._frozen, 0.0, -self._equation.residual(points, *self._tensors))

    def _hessian(self, points: Tensor) -> Operator:
        """Products with the Hessian at ``points``, as a map of fields; atoms that do not count are left alone."""
        with torch.enable_grad():
            z = points.detach().requires_grad_()
            g = -self._equation.residual(z, *self._tensors)

        def product(x: Tensor) -> Tensor:
            x = torch.where(self._frozen, 0.0, x)
            (cotangent,) = torch.autograd.grad(g, z, x * self._scale, retain_graph=True, materialize_grads=True)
            return torch.where(self._frozen, 0.0, cotangent / self._scale)

        return product

    def _solve(self, hessian: Operator, right: Tensor, rtol: float) -> tuple[Tensor, Tensor, LeastSquares]:
        """The solution, what it leaves of ``right``, and what the first solve said of itself."""
        weights = self._weights.unsqueeze(-1)
        steps = min(1000, max(50, 3 * right.shape[-1] * right.shape[-2]))
        bound = rtol * self._place.norm(right)
        stiffness = self._stiffness.squeeze((-1, -2))
        x, rest, first = torch.zeros_like(right), right, None
        for _ in range(ROUNDS):
            found = minimal_residual(hessian, rest, weights=weights, dims=2, rtol=rtol, max_steps=steps, scale=stiffness)
            first = first or found
            x = x + found.x
            rest = right - hessian(x)
            open_ = (self._place.norm(rest) > bound) & ~first.flat[..., None, None]
            if not bool(open_.any()):
                break
            right = torch.where(open_, right, hessian(x))  # what is solved, or cannot be, stays as it is
        return x, rest, first  # type: ignore[return-value]

    @cached_property
    def _symmetries(self) -> Symmetries:
        eps = torch.finfo(self._points.dtype).eps
        tolerance = 10 * (eps ** (2 / 3) + self._functional.tolerance)
        return find_symmetries(self._gradient, self._place, tolerance)

    @property
    def _stiffness(self) -> Tensor:
        return self._symmetries.stiffness

    @cached_property
    def _certificate(self) -> _Certificate:
        """What does not depend on the loss: found once, at the first derivative."""
        with torch.no_grad():
            place, symmetries, raw = self._place, self._symmetries, self._hessian(self._points)

            def hessian(x: Tensor) -> Tensor:
                return symmetries.without(raw(x))

            force = symmetries.without(self._gradient(self._points))
            newton = self._solve(hessian, -force, 1e-3)[0]
            shifted = self._hessian(self._points + torch.where(self._frozen, 0.0, newton))
            generic = symmetries.without(self._equation.moving(generic_field(place, 101)))
            kernel = self._kernel(hessian, generic)
            kernel = kernel + self._equation.moving(_unit(place, symmetries.part(generic_field(place, 102))))
            kinked, untrue = self._differences(raw)
            return _Certificate(symmetries, shifted, kinked, untrue, self._pushed(kernel, _unit(place, generic)))

    def _kernel(self, hessian: Operator, generic: Tensor) -> Tensor:
        """A unit field that the Hessian does not see, of each measure; zero where there is none."""
        _, rest, found = self._solve(hessian, generic, 1e-6)
        norm = self._place.norm(rest)
        image = self._place.norm(hessian(rest))
        reference = torch.maximum(found.norm[..., None, None], self._stiffness)
        unseen = found.flat[..., None, None] | (image <= torch.finfo(rest.dtype).eps ** 0.5 * reference * norm)
        left = norm > 1e-5 * self._place.norm(generic)
        return torch.where(unseen & left, _unit(self._place, rest), 0.0)

    def _differences(self, hessian: Operator) -> tuple[Tensor, Tensor]:
        """Where the gradient jumps within a small distance, and where it changes otherwise than its derivative says."""
        place, eps = self._place, torch.finfo(self._points.dtype).eps
        step = eps**0.5 * place.length * generic_field(place, 103)
        ways, changes = [], []
        for h in (step, 2.0 * step):
            there, back = self._points + h, self._points - h
            ways.append(there - back)
            changes.append(self._gradient(there) - self._gradient(back))
        expected = hessian(ways[0])
        rounding = 10 * eps * place.norm(place.centre.abs().expand_as(step))
        floor = (1e-3 * place.norm(ways[0]) + rounding) * self._stiffness
        size = torch.maximum(place.norm(expected), place.norm(changes[0]))
        jumps = ~(place.norm(changes[0] - 0.5 * changes[1]) <= SHARP * size + floor)
        return jumps, ~jumps & ~(place.norm(changes[0] - expected) <= SHARP * size + floor)

    def _pushed(self, kernel: Tensor, generic: Tensor) -> Tensor:
        """Whether a tensor pushes atoms along a field that the Hessian does not see: they would move at infinite speed."""
        count = int(self._status.numel())
        none = torch.zeros_like(self._place.length, dtype=torch.bool)
        suspects = (self._place.norm(kernel) > 0).flatten().nonzero().squeeze(-1)
        if not self._asked or not len(suspects) or not self._pushes(kernel, generic):
            return none
        flat = none.flatten()
        for i in suspects.tolist():  # which of them, for tensors that all share
            only = (torch.arange(count, device=kernel.device) == i).reshape(none.shape)
            flat[i] = self._pushes(torch.where(only, kernel, 0.0), torch.where(only, generic, 0.0))
        return flat.reshape(none.shape)

    def _pushes(self, kernel: Tensor, generic: Tensor) -> bool:
        with torch.enable_grad():
            tensors = [t.detach().requires_grad_() if i in self._asked else t for i, t in enumerate(self._tensors)]
            g = -self._equation.residual(self._points, *tensors)
            asked = [tensors[i] for i in self._asked]
            slopes, usual = (
                torch.autograd.grad(g, asked, field * self._scale, retain_graph=True, materialize_grads=True)
                if g.requires_grad
                else [torch.zeros_like(t) for t in asked]
                for field in (kernel, generic)
            )
        return any(bool(a.norm() > PUSHED * b.norm()) for a, b in zip(slopes, usual, strict=True))

    def _judged(self, failures: _Failures, residual: Tensor) -> tuple[Tensor, tuple[ConvergenceWarning, ...]]:
        """The samples whose derivative is set to zero, and what is to be said of equations without an answer."""
        judged = (self._status == Status.CONVERGED.value)[..., None, None]
        broken = [(reason, judged & failed) for reason, failed in failures.reasons(self._functional.smoothness)]
        failed = torch.stack([b for _, b in broken]).any(0)
        found: tuple[ConvergenceWarning, ...] = ()
        if bool(failed.any()):
            text = (
                "some equilibria have no derivative that can be trusted: "
                + "; ".join(reason for reason, b in broken if bool(b.any()))
                + ". Their derivatives are set to zero, or, where only the solve failed, are the best ones found"
            )
            found = (UntrustedDerivativeWarning(text, failed=failed, residual=residual, wanted=self._rtol),)
        refused = failures.kinked | (
            judged & (failures.untrue | failures.flat | failures.pushed | failures.moving) & ~failures.unsolved
        )
        return refused, found

    def _along_symmetries(self, right: Tensor, size: Tensor) -> tuple[ConvergenceWarning, ...]:
        """A warning where the loss depends on what a symmetric functional leaves open, and no law of the flow says what it is."""
        symmetries, conserves_mean = self._symmetries, self._equation.conserves_mean
        along = symmetries.part(right)
        if conserves_mean:
            along = along - symmetries.part(right, translations=True)
        asks = self._place.norm(along) > 10 * torch.finfo(right.dtype).eps ** 0.5 * size
        if not bool(asks.any()):
            return ()
        kind = "rotations" if conserves_mean else "translations or rotations"
        text = (
            f"some losses have a slope along {kind} that leave the functional as it is: the "
            "equilibrium is not determined there, and the derivative is that of one which does not move along them"
        )
        return (SymmetryWarning(text, failed=asks),)


@dataclass(frozen=True)
class _Certificate:
    """What was found out about the Hessian, for each measure ``(*batch, 1, 1)``."""

    symmetries: Symmetries
    shifted: Operator
    """The Hessian where Newton's method would move the atoms next."""
    kinked: Tensor
    untrue: Tensor
    pushed: Tensor


@dataclass(frozen=True)
class _Failures:
    """Why an equation has no answer, ``(*batch, 1, 1)``."""

    kinked: Tensor
    untrue: Tensor
    flat: Tensor
    pushed: Tensor
    unsolved: Tensor
    moving: Tensor

    def reasons(self, smoothness: Smoothness) -> list[tuple[str, Tensor]]:
        """Each with what to do; the first one that holds of a measure."""
        kink = "the gradient of the functional jumps at the atoms, as on a kink of a kernel that is not smooth where points meet"
        remedy = "take a smooth kernel or functional, or smooth the kink"
        if smoothness >= Smoothness.OFF_DIAGONAL:
            kink += f" (its smoothness is {smoothness.name})"
        texts = (
            (f"{kink}: {remedy}", self.kinked),
            (
                "second derivatives are not those of the gradient: wasserstein_gradient is not the gradient of the functional, "
                "or is not differentiable again. ddeq.testing.check_functional says it",
                self.untrue,
            ),
            (
                "the loss has a slope along directions in which the functional is flat to second order and which are no "
                "symmetries: the equilibrium is not isolated, or degenerate. Add a small convex term, or take a loss that does "
                "not see them",
                self.flat,
            ),
            (
                "a tensor that requires grad pushes the atoms along directions in which the functional is flat to second order: "
                "the equilibrium does not move smoothly, or a symmetry holds at the present value only. Add a small convex term",
                self.pushed,
            ),
            (
                "the atoms are too far from stationary, by the curvature there: the equations change before they get there. Take "
                "a smaller rtol in stop=Stop(...); if that does not help, the minimum is degenerate",
                self.moving,
            ),
            (
                "the equations were not solved in the products that they were given, because they are very stiff",
                self.unsolved,
            ),
        )
        rest, out = torch.ones_like(self.kinked), []
        for text, holds in texts:
            out.append((text, holds & rest))
            rest = rest & ~holds
        return out


def _unit(place: Place, field: Tensor) -> Tensor:
    norm = place.norm(field)
    return torch.where(norm > 0, field / torch.where(norm > 0, norm, 1.0), 0.0)
