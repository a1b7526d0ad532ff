"""`fixed_point`: fixed points of maps on measures, differentiable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from ddeq.autodiff import reusable_graphs
from ddeq.flows.geometries import Wasserstein
from ddeq.flows.systems import System
from ddeq.functionals.dynamics import Dynamics
from ddeq.functionals.packing import Species
from ddeq.iteration import (
    Adjoint,
    Anderson,
    ConvergenceError,
    Implicit,
    Iterate,
    Outcome,
    Report,
    Solution,
    Solver,
    Stop,
    iterate,
)
from ddeq.iteration.checks import check_can_be_recorded
from ddeq.iteration.declared import check_kinds
from ddeq.iteration.samples import Measured
from ddeq.measures import DiscreteMeasure, check_mass
from ddeq.solvers.joint_equation import JointEquation
from ddeq.solvers.map_equation import Map, MapEquation
from ddeq.solvers.metric import check_metric
from ddeq.solvers.system_equation import SystemEquation, packed_map
from ddeq.solvers.weight_equation import WeightEquation
from ddeq.spaces.euclidean import Euclidean
from ddeq.spaces.space import Space

__all__ = ["fixed_point"]

Moves = Literal["points", "weights", "both"]
EQUATIONS: dict[str, type[MapEquation]] = {
    "points": MapEquation,
    "weights": WeightEquation,
    "both": JointEquation,
    "system": SystemEquation,
}


def fixed_point(
    map: Map,
    mu0: DiscreteMeasure | Mapping[str, DiscreteMeasure],
    *args: Any,
    in_dims: Any = None,
    moves: Moves = "points",
    space: Space | Mapping[str, Space] = Euclidean(),
    solver: Solver = Anderson(),
    stop: Stop = Stop(),
    adjoint: Adjoint = Implicit(),
    throw: bool = False,
    trace: bool = False,
    callback: Callable[[Report], object] | None = None,
) -> Solution:
    r"""A fixed point :math:`\mu^* = \Phi(\mu^*)` of a map on measures, as a differentiable function of what enters it.

    Each sample of a batch stops by itself; its result is the one that it gets alone, to rounding.

    Parameters
    ----------
    map
        ``map(mu, *args)``, a function or an ``nn.Module``, gives a measure with the same marks, number of atoms and what
        ``moves`` does not name: by default, the weights. It should be measure consistent (`ddeq.testing.check_map`). If it moves
        points, it may declare ``lipschitz``, an upper bound of its Lipschitz constant in :math:`L^2(\mu)` at fixed weights and
        marks: then ``error_bound`` is a bound.
    mu0
        The start; or measures by name, of any numbers of atoms and dimensions: then the map takes and gives such a dict, and
        ``space`` may be one for each. A warm start is an earlier solution's ``solution.measure.detach()``: if it solves the new
        problem too, one evaluation tells so. (Solvers keep nothing from one solve to the next.)
    args
        What the map takes besides; any pytrees.
    in_dims
        Which dimension of the tensors in ``args`` is the first one of the batch, as in ``torch.vmap`` (None: it carries no
        batch). Given this, samples that have finished are removed from the computation.
    moves
        What the map moves: ``"points"``; ``"weights"``, which keep their mass, are never negative, and stay zero where they are;
        or ``"both"``. Changes of weights are measured by :math:`\sum_i \mathrm dw_i^2 / w_i` over the atoms with mass (moving
        weights, T25), of both by the sum of the squared relative residuals.
    space
        Where the atoms live, a `ddeq.spaces.Space`: iterates are projected to it, and the map must stay there. Residuals are
        those of the surrounding space; derivatives are those along the space (spaces, T22).
    solver
        How to step: `Picard`, `Anderson`, `Broyden`, `NewtonKrylov`, `ParticleFlow`, which moves points; or `Auto`, which
        chooses.
    stop
        Tolerances and most steps. A sample is CONVERGED at the first iterate whose residual is at most ``rtol``, if the
        absolute residual is also at most half of its largest so far, or at most ``rtol`` times the size
        :math:`|\Phi(\mu_0)|` at the start. (Next to an iterate that only grows, as that of a translation, every residual
        becomes small. Nor is an iterate accepted to which a solver has extrapolated, and whose residual has not fallen in
        proportion to how far away it is.) With a metric, such as ``Stop(metric=MMD)``, the residual is
        :math:`\sqrt{D(\mu, \Phi(\mu)) / D(0_\#\mu, \Phi(\mu))}`,
        which does not ask which atom goes where; it sees half as many digits, and may be small far from a fixed point
        (fixed-point discrepancy, T4).
    adjoint
        How gradients flow: `Implicit`, `Phantom`, `OneStep`, `Unrolled`. They reach the parameters of the module, tensors
        in ``args``, and of ``mu0`` what does not move, such as ``mu0.weights`` and ``mu0.marks``.
    throw
        Raise a `ConvergenceError`, which carries the solution, unless all samples converged.
    trace
        Keep the residuals of all iterates.
    callback
        Called with a `ddeq.iteration.Report` at every iterate.

    Returns
    -------
    Solution
        Iterates of least residual, with residuals, steps and status of each sample.

    Raises
    ------
    ValueError
        If the map changes the number of atoms, their dimension, dtype, marks, mass, or what ``moves`` does not name; if it
        makes a weight negative, or gives mass to an atom without; if what moves of ``mu0`` requires grad and the adjoint is not
        `Unrolled`; if the solver cannot move what is to move; if a tensor that requires grad enters the map unseen; if a mass is
        zero; if an option is unknown.
    ConvergenceError
        With ``throw``, unless all samples converged.
    RuntimeError
        Under transforms of ``torch.func`` and ``torch.vmap``: measures are batched already.

    Warns
    -----
    ConvergenceWarning
        In backward, where a gradient is not that of a fixed point: of samples that did not converge or diverged, and of adjoint
        equations that were not solved.

    Notes
    -----
    Under ``torch.autocast`` the map runs in the lower precision, in backward too; iterates, residuals and what solvers make of
    them stay in the precision of ``mu0``. A compiled map has first derivatives only.

    Examples
    --------
    >>> mu = DiscreteMeasure(torch.tensor([[0.0]]))
    >>> b = torch.tensor(1.0, requires_grad=True)
    >>> solution = fixed_point(lambda mu, b: mu.push_forward(lambda z: 0.5 * z + b), mu, b)
    >>> z = solution.measure.points.squeeze()
    >>> (gradient,) = torch.autograd.grad(z.square(), b)
    >>> round(z.item(), 2), round(gradient.item(), 2)
    (2.0, 8.0)
    """
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            "fixed_point cannot run inside torch.func transforms or vmap; it is batched, and differentiable by autograd"
        )
    packing, kind = None, str(moves)
    if isinstance(mu0, Mapping):
        system = System.of(_NOTHING, mu0)
        assert system is not None
        assert isinstance(system.packing, Species)
        _check_system(map, moves, solver, stop)
        space = system.options(None, Wasserstein(), space=space)["space"]
        packing, kind, mu0 = system.packing, "system", system.start_measure
        map = packed_map(map, packing)
    elif isinstance(space, Mapping):
        raise ValueError("space: expected one space for one measure, got a dict; spaces by name are for measures by name")
    _check_options(map, mu0, moves, space, solver, stop, adjoint)
    assert isinstance(space, Space)
    if space != Euclidean():
        mu0 = space.admitted(mu0)
    equation = EQUATIONS[kind](map, mu0, args, in_dims, space=space)
    run = partial(
        iterate,
        z=equation.start(),
        method=solver,
        metric=partial(_judged, stop) if equation.judges or stop.metric is not None else None,
        trace=trace,
        callback=callback,
    )
    with reusable_graphs():
        outcome = adjoint.solve(equation, run, stop)
    measure = equation.measure(outcome.value)
    measure = measure.with_points(space.project(measure.points)) if equation.constrained else measure
    solution = Solution(
        measure=measure if packing is None else packing.unpack(measure),
        residual=outcome.residual,
        steps=outcome.steps,
        status=outcome.status,
        evaluations=outcome.evaluations,
        error_bound=_error_bound(outcome, getattr(map, "lipschitz", None) if moves == "points" else None, stop),
        trace=outcome.trace,
        args=args,
        used=_used(solver, outcome),
    )
    if throw and not bool(solution.converged.all()):
        raise ConvergenceError(f"the fixed point was not found: {solution.summary()}", solution)
    return solution


class _Nothing(Dynamics):
    """What is packed where a map is all that there is."""


_NOTHING = _Nothing()


def _check_system(map: object, moves: str, solver: object, stop: Stop) -> None:
    """What makes no sense for several measures."""
    if not callable(map):
        raise ValueError(f"map: expected a function of measures by name, got {type(map).__name__}")
    if moves != "points":
        raise ValueError(f"moves: of several measures points move, got {moves!r}; solve for weights of one measure at a time")
    if isinstance(solver, Solver) and solver.needs_measures:
        raise ValueError(f"solver: {type(solver).__name__} solves for one measure; take Anderson() or another point solver")
    if stop.metric is not None:
        raise ValueError("stop: expected the metric None for several measures, whose residual is that of all their points")


def _judged(stop: Stop, equation: MapEquation, at: Iterate) -> Measured:
    return equation.judged(at, stop)


def _used(solver: Solver, outcome: Outcome) -> dict[str, Tensor]:
    """Steps with each part of a solver that has several, else with the one."""
    if solver.parts:
        return dict(zip(solver.parts, outcome.note.unbind(-1), strict=True))
    return {type(solver).__name__: outcome.steps}


def _error_bound(outcome: Outcome, lipschitz: Any, stop: Stop) -> Tensor:
    """A bound where the map declares its Lipschitz constant, else an estimate from the growth seen (error bounds, T8)."""
    absolute, growth = outcome.absolute, outcome.growth
    if lipschitz is None:
        known = (growth > 0) & (growth < 1) & (stop.metric is None)  # a metric does not see whether atoms have kept their places
    else:
        growth = torch.as_tensor(lipschitz).detach().to(absolute).expand_as(absolute)
        known = growth < 1
    return torch.where(known, absolute / torch.where(known, 1.0 - growth, 1.0), torch.inf)


def _check_options(
    map: Map, mu0: DiscreteMeasure, moves: object, space: object, solver: Solver, stop: Stop, adjoint: Adjoint
) -> None:
    given: Any = mu0
    if not isinstance(given, DiscreteMeasure):
        remedy = "; a warm start is mu0=solution.measure.detach()" if isinstance(given, Solution) else ""
        raise ValueError(f"mu0: expected a DiscreteMeasure, got {type(given).__name__}{remedy}")
    if not callable(map):
        raise ValueError(f"map: expected a function of a measure, got {type(map).__name__}")
    check_kinds(
        ("space", space, Space, "a ddeq.spaces.Space such as Sphere()"),
        ("solver", solver, Solver, "a ddeq.solvers.Solver such as Anderson()"),
        ("stop", stop, Stop, "a Stop such as Stop(rtol=1e-4)"),
        ("adjoint", adjoint, Adjoint, "a ddeq.solvers.Adjoint such as Implicit()"),
    )
    if moves not in ("points", "weights", "both"):
        raise ValueError(f"moves: expected 'points', 'weights' or 'both', got {moves!r}")
    if moves != "points" and solver.needs_measures:
        raise ValueError(
            f"solver: {solver!r} moves points, and with moves={moves!r} weights are to move; take Picard(), Anderson(), "
            "Broyden(), NewtonKrylov() or Auto()"
        )
    check_mass("mu0", mu0)
    if stop.metric is not None:
        check_metric(stop.metric, mu0)
    if torch.is_grad_enabled() and adjoint.records:
        check_can_be_recorded(solver)
    for name in ("points", "weights") if torch.is_grad_enabled() and not adjoint.records else ():
        if moves in (name, "both") and getattr(mu0, name).requires_grad:
            raise ValueError(
                f"mu0: its {name} require grad, but an equilibrium does not depend on where the solve starts. Use mu0 with "
                f"detached {name}, mu0.with_{name}(mu0.{name}.detach()), or differentiate the solve with adjoint=Unrolled()"
            )
