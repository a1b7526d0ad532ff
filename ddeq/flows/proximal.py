"""Implicit steps: the minimising movements of Jordan, Kinderlehrer and Otto."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ddeq.flows.adaptive import AdaptiveEuler
from ddeq.flows.bound_functional import BoundFunctional
from ddeq.flows.geometries import Wasserstein
from ddeq.flows.problem import Descent
from ddeq.flows.schedules import Schedule, check_schedule, over_atoms
from ddeq.flows.steppers import Step
from ddeq.iteration import (
    ConvergenceWarning,
    Evaluation,
    Outcome,
    Process,
    Status,
    Stop,
    implicit_function,
    iterate,
    minimal_residual,
)
from ddeq.iteration.massless import farthest, held_back
from ddeq.measures import DiscreteMeasure

__all__ = ["Proximal"]

RTOL = {torch.float32: 1e-5}
"""Relative residual of the equations of derivatives, 1e-8 in double precision."""


class _State(NamedTuple):
    force: Tensor
    """By how much the last step moved the atoms, divided by its length, ``(*batch, n, d)``; as a covector."""


@dataclass(frozen=True)
class Proximal:
    r"""Proximal (JKO) steps, :math:`\mu_{k+1} = \arg\min_\nu F(\nu) + \frac{1}{2\tau} W_2^2(\mu_k, \nu)`, of order one.

    The implicit Euler step: the energy never increases, however long the step. Atoms stay coupled to themselves,
    :math:`W_2^2 = \sum_i w_i |y_i - x_i|^2`. At the minimiser this is the optimal coupling if all weights are equal, and for
    any weights if the step is shorter than the inverse of the largest negative curvature of :math:`F` (T15). In another
    geometry its own norm takes the place of :math:`W_2`. The inner problem is solved by `AdaptiveEuler` steps, from the
    movement of the step before. Autograd differentiates its solution by the implicit rule, not its steps: in points, weights,
    the step size, and the parameters and targets of the functional.

    Parameters
    ----------
    step_size
        :math:`\tau`, as in `Euler`.
    inner
        When the inner solve of a sample stops: its gradient relative to the one at the start of the step. Default: ``rtol`` 1e-6
        in double and 1e-3 in single precision, 500 steps. Its patience is not asked: either the energy falls in a step, or the
        solve has stagnated.

    Raises
    ------
    ValueError
        If a step size is not positive and finite, or ``inner`` is not a `Stop`.

    Warns
    -----
    ConvergenceWarning
        If an inner problem was not solved to its tolerance, with the number of samples and the largest residual.

    References
    ----------
    :cite:t:`jordan1998variational`.
    """

    step_size: Schedule = 0.1
    inner: Stop | None = None

    descends: ClassVar[bool] = True
    explicit: ClassVar[bool] = False
    has_momentum: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_schedule("step_size", self.step_size)
        if not isinstance(self.inner, Stop | None) or (self.inner is not None and self.inner.metric is not None):
            raise ValueError(f"inner: expected a Stop such as Stop(rtol=1e-6) without a metric, or None, got {self.inner!r}")

    def init(self, problem: Descent, points: Tensor) -> _State:
        if torch.is_grad_enabled():
            BoundFunctional(problem.functional, problem.like).watch(points)
        return _State(torch.zeros_like(points))

    def step(self, problem: Descent, points: Tensor, velocity: Tensor, state: _State, step: int) -> Step:
        tau = problem.number("step_size", self.step_size, step)
        stop = self.inner or Stop(rtol=1e-6 if points.dtype == torch.float64 else 1e-3, max_steps=500)
        time = over_atoms(tau)
        with torch.no_grad():
            start = problem.measure(points.detach())
            movement = _Movement(
                problem.functional, start, problem.geometry, time=time, mobility=problem.geometry.mobility(start)
            )
            outcome = _solve(movement, time * state.force, stop)
            moved = movement.measure(outcome.value)
            energy = problem.functional(moved)
        _report(outcome, stop)
        end = _attach(problem, points, time, moved.points)
        return Step(end, _State(outcome.value / time), tau, energy)


@dataclass(frozen=True)
class _Movement(Descent):
    r"""The inner problem of a step from ``like``: minimise :math:`F(x + C a) + \langle a, C a\rangle / (2 \tau)` over :math:`a`.

    :math:`C` is the mobility of the geometry, the identity for the one of Wasserstein, so that ``a`` is the movement there.
    """

    time: float | Tensor = 1.0
    mobility: Callable[[Tensor], Tensor] = torch.positive

    def measure(self, points: Tensor) -> DiscreteMeasure:
        return self.like.with_points(self.like.points + self.mobility(points))

    def velocity(self, points: Tensor) -> Tensor:
        return -self.functional.wasserstein_gradient(self.measure(points)) - points / self.time

    def energy(self, points: Tensor) -> Tensor:
        return super().energy(points) + 0.5 * self.inner(points, points / self.time)

    def slope(self, points: Tensor, velocity: Tensor) -> Tensor:
        return self.inner(velocity, velocity)

    def inner(self, a: Tensor, b: Tensor) -> Tensor:
        return super().inner(a, self.mobility(b))


def _solve(problem: _Movement, guess: Tensor, stop: Stop) -> Outcome:
    """The minimiser, from the guess where it is better than no movement."""
    still = torch.zeros_like(guess)
    better = problem.energy(guess) <= problem.energy(still)
    first = torch.where(better[..., None, None], guess, still)
    force = problem.velocity(still)
    process = _Minimisation(problem, problem.inner(force, force).sqrt() + stop.atol / stop.rtol, stop.rtol)
    stepper = process.stepper.init(problem, first)
    return iterate(
        process, first, (stepper, None), stop=stop, batch_shape=problem.like.batch_shape, patient=True, best=False, still=True
    )


class _Minimisation(Process):
    """Adaptive descent of the inner problem, as the loop sees it."""

    def __init__(self, problem: _Movement, scale: Tensor, rtol: float) -> None:
        self._problem, self._scale, self._rtol = problem, scale, rtol
        self._time = problem.time[..., 0, 0] if isinstance(problem.time, Tensor) else problem.time
        self._limit = farthest(problem.like.points, problem.like.weights)
        self.stepper = AdaptiveEuler(self._time)

    def evaluate(self, value: Tensor, memory: Any) -> tuple[Evaluation, Any]:
        velocity = held_back(self._problem.velocity(value), 0.0, self._problem.like.weights, self._limit)
        norm = self._problem.inner(velocity, velocity).clamp_min(0.0).sqrt()
        scale = self._scale
        if memory[1] is not None:  # what a smaller gradient can still gain is hidden by rounding of the energy
            hidden = 16.0 * torch.finfo(norm.dtype).eps * memory[1].abs() / self._time
            scale = scale.maximum(hidden.sqrt() / self._rtol)
        nothing = 0.0 * norm
        return Evaluation(norm / scale, norm, nothing, nothing, velocity), memory

    def advance(self, value: Tensor, memory: Any, found: Tensor, step: int) -> tuple[Tensor, Any]:
        state, energy = memory
        problem = replace(self._problem, known_energy=energy)
        moved = self.stepper.step(problem, value, found, state, step)
        return held_back(moved.points, value, problem.like.weights, self._limit), (moved.state, moved.energy)

    def select(self, keep: Tensor) -> _Minimisation:
        raise AssertionError("the inner problems of all samples are solved together")


def _report(outcome: Outcome, stop: Stop) -> None:
    failed = outcome.status != Status.CONVERGED.value
    if bool(failed.any()):
        warnings.warn(
            f"Proximal: the inner problems of {int(failed.sum())} of {failed.numel()} samples were not solved (largest relative "
            f"residual {float(outcome.residual[failed].max()):.1e}, wanted {stop.rtol:.1e}); where the functional has a "
            "kink its gradient does not vanish; else take shorter steps, or another inner=Stop(...)",
            ConvergenceWarning,
            stacklevel=2,
        )


def _attach(problem: Descent, x: Tensor, time: float | Tensor, y: Tensor) -> Tensor:
    r""":math:`y`, the same numbers, as the solution of :math:`y - x + \tau \nabla_W F(y) = 0` as a function of what enters it.

    Atoms of mass zero follow their start, by convention, and influence no other.
    """
    bound = BoundFunctional(problem.functional, problem.like)
    step = torch.as_tensor(time, dtype=x.dtype, device=x.device)
    tensors = [x, step, *bound.tensors]
    if not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
        return y
    if not isinstance(problem.geometry, Wasserstein):
        raise ValueError(
            "stepper: autograd would record Proximal steps, which are differentiable in the geometry of Wasserstein only, not "
            f"in {problem.geometry!r}; flow under torch.no_grad(), or take an explicit stepper"
        )
    live = problem.like.support().unsqueeze(-1)

    def equation(y: Tensor, x: Tensor, step: Tensor, *rest: Tensor) -> Tensor:
        return y - x + torch.where(live, step * bound.gradient_of(y, *rest), 0.0)

    return implicit_function(equation, _LinearSolve(problem.like.weights.detach()), y, *tensors)


class _LinearSolve:
    r""":math:`A u + b = 0` for :math:`A = I + \tau H`, self-adjoint in :math:`L^2(\mu)`, or for its transpose on cotangents."""

    def __init__(self, weights: Tensor) -> None:
        self._weights, self._mass = weights.unsqueeze(-1), torch.where(weights > 0, weights, 1.0).unsqueeze(-1)

    def __call__(self, operator: Callable[[Tensor], Tensor], b: Tensor, dual: bool) -> Tensor:
        rtol = RTOL.get(b.dtype, 1e-8)
        mass = self._mass if dual else torch.ones_like(self._mass)
        solution = minimal_residual(lambda u: operator(u * mass) / mass, -b / mass, weights=self._weights, dims=2, rtol=rtol)
        failed = ~solution.converged
        if bool(failed.any()):
            warnings.warn(
                f"Proximal: the derivatives of {int(failed.sum())} of {failed.numel()} samples were not solved for (largest "
                f"relative residual {float(solution.residual.max()):.1e}, wanted {rtol:.0e}); take shorter steps",
                ConvergenceWarning,
                stacklevel=2,
            )
        return torch.where(self._weights > 0, solution.x * mass, -b)
