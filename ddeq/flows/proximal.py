"""Implicit steps: the minimising movements of Jordan, Kinderlehrer and Otto."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, cast

import torch
from torch import Tensor

from ddeq.flows.adaptive import AdaptiveEuler
from ddeq.flows.descent import FunctionalDescent
from ddeq.flows.schedules import Schedule, check_schedule, over_atoms
from ddeq.flows.steppers import Stepper
from ddeq.iteration import (
    AdjointWarning,
    ConvergenceWarning,
    Descent,
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
    iterate,
    minimal_residual,
)
from ddeq.iteration.driver import watched
from ddeq.measures import DiscreteMeasure
from ddeq.messages import warn

__all__ = ["Proximal"]

RTOL = {torch.float32: 1e-5}
"""Relative residual of the equations of derivatives, 1e-8 in double precision."""


class _State(NamedTuple):
    force: Tensor
    """By how much the last step moved the atoms, divided by its length, ``(*batch, n, d)``; as a covector."""


@dataclass(frozen=True)
class Proximal(Stepper):
    r"""Proximal (JKO) steps, :math:`\mu_{k+1} = \arg\min_\nu F(\nu) + \frac{1}{2\tau} W_2^2(\mu_k, \nu)`, of order one.

    The implicit Euler step: the energy never increases, however long the step. Atoms stay coupled to themselves,
    :math:`W_2^2 = \sum_i w_i |y_i - x_i|^2`. At the minimiser this is the optimal coupling if all weights are equal, and for
    any weights if the step is shorter than the inverse of the largest negative curvature of :math:`F` (proximal steps, T15). In
    another geometry its own norm takes the place of :math:`W_2`; on a space distances are measured along its chart
    (`ddeq.spaces.Space.chart`), which is the exponential map except on manifolds of geoopt. The inner problem is solved by
    `AdaptiveEuler` steps, from the movement of the step before. Autograd differentiates its solution by the implicit rule, not
    its steps: in points, weights, the step size, and the parameters and targets of the functional.

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
    in_spaces: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_schedule("step_size", self.step_size)
        if not isinstance(self.inner, Stop | None) or (self.inner is not None and self.inner.metric is not None):
            raise ValueError(f"inner: expected a Stop such as Stop(rtol=1e-6) without a metric, or None, got {self.inner!r}")

    def init(self, equation: FunctionalDescent, at: Iterate) -> _State:
        if torch.is_grad_enabled():
            watched(_ProximalStep.at(equation, at.z, 1.0), at.z.detach())
        return _State(torch.zeros_like(at.residual))

    def step(self, equation: FunctionalDescent, at: Iterate, state: _State) -> Step:
        tau = equation.number("step_size", self.step_size, at.step)
        stop = self.inner or Stop(rtol=1e-6 if at.z.dtype == torch.float64 else 1e-3, max_steps=500)
        time = over_atoms(tau)
        local, chart = (equation, None) if equation.space.has_boundary else equation.in_chart(at.z.detach())
        movement = _Movement(local, at.z.detach(), time, stop.rtol)

        def run(of: Equation, stop: Stop, *, watch: bool = False) -> Outcome:
            outcome = movement.minimised(time * state.force, stop)
            _warn_of(outcome, stop)
            solved = torch.full_like(outcome.status, Status.CONVERGED.value)  # else is said already
            points = movement.measure(outcome.value).points
            points = points if chart is None else chart.points(points)
            return replace(outcome, value=points, status=solved, state=outcome.value / time)

        conditions = _ProximalStep.at(equation, at.z, time)
        plain = equation.geometry.is_wasserstein and not equation.has_metric
        if not plain and torch.is_grad_enabled() and any(t.requires_grad for t in conditions.tensors):
            raise ValueError(
                "stepper: autograd would record Proximal steps, which are differentiable in the geometry of Wasserstein on "
                f"Euclidean space only, not in {equation.geometry!r} on {equation.space!r}; flow under torch.no_grad(), or take "
                "an explicit stepper"
            )
        outcome = Implicit().solve(conditions, run, stop)
        with torch.no_grad():
            energy = equation.energy(outcome.value.detach())
        return Step(outcome.value, _State(outcome.state), evaluations=outcome.evaluations, duration=tau, energy=energy)


@dataclass(frozen=True)
class _InMobility(InnerProduct):
    r"""The inner product :math:`\langle a, C b\rangle_{L^2(\mu)}` for the mobility :math:`C` of a geometry."""

    mobility: Callable[[Tensor], Tensor] = torch.positive

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return super().__call__(a, self.mobility(b))

    def norms(self, *fields: Tensor) -> tuple[Tensor, ...]:
        return tuple(self(f.detach(), f.detach()).clamp_min(0.0).sqrt() for f in fields)


class _Movement(Descent):
    r"""The inner problem of a step: minimise :math:`F(x + C a) + \langle a, C a\rangle / (2 \tau)` over :math:`a`.

    :math:`C` is the mobility of the geometry, the identity for the one of Wasserstein, so that ``a`` is the movement there.
    """

    shardable = True
    inner: _InMobility

    def __init__(self, of: FunctionalDescent, points: Tensor, time: float | Tensor, rtol: float) -> None:
        self._of, self._time, self._rtol = of, time, rtol
        self._start = of.measure(points)
        mobility = of.geometry.mobility(self._start)
        weights = of.like.weights.detach()
        self.inner = _InMobility(weights, limit=InnerProduct.of(points, weights).limit, mobility=mobility)
        self._size = torch.zeros_like(weights[..., 0])

    def measure(self, z: Tensor) -> DiscreteMeasure:
        """Where the atoms are after the movement ``z``."""
        return self._start.with_points(self._start.points + self.inner.mobility(z))

    def residual(self, z: Tensor, *tensors: Tensor) -> Tensor:
        mu = self.measure(z)
        force = -self._of.functional.wasserstein_gradient(mu) - z / self._time
        return self._of.space.tangent(mu.points, force) if self._of.space.has_boundary else force

    def moved(self, z: Tensor, step: Tensor) -> Tensor:
        if not self._of.space.has_boundary:
            return z + step
        return self._of.space.project(self._start.points + z + step) - self._start.points

    def energy(self, z: Tensor) -> Tensor:
        return self._of.functional(self.measure(z)) + 0.5 * self.inner(z, z / self._time)

    def sizes(self, z: Tensor, residual: Tensor, previous: Iterate | None) -> Sizes:
        size = self._size
        if previous is not None and previous.energy is not None:
            # What a smaller gradient can still gain is hidden by rounding of the energy.
            time = self._time[..., 0, 0] if isinstance(self._time, Tensor) else self._time
            hidden = 16.0 * torch.finfo(z.dtype).eps * previous.energy.abs() / time
            size = size.maximum(hidden.sqrt() / self._rtol)
        return Sizes(self.inner.norm(residual), size)

    @torch.no_grad()
    def minimised(self, guess: Tensor, stop: Stop) -> Outcome:
        """The minimiser, from the guess where it is better than no movement."""
        still = torch.zeros_like(guess)
        guess = self.moved(guess, still)
        better = self.energy(guess) <= self.energy(still)
        self._size = self.inner.norm(self.residual(still))
        time = self._time[..., 0, 0] if isinstance(self._time, Tensor) else self._time
        first = torch.where(better[..., None, None], guess, still)
        method = cast("Method[_Movement]", AdaptiveEuler(time))  # which steps on any descent
        return iterate(self, stop, z=first, method=method, patient=True, best=False)


class _ProximalStep(Equation):
    r""":math:`x - y + \tau v(y) = 0`, the conditions of a step in the geometry of Wasserstein; :math:`v` is the velocity.

    Atoms of mass zero follow their start, by convention, and influence no other.
    """

    shardable = True

    def __init__(self, descent: FunctionalDescent, tensors: tuple[Tensor, ...]) -> None:
        self._descent, self.tensors = descent, tensors
        self.inner = InnerProduct(descent.like.weights.detach())

    @classmethod
    def at(cls, descent: FunctionalDescent, x: Tensor, time: float | Tensor) -> _ProximalStep:
        step = torch.as_tensor(time, dtype=x.dtype, device=x.device)
        return cls(descent, (x, step, *descent.tensors))

    def residual(self, z: Tensor, *tensors: Tensor) -> Tensor:
        x, step, *rest = tensors or self.tensors
        live = self._descent.like.support().unsqueeze(-1)
        return x - z + torch.where(live, step * self._descent.residual(z, *rest), 0.0)

    def linear_solver(self, z: Tensor, status: Tensor) -> LinearSolver:
        return _ProximalSolver(self.inner.weights)

    def unseen(self, shapes: str) -> str:
        return self._descent.unseen(shapes)


class _ProximalSolver(LinearSolver):
    r""":math:`A u + b = 0` for :math:`A = -(I + \tau H)`, self-adjoint in :math:`L^2(\mu)`, or its transpose on cotangents."""

    def __init__(self, weights: Tensor) -> None:
        self._weights, self._mass = weights.unsqueeze(-1), torch.where(weights > 0, weights, 1.0).unsqueeze(-1)

    def solve(self, operator: Callable[[Tensor], Tensor], b: Tensor, dual: bool) -> LinearAnswer:
        rtol = RTOL.get(b.dtype, 1e-8)
        mass = self._mass if dual else torch.ones_like(self._mass)
        solution = minimal_residual(lambda u: operator(u * mass) / mass, -b / mass, weights=self._weights, dims=2, rtol=rtol)
        failed = ~solution.converged
        failures: tuple[ConvergenceWarning, ...] = ()
        if bool(failed.any()):
            text = "Proximal: the derivatives of some steps were not solved for; take shorter steps"
            failures = (AdjointWarning(text, failed=failed, residual=solution.residual, wanted=rtol),)
        return LinearAnswer(torch.where(self._weights > 0, solution.x * mass, b), failures)


def _warn_of(outcome: Outcome, stop: Stop) -> None:
    failed = outcome.status != Status.CONVERGED.value
    if bool(failed.any()):
        text = (
            "Proximal: the inner problems of some samples were not solved; where the functional has a kink its gradient does not "
            "vanish; else take shorter steps, or another inner=Stop(...)"
        )
        warn(InnerProblemWarning(text, failed=failed, residual=outcome.residual, wanted=stop.rtol))
