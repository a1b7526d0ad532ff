"""Equilibria of games: where the velocities of all species vanish, which descend energies of their own (systems, T23)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from ddeq.flows.descent import FunctionalDescent
from ddeq.flows.steppers import Stepper
from ddeq.flows.undirected import EulerOrHeun
from ddeq.functionals.dynamics import Dynamics
from ddeq.iteration import Equation, Implicit, InnerProduct, NewtonKrylov, Outcome, Report, Solution, Status, Stop, iterate
from ddeq.iteration.driver import watched
from ddeq.measures import DiscreteMeasure
from ddeq.spaces.space import Space

__all__ = ["game_equilibrium"]

NEAR = 1e-2
"""Relative residual from which Newton's method takes over from the flow."""


class _Rest(Equation):
    """The points at which the velocities of a game vanish; those of atoms of mass zero stay where they are."""

    name = "flows"
    remedy = "take more steps, another stepper or a larger rtol in stop=Stop(...)"

    def __init__(self, descent: FunctionalDescent) -> None:
        self._descent = descent
        self.tensors, self.inner = descent.tensors, InnerProduct(descent.like.weights.detach())
        self._live = descent.like.support().unsqueeze(-1)

    def residual(self, z: Tensor, *tensors: Tensor) -> Tensor:
        return torch.where(self._live, self._descent.residual(z, *tensors), z.detach() - z)

    def unseen(self, shapes: str) -> str:
        return self._descent.unseen(shapes)


def game_equilibrium(
    dynamics: Dynamics,
    mu0: DiscreteMeasure,
    *,
    stepper: Stepper | None,
    space: Space,
    stop: Stop,
    finish: bool,
    on_failure: Literal["raise", "warn"],
    trace: bool,
    callback: Callable[[Report], object] | None,
) -> Solution:
    r"""Where the velocities of a packed game vanish, by a flow that Newton's method finishes; parameters as of `equilibrium`.

    The flow takes steps of Heun's method of a length that is found on the way, unless a ``stepper`` is given. From a hundredth of
    the residual at the start on `NewtonKrylov` solves; where it fails the flow goes on. A flow that does not come near, as where
    nothing makes it contract, ends as MAX_STEPS: that there is an equilibrium does not mean that the game goes there. The
    linearisation is not self-adjoint, and derivatives are those of implicit differentiation (T7).
    """
    descent = FunctionalDescent(dynamics, mu0, space=space)
    method = EulerOrHeun() if stepper is None else stepper

    def flowed(z: Tensor, stop: Stop, scale: Tensor | None = None) -> Outcome:
        return iterate(descent, stop, z=z, method=method, patient=True, best=False, trace=trace, callback=callback, scale=scale)

    def run(equation: Equation, stop: Stop, *, watch: bool = False) -> Outcome:
        z = mu0.points.detach()
        if watch:
            watched(equation, z)
        if not finish or descent.has_metric:
            return flowed(z, stop)
        near = flowed(z, replace(stop, rtol=max(NEAR, stop.rtol)))
        left = stop.max_steps - int(near.steps.max())
        if left < 1 or not bool((near.status == Status.CONVERGED.value).all()):
            return near
        rest = _Rest(descent)
        newton = iterate(rest, replace(stop, max_steps=left), z=near.value, method=NewtonKrylov(), trace=trace, scale=near.scale)
        done = newton
        if not bool((newton.status == Status.CONVERGED.value).all()):
            done = flowed(near.value, replace(stop, max_steps=left), near.scale)
        whole = None if done.trace is None or near.trace is None else torch.cat([near.trace, done.trace[1:]])
        return replace(done, steps=near.steps + done.steps, evaluations=near.evaluations + newton.evaluations, trace=whole)

    outcome = Implicit(on_failure=on_failure).solve(_Rest(descent), run, stop)
    return Solution(
        measure=mu0.with_points(outcome.value),
        residual=outcome.residual,
        steps=outcome.steps,
        status=outcome.status,
        evaluations=outcome.evaluations,
        error_bound=torch.full_like(outcome.residual, torch.inf),
        trace=outcome.trace,
    )
