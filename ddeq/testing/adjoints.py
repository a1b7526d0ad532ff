"""`check_adjoint`: are the gradients through a solve right, and is the solve the same with and without them?"""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ddeq.iteration import Adjoint, Equation, InnerProduct, Solver, Stop, iterate
from ddeq.measures import DiscreteMeasure
from ddeq.solvers import Picard, fixed_point
from ddeq.testing.close import assert_close
from ddeq.testing.differentiated import Map, Problem, gradients
from ddeq.testing.problems import MeanField, trial_batch
from ddeq.testing.purity import assert_unchanged, check_declarations, copied, stated

__all__ = ["check_adjoint"]


def check_adjoint(
    adjoint: Adjoint,
    map: Map | None = None,
    mu0: DiscreteMeasure | None = None,
    *args: Any,
    in_dims: Any = None,
    exact: bool = True,
    second_order: bool | None = None,
    solver: Solver | None = None,
    stop: Stop = Stop(rtol=1e-12, atol=1e-14, max_steps=200),
    rtol: float = 1e-5,
) -> None:
    """Hold an adjoint to what `ddeq.fixed_point` relies on.

    The laws: the solution is the same with and without gradients, and what was given, the grad mode included, is left as it was;
    gradients reach weights, marks, arguments and the parameters of a module, and where they are ``exact`` are those of finite
    differences (implicit differentiation, T7), as are second derivatives; several solves may come before one backward pass;
    samples that diverged have zero gradients, and change no other sample's; a tensor that the map captures is an error, or its
    gradient is right; gradients reach the start if the adjoint ``records`` the solve; equations of any kind are differentiated.

    Parameters
    ----------
    adjoint
        What to check.
    map, mu0, args, in_dims
        A problem as in `ddeq.fixed_point`, in double precision, with one solution; default: a small module on three measures.
    exact
        Whether gradients are those of the solution; else only that they are finite and reach every tensor.
    second_order
        Whether second derivatives are; default: where first ones are.
    solver, stop
        How the problem is solved: tightly; default: by `Picard`.
    rtol
        Allowed relative difference to finite differences.

    Raises
    ------
    AssertionError
        Saying which law broke, with numbers.
    """
    check_declarations(adjoint, Adjoint, "Adjoint", ("records",))
    mu0 = trial_batch(marks=True) if mu0 is None else mu0.detach()
    if map is None:
        map, in_dims = MeanField().to(mu0.device), (0, None)
        args = mu0.points.new_tensor([0.5, 0.8, 1.0]), mu0.points.new_tensor([0.1, -0.2])
    problem = Problem(adjoint, map, mu0, args, in_dims, solver or Picard(), stop)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _check_value(problem)
        grads = _check_first(problem, exact, rtol)
        if exact if second_order is None else second_order:
            _check_second(problem, rtol)
        _check_several(problem, grads)
        _check_diverged(adjoint)
        _check_captured(adjoint)
        _check_errors(adjoint)
        _check_other_equations(adjoint, exact, rtol)
        if adjoint.records:
            _check_start(problem, rtol if exact else None)


def _check_value(problem: Problem) -> None:
    """The same solution with and without gradients; nothing that was given is changed."""
    law = "value: the solution is another where gradients are wanted than where they are not"
    tensors = problem.fresh()
    before = copied(tensors=tensors, mu0=problem.mu0, map=problem.map)
    for mode in (False, True):
        with torch.set_grad_enabled(mode), stated("solve"):
            found = problem.solve(tensors)
            after = torch.is_grad_enabled()
        if after != mode:
            raise AssertionError(f"grad mode: it was {mode} before the solve and is {after} after it")
        if not mode:
            expected = found
        elif found.measure.points.shape != expected.measure.points.shape or not torch.equal(found.status, expected.status):
            raise AssertionError(f"{law}: it ends as {found.status.tolist()}, and else as {expected.status.tolist()}")
    assert_close(found.measure.points, expected.measure.points, law, units=1e2)
    if expected.measure.points.requires_grad:
        raise AssertionError("grad mode: under torch.no_grad the solution has a history")
    if not bool(found.converged.all()):
        raise AssertionError(f"the problem was not solved: {found.summary()}; give a stop with more steps, or another solver")
    assert_unchanged("purity: the solve changes what it was given", before, tensors=tensors, mu0=problem.mu0, map=problem.map)
    filled = [k for k, t in tensors.items() if t.grad is not None]
    if filled:
        raise AssertionError(f"purity: the solve fills the .grad of {', '.join(filled)}; use torch.autograd.grad")


def _check_first(problem: Problem, exact: bool, rtol: float) -> dict[str, Tensor]:
    """Those of the solution along a direction in each tensor, or at least something in each."""
    tensors, law, h = problem.fresh(), "gradients", 1e-6
    with torch.enable_grad(), stated(law):
        grads = gradients(problem.loss(tensors), tensors, law)
    for name, gradient in grads.items():
        with torch.no_grad():
            difference = (problem.loss(problem.moved(name, h)) - problem.loss(problem.moved(name, -h))) / (2 * h)
        if exact:
            slope = (gradient * problem.directions[name]).sum()
            about = f"gradients (implicit differentiation, T7): along a direction in {name}, and finite differences"
            assert_close(slope, difference, about, rtol=rtol, scale=1e-2)
        elif float(difference.abs()) > 1e-6 and not bool((gradient != 0).any()):
            raise AssertionError(f"{law}: that in {name} is zero, and the solution changes at the rate {float(difference):.3e}")
    return grads


def _check_second(problem: Problem, rtol: float) -> None:
    """Derivatives of the slope along all directions at once."""
    law, h = "second derivatives", 1e-5

    def slope(tensors: dict[str, Tensor], create_graph: bool = False) -> Tensor:
        with torch.enable_grad(), stated(law):
            grads = gradients(problem.loss(tensors), tensors, law, create_graph)
        return torch.stack([(grads[k] * v).sum() for k, v in problem.directions.items()]).sum()

    tensors = problem.fresh()
    seconds = gradients(slope(tensors, create_graph=True), tensors, law)
    for name, second in seconds.items():
        difference = (slope(problem.moved(name, h)) - slope(problem.moved(name, -h))).detach() / (2 * h)
        about = f"{law} (implicit differentiation, T7): in {name}, and finite differences of the gradients"
        assert_close((second * problem.directions[name]).sum(), difference, about, rtol=1e2 * rtol, scale=1e-1)


def _check_several(problem: Problem, grads: dict[str, Tensor]) -> None:
    """Two solves before one backward pass."""
    law = "two solves before one backward pass"
    tensors, others = problem.fresh(), {k: (t + 0.0).requires_grad_() for k, t in problem.all.items()}
    others["weights"] = (0.5 * problem.all["weights"]).requires_grad_()
    with torch.enable_grad(), stated(law):
        apart = gradients(problem.loss(others), others, law)
        together = problem.loss(tensors) + problem.loss(others)
        found = gradients(together, tensors | {f"other {k}": t for k, t in others.items()}, law)
    for name in tensors:
        assert_close(found[name], grads[name], f"{law}: gradient in {name}", rtol=1e-8, scale=1e-6)
        assert_close(found[f"other {name}"], apart[name], f"{law}: gradient in {name}", rtol=1e-8, scale=1e-6)


def _line(mu: DiscreteMeasure, a: Tensor, b: Tensor) -> DiscreteMeasure:
    a = a[..., None, None] if a.ndim else a
    return mu.with_points(a * mu.points + b)


def _check_diverged(adjoint: Adjoint) -> None:
    """Samples that diverged get zero, and the others what they get alone."""
    mu0 = DiscreteMeasure(torch.ones(3, 2, 1, dtype=torch.float64))
    stop, law = Stop(rtol=1e-10, atol=1e-12, max_steps=100), "samples that diverged"
    grads = []
    for values in ([0.5, 30.0, 0.2], [0.5, 0.2]):
        rate = torch.tensor(values, dtype=torch.float64, requires_grad=True)
        shift = torch.tensor(1.0, dtype=torch.float64)
        with torch.enable_grad(), stated(law):
            start = mu0[: len(values)]
            solution = fixed_point(_line, start, rate, shift, in_dims=(0, None), solver=Picard(), stop=stop, adjoint=adjoint)
            good = solution.measure.points.square().flatten(1).sum(-1)
            (gradient,) = torch.autograd.grad(good.sum(), rate)
        grads.append(gradient)
    assert_close(grads[0][::2], grads[1], f"{law} change the gradients of the others", rtol=1e-8)
    if not adjoint.records and float(grads[0][1]) != 0.0:
        raise AssertionError(f"{law}: the gradient of one is {float(grads[0][1]):.3e}; expected zero, it has no fixed point")


def _check_captured(adjoint: Adjoint) -> None:
    """A tensor that the map captures is an error, or gets its gradient."""
    captured = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    shift = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    mu0 = DiscreteMeasure(torch.zeros(2, 1, dtype=torch.float64))
    law = "captured tensors: one that requires grad enters the map without being an argument"
    with torch.enable_grad():
        try:
            stop = Stop(rtol=1e-12, max_steps=100)
            solution = fixed_point(lambda mu, b: _line(mu, captured, b), mu0, shift, solver=Picard(), stop=stop, adjoint=adjoint)
            gradient = torch.autograd.grad(solution.measure.points[0, 0], captured, allow_unused=True)[0]
        except (ValueError, RuntimeError):
            return
    if gradient is None or not adjoint.records:
        raise AssertionError(f"{law}, and its gradient is lost without a word; call run(equation, stop, watch=True)")
    assert_close(gradient, 1.0 / (1.0 - captured).square(), f"{law}; its gradient", rtol=1e-4)


def _check_errors(adjoint: Adjoint) -> None:
    """The grad mode is what it was after a map that raises an error in a solve."""

    class Expected(Exception):
        pass

    def fails(mu: DiscreteMeasure, b: Tensor) -> DiscreteMeasure:
        raise Expected

    for mode in (False, True):
        with torch.set_grad_enabled(mode):
            try:
                b = torch.ones((), dtype=torch.float64, requires_grad=True)
                fixed_point(fails, DiscreteMeasure(torch.zeros(2, 1, dtype=torch.float64)), b, adjoint=adjoint)
            except Expected:
                pass
            else:
                raise AssertionError("errors: one that the map raises does not reach the caller")
            if torch.is_grad_enabled() != mode:
                raise AssertionError(f"grad mode: it was {mode} before an error in the map and is {not mode} after it")


class _Line(Equation):
    r""":math:`a z + b - z = 0` for one number at each atom: an equation that is not one of a map on measures."""

    def __init__(self, a: Tensor, b: Tensor) -> None:
        self.tensors, self.inner = (a, b), InnerProduct(torch.full_like(b.detach(), 1.0 / b.shape[-1]), dims=1)

    def residual(self, z: Tensor, *tensors: Tensor) -> Tensor:
        a, b = tensors or self.tensors
        return a.unsqueeze(-1) * z + b - z


def _check_other_equations(adjoint: Adjoint, exact: bool, rtol: float) -> None:
    """Any equation, not only those of `fixed_point`: here one whose solution is b / (1 - a)."""
    law = "other equations: a z + b - z = 0 for numbers z, solved by adjoint.solve(equation, run, stop)"
    g = torch.Generator().manual_seed(5)
    a = torch.tensor([0.1, 0.5, -0.4], dtype=torch.float64, requires_grad=True)
    b = torch.randn(3, 4, generator=g, dtype=torch.float64).requires_grad_()
    stop = Stop(rtol=1e-12, atol=1e-14, max_steps=200)
    with torch.enable_grad(), stated(law):
        outcome = adjoint.solve(_Line(a, b), partial(iterate, z=torch.zeros_like(b), method=Picard()), stop)
        grads = gradients(outcome.value.square().sum(), {"a": a, "b": b}, law)
    solution = b.detach() / (1.0 - a.detach()).unsqueeze(-1)
    assert_close(outcome.value, solution, law, rtol=1e-10)
    if exact:
        expected = 2.0 * solution / (1.0 - a.detach()).unsqueeze(-1)
        assert_close(grads["b"], expected, f"{law}: gradient in b", rtol=rtol)
        assert_close(grads["a"], (expected * solution).sum(-1), f"{law}: gradient in a", rtol=rtol)


def _check_start(problem: Problem, rtol: float | None) -> None:
    """Gradients of a few steps in the start."""
    law, few, h = "records: gradients of three steps in the start", Stop(rtol=1e-300, atol=0.0, max_steps=3), 1e-6
    points, tensors = problem.mu0.points.clone().requires_grad_(), problem.all
    with torch.enable_grad(), stated(law):
        gradient = gradients(problem.loss(tensors | {"start": points}, stop=few), {"start": points}, law)["start"]
    v = torch.randn(points.shape, generator=torch.Generator().manual_seed(2), dtype=points.dtype).to(points)
    v = torch.where(problem.mu0.support().unsqueeze(-1), v, 0.0)
    up, down = (problem.loss(tensors | {"start": (points + s * v).detach()}, stop=few) for s in (h, -h))
    if rtol is not None:
        difference = (up - down).detach() / (2 * h)
        assert_close((gradient * v).sum(), difference, f"{law}, and finite differences", rtol=rtol, scale=1e-3)
