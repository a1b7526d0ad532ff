"""`check_solver`: does a solver of fixed points keep to what the library relies on?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ddeq.iteration import Equation, InnerProduct, Outcome, Report, Solver, Status, Stop, Unrolled, iterate
from ddeq.iteration.implicit import LinearEquation
from ddeq.measures import DiscreteMeasure, middle
from ddeq.solvers import MapEquation, fixed_point
from ddeq.testing.close import assert_close
from ddeq.testing.methods import Moment, check_batches, check_pure
from ddeq.testing.problems import contraction, trial_batch
from ddeq.testing.purity import check_consistency, check_declarations, check_precision, quiet, stated
from ddeq.testing.solutions import check_solution

__all__ = ["check_solver"]

Map = Callable[..., DiscreteMeasure]


def check_solver(
    solver: Solver,
    map: Map | None = None,
    mu0: DiscreteMeasure | None = None,
    *args: Any,
    in_dims: Any = None,
    stop: Stop = Stop(rtol=1e-6, max_steps=300),
    converges: bool = True,
    exact: bool = True,
    rtol: float = 1e-6,
) -> None:
    """Hold a solver to what `ddeq.fixed_point` and the adjoints rely on.

    The laws: declared capabilities are of the right type and true; ``init`` and ``step`` are pure, and their state has an entry
    for each sample; each sample of a batch gets what it gets alone, whether finished ones leave the computation or not; float32
    and float64 stay what they are, whatever torch's default; iterates depend on the measure alone (measure consistency, T1;
    equivariant acceleration, T9); a sample is CONVERGED only if its residual is at most the tolerance; NaN in one sample changes
    no other; autograd records the steps of a solver that is ``differentiable``.

    Parameters
    ----------
    solver
        What to check.
    map, mu0, args, in_dims
        A problem as in `ddeq.fixed_point`, in double precision, ``mu0`` a batch whose fixed points are reached at different
        steps; default: a contraction with three different rates, whose fixed points are known.
    stop
        Tolerances and most steps of the solve of that problem.
    converges
        Whether to ask that it is solved.
    exact
        Whether derivatives of the steps are exact; else only that they are finite.
    rtol
        Allowed relative difference where two ways of computing differ by rounding.

    Raises
    ------
    AssertionError
        Saying which law broke, with numbers.
    """
    booleans = ("recovers", "removable", "differentiable", "needs_measures", "ends_when_still")
    check_declarations(solver, Solver, "Solver", booleans)
    own = map is None
    mu0 = trial_batch(marks=True) if mu0 is None else mu0.detach()
    if map is None:
        map, args, in_dims = contraction, (mu0.points.new_tensor([0.1, 0.5, 0.8]),), 0
    few = replace(stop, rtol=1e-300, atol=0.0, max_steps=6)
    equation = MapEquation(map, mu0, args, in_dims)

    def run(of: Equation, stop: Stop) -> Outcome:
        assert isinstance(of, MapEquation)
        return iterate(of, stop, z=of.inner.bounded(of.mu.points, middle(of.mu)), method=solver)

    def few_steps(mu: DiscreteMeasure) -> Tensor:
        given = [a.to(mu.dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
        found: Tensor = fixed_point(map, mu, *given, in_dims=in_dims, solver=solver, stop=few).measure.points
        return found

    with torch.no_grad(), quiet():
        moments = check_pure(solver, equation, mu0.points)
        if equation.removable:
            check_batches(run, solver, moments, equation, stop, rtol=rtol)
        check_consistency(few_steps, mu0, "the iterates", rtol=rtol, theorems="T1, T9")
        check_precision(few_steps, mu0, "iterates")
        _check_shapes(solver)
        _check_status(solver, map, mu0, args, in_dims, stop, converges, own)
        _check_where_nothing_is_found(solver, stop)
        _check_nan(solver, stop, rtol)
        _check_recovery(solver, moments)
        if not solver.needs_measures:
            _check_other_equations(solver, stop, converges)
    if solver.differentiable:
        _check_unrolled(solver, map, mu0, args, in_dims, exact)


def _check_shapes(solver: Solver) -> None:
    """The same problem as a single measure, and in batches of other shapes."""
    mu, stop = trial_batch(marks=True), Stop(rtol=1e-300, atol=0.0, max_steps=5)
    expected = fixed_point(contraction, mu, 0.5, solver=solver, stop=stop).measure.points[0]
    for shape, other in (((), mu[0]), ((3, 1), mu[:, None]), ((1, 3), mu[None])):
        law = f"batches: a problem in a batch of shape {shape}"
        with stated(law):
            solution = fixed_point(contraction, other, 0.5, solver=solver, stop=stop)
        for name in ("residual", "steps", "status"):
            if getattr(solution, name).shape != shape:
                raise AssertionError(f"{law}: {name} has shape {tuple(getattr(solution, name).shape)}")
        first = solution.measure.points.flatten(0, -3)[0] if shape else solution.measure.points
        assert_close(first, expected, f"{law} has other iterates", rtol=1e-6)


def _check_status(
    solver: Solver,
    map: Map,
    mu0: DiscreteMeasure,
    args: tuple[Any, ...],
    in_dims: Any,
    stop: Stop,
    converges: bool,
    own: bool,
) -> None:
    """What a solution says of itself, and that finished samples stay where they are."""
    reports: list[Report] = []
    calls = 0

    def counted(mu: DiscreteMeasure, *args: Any) -> DiscreteMeasure:
        nonlocal calls
        calls += 1
        return map(mu, *args)

    with stated("honest status"):
        solution = fixed_point(counted, mu0, *args, in_dims=in_dims, solver=solver, stop=stop, callback=reports.append)
    if calls > solution.evaluations:
        raise AssertionError(f"evaluations: the map was called {calls} times, and the steps say {solution.evaluations}")
    try:
        check_solution(map, solution, *args, stop=stop)
    except AssertionError as error:
        raise AssertionError(f"honest status: {error}") from None
    for before, after in pairwise(reports):
        done = ~before.active
        if not torch.equal(before.value[done], after.value[done]):
            raise AssertionError(f"frozen samples: one that has finished moves in step {after.step}")
    if converges and not bool(solution.converged.all()):
        raise AssertionError(f"convergence: the problem was not solved: {solution.summary()}; converges=False asks for less")
    if converges and own and mu0.marks is not None:
        live = mu0.support().unsqueeze(-1)
        apart = (solution.measure.points - mu0.marks)[live.expand_as(mu0.marks)].abs().max()
        if apart > 1e2 * stop.rtol * float(mu0.marks.abs().max()):
            raise AssertionError(f"convergence: called converged {float(apart):.3e} away from the known fixed point")


def _check_where_nothing_is_found(solver: Solver, stop: Stop) -> None:
    """Maps without a fixed point, or with one that repels, are never called solved where they are not."""
    start = DiscreteMeasure(torch.tensor([[[1.0], [1.5]], [[1.0], [1.0]], [[0.5], [2.0]]], dtype=torch.float64))
    maps: tuple[tuple[str, Map], ...] = (
        ("z -> z + 1, which has no fixed point", lambda mu: mu.with_points(mu.points + 1.0)),
        ("x -> 10 x from about 1, whose fixed point 0 repels", lambda mu: mu.with_points(10.0 * mu.points)),
    )
    for name, map in maps:
        with stated(f"honest status: {name}"):
            solution = fixed_point(map, start, solver=solver, stop=stop)
        places = solution.measure.points
        false = solution.converged & (torch.ones_like(solution.converged) if "+" in name else places.abs().amax((-2, -1)) > 1e-3)
        if bool(false.any()):
            raise AssertionError(f"honest status: {name}, ends as CONVERGED at {places[false].flatten().tolist()[:4]}")


def _check_nan(solver: Solver, stop: Stop, rtol: float) -> None:
    """A sample whose images are NaN is not CONVERGED, and changes no other one."""
    start = DiscreteMeasure(torch.tensor([[[0.0], [0.2]], [[0.5], [1.0]], [[3.0], [1.0]]], dtype=torch.float64))

    def broken(mu: DiscreteMeasure, begin: Tensor, flaw: Tensor) -> DiscreteMeasure:
        at_start = (mu.points == begin).flatten(-2).all(-1)
        return mu.with_points(0.5 * mu.points.cos() + 0.1 + torch.where(at_start, 0.0, flaw)[..., None, None])

    law = "honest status: images that are NaN"
    few = replace(stop, rtol=1e-4)
    flaw = start.points.new_tensor([torch.nan, 0.0, 0.0])
    for in_dims in (None, 0):
        options: dict[str, Any] = {"in_dims": in_dims, "solver": solver, "stop": few}
        with stated(law):
            solution = fixed_point(broken, start, start.points, flaw, **options)
            others = fixed_point(broken, start, start.points, flaw.nan_to_num(0.0), **options)
        if int(solution.status[0]) == Status.CONVERGED.value:
            raise AssertionError(f"{law}: the sample ends as CONVERGED")
        if not torch.equal(solution.status[1:], others.status[1:]):
            raise AssertionError(f"{law}: status {solution.status.tolist()}; without them {others.status.tolist()}")
        assert_close(solution.measure.points[1:], others.measure.points[1:], f"{law} in one sample change another", rtol=rtol)


def _check_recovery(solver: Solver, moments: list[Moment]) -> None:
    """A step from a NaN image in sample 0: the others step on, and the sample does if the solver says that it recovers."""
    equation, at, state, _, _ = moments[2]
    if not equation.inner.batch_shape or solver.needs_measures:
        return
    nan = torch.zeros_like(at.norm)
    nan[0] = torch.nan
    residual = at.residual + nan[..., None, None]
    with stated("recovers: a step from an image that is NaN"):
        step = solver.step(equation, replace(at, residual=residual, norm=at.norm + nan, changes=None), state)
    finite = torch.isfinite(step.z).flatten(1).all(-1)
    if not bool(finite[1:].all()):
        raise AssertionError(f"one sample at a time: NaN in the image of one sample makes others not finite: {finite.tolist()}")
    ended = step.status is not None and int(step.status.flatten()[0]) >= 0
    if solver.recovers and (ended or not bool(finite[0])):
        seen = "ends the sample" if ended else "leads to an iterate that is not finite"
        raise AssertionError(
            f"recovers: {type(solver).__name__} says that it goes on from an image that is not finite, and its step {seen}"
        )


def _check_other_equations(solver: Solver, stop: Stop, converges: bool) -> None:
    """Equations that are not on measures, such as adjoint ones: here linear ones with one number for each atom."""
    g = torch.Generator().manual_seed(3)
    matrix = torch.randn(3, 4, 4, generator=g, dtype=torch.float64)
    matrix = 0.4 * matrix / torch.linalg.matrix_norm(matrix, 2, keepdim=True)
    b = torch.randn(3, 4, generator=g, dtype=torch.float64)
    law = "needs_measures: an equation with one number for each atom, which is not on measures"
    with stated(law):
        inner = InnerProduct(torch.full_like(b, 0.25), dims=1)
        equation = LinearEquation(lambda u: (matrix @ u.unsqueeze(-1)).squeeze(-1) - u, b, inner)
        outcome = iterate(equation, stop, z=torch.zeros_like(b), method=solver)
    if converges:
        expected = torch.linalg.solve(torch.eye(4, dtype=b.dtype) - matrix, b.unsqueeze(-1)).squeeze(-1)
        assert_close(outcome.value, expected, law, rtol=1e2 * stop.rtol)


def _check_unrolled(solver: Solver, map: Map, mu0: DiscreteMeasure, args: tuple[Any, ...], in_dims: Any, exact: bool) -> None:
    """Derivatives of a few steps, in the start and in the arguments, against finite differences."""
    g = torch.Generator().manual_seed(1)
    given = [mu0.points, *(a for a in args if isinstance(a, Tensor) and a.is_floating_point())]
    inputs = [t.detach().clone().requires_grad_() for t in given]
    directions = [torch.randn(t.shape, generator=g, dtype=t.dtype).to(t.device) * mask for t, mask in _masked(mu0, given)]
    loss_weights = torch.randn(mu0.points.shape, generator=g, dtype=mu0.dtype).to(mu0.device) * mu0.weights.unsqueeze(-1)
    few = Stop(rtol=1e-300, atol=0.0, max_steps=4)

    def loss(tensors: list[Tensor]) -> Tensor:
        points, *rest = tensors
        left = iter(rest)
        now = [next(left) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
        solution = fixed_point(map, mu0.with_points(points), *now, in_dims=in_dims, solver=solver, stop=few, adjoint=Unrolled())
        found: Tensor = (solution.measure.points * loss_weights).sum()
        return found

    law = "differentiable: derivatives of four steps that autograd recorded (adjoint=Unrolled())"
    with torch.enable_grad(), stated(law):
        value = loss(inputs)
        if not value.requires_grad:
            raise AssertionError(f"{law}: the result does not depend on the start; is something detached?")
        grads = torch.autograd.grad(value, inputs, materialize_grads=True)
    h = 1e-6
    with torch.no_grad():
        up, down = (loss([t + s * v for t, v in zip(given, directions, strict=True)]) for s in (h, -h))
    slope = torch.stack([(a * v).sum() for a, v in zip(grads, directions, strict=True)]).sum()
    if not bool(torch.isfinite(slope)):
        raise AssertionError(f"{law}: not finite")
    if exact:
        assert_close(slope, (up - down) / (2 * h), f"{law} and finite differences", rtol=1e-4, scale=1e-3)


def _masked(mu0: DiscreteMeasure, given: list[Tensor]) -> list[tuple[Tensor, Tensor | float]]:
    """Directions at atoms of mass zero are left out: their places are a convention."""
    return [(t, mu0.support().unsqueeze(-1) if i == 0 else 1.0) for i, t in enumerate(given)]
