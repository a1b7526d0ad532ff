"""`check_solution` and `check_implicit_gradient`: is a fixed point one, and are its derivatives right?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from ddeq.iteration import Stop
from ddeq.measures import DiscreteMeasure
from ddeq.solvers import Adjoint, Anderson, Implicit, Solution, Solver, fixed_point
from ddeq.solvers.metric import relative_discrepancy

__all__ = ["check_implicit_gradient", "check_solution"]


def check_solution(map: Callable[..., DiscreteMeasure], solution: Solution, *args: Any, stop: Stop = Stop()) -> None:
    """Hold a solution to what it says of itself: evaluate the map at its measure and compare the residual.

    Parameters
    ----------
    map, solution, args
        What was solved, and what was found.
    stop
        What it was solved with; the tolerance and the metric count.

    Raises
    ------
    AssertionError
        If a residual is not what the solution says, or a sample is called converged and is not.
    """
    with torch.no_grad():
        mu = solution.measure.detach()
        image = map(mu, *args).points

        def norm(a: Tensor) -> Tensor:
            found: Tensor = (mu.weights * a.square().sum(-1)).sum(-1).sqrt()
            return found

        floor = stop.atol / stop.rtol
        if stop.metric is None:
            residual = norm(image - mu.points) / (norm(image) + floor)
        else:
            residual = relative_discrepancy(stop.metric, mu, mu.with_points(image), floor)[0]
    known = torch.isfinite(solution.residual)
    rounding = 100 * torch.finfo(mu.dtype).eps
    wrong = known & ((residual - solution.residual).abs() > rounding + 1e-3 * residual)
    if bool(wrong.any()):
        raise AssertionError(f"the solution says residual {solution.residual[wrong]}, at its measure it is {residual[wrong]}")
    early = solution.converged & (residual > stop.rtol * 1.001 + rounding)
    if bool(early.any()):
        raise AssertionError(f"called converged at residual {residual[early]}, above the tolerance {stop.rtol}")


def check_implicit_gradient(
    map: Callable[..., DiscreteMeasure],
    mu0: DiscreteMeasure,
    *args: Any,
    solver: Solver = Anderson(),
    adjoint: Adjoint = Implicit(),
    tolerance: float = 1e-12,
    max_steps: int = 1000,
    rtol: float = 1e-5,
) -> None:
    """Hold the derivatives of ``fixed_point(map, mu0, *args)`` to finite differences of tightly solved fixed points.

    The derivative of a random linear function of the equilibrium is compared along a random direction in all tensors at
    once that derivatives can reach: those in ``args``, weights, marks, and the parameters of a module.

    Parameters
    ----------
    map, mu0, args
        The problem, in double precision.
    solver, adjoint
        As in `ddeq.fixed_point`.
    tolerance, max_steps
        How tightly to solve.
    rtol
        Allowed relative difference.

    Raises
    ------
    ValueError
        If the measure is not in double precision.
    AssertionError
        If a solve fails, or the derivatives differ.
    """
    if mu0.dtype != torch.float64:
        raise ValueError(f"mu0: finite differences need torch.float64, got {mu0.dtype}; use mu0.to(torch.float64)")
    stop = Stop(rtol=tolerance, atol=1e-2 * tolerance, max_steps=max_steps)
    g = torch.Generator().manual_seed(0)
    leaves, spec = pytree.tree_flatten((mu0.weights, mu0.marks, args))
    reached = [t.detach() for t in leaves if isinstance(t, Tensor) and t.is_floating_point()]
    own: list[Tensor] = [p for p in map.parameters() if p.requires_grad] if isinstance(map, nn.Module) else []

    def drawn(t: Tensor) -> Tensor:
        return torch.randn(t.shape, generator=g, dtype=t.dtype).to(t.device)

    loss_weights, own_directions = drawn(mu0.points), [drawn(p) for p in own]
    directions = [drawn(t) * t.abs() for t in reached]

    def solve(tensors: list[Tensor]) -> Tensor:
        rest = iter(tensors)
        filled = [next(rest) if isinstance(t, Tensor) and t.is_floating_point() else t for t in leaves]
        weights, marks, now = pytree.tree_unflatten(filled, spec)
        mu = mu0.detach().with_weights(weights).with_marks(marks)
        solution = fixed_point(map, mu, *now, solver=solver, stop=stop, adjoint=adjoint)
        if not bool(solution.converged.all()):
            raise AssertionError(f"the fixed point was not found to {tolerance}: {solution.summary()}")
        found: Tensor = (solution.measure.points * loss_weights).sum()
        return found

    inputs = [t.clone().requires_grad_() for t in reached]
    with torch.enable_grad():
        grads = torch.autograd.grad(solve(inputs), inputs + own, materialize_grads=True)
    slope = sum((g * v).sum() for g, v in zip(grads, directions + own_directions, strict=True))
    h = 1e-6

    def shifted(t: float) -> Tensor:
        with torch.no_grad():
            for p, v in zip(own, own_directions, strict=True):
                p.add_(v, alpha=t)
            try:
                return solve([x + t * v for x, v in zip(reached, directions, strict=True)])
            finally:
                for p, v in zip(own, own_directions, strict=True):
                    p.sub_(v, alpha=t)

    difference = (shifted(h) - shifted(-h)) / (2 * h)
    slope_value = float(slope)
    if abs(slope_value - float(difference)) > rtol * max(abs(slope_value), abs(float(difference))) + 1e-8:
        raise AssertionError(
            f"T7 (implicit differentiation): the derivative along a random direction is {slope_value:.8g}, finite differences "
            f"of the solution give {float(difference):.8g}"
        )
