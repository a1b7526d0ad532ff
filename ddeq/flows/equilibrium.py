"""`equilibrium`: a stationary measure of a functional as a differentiable function of what enters the functional."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch

from ddeq.autodiff import check_recordable
from ddeq.flows.combinations import check_combination
from ddeq.flows.descent import FunctionalDescent
from ddeq.flows.downhill import warn_of_ascent
from ddeq.flows.flow import by_energy
from ddeq.flows.games import game_equilibrium
from ddeq.flows.geometries import Geometry, Wasserstein
from ddeq.flows.lbfgs import LBFGS
from ddeq.flows.newton import NewtonFinish
from ddeq.flows.stationary import Stationary
from ddeq.flows.steppers import Euler, Stepper
from ddeq.flows.systems import System
from ddeq.flows.undirected import EulerOrHeun
from ddeq.flows.varying import watched_callback
from ddeq.functionals.base import Functional, Smoothness
from ddeq.functionals.dynamics import Dynamics
from ddeq.functionals.entropy import entropy_share
from ddeq.iteration import (
    ConvergenceError,
    Equation,
    Implicit,
    Outcome,
    Report,
    Solution,
    Stop,
    iterate,
)
from ddeq.iteration.declared import check_kinds
from ddeq.iteration.driver import watched
from ddeq.measures import DiscreteMeasure, check_mass
from ddeq.spaces.euclidean import Euclidean
from ddeq.spaces.space import Space

__all__ = ["equilibrium"]


def equilibrium(
    functional: Functional | Mapping[str, Functional],
    mu0: DiscreteMeasure | Mapping[str, DiscreteMeasure],
    *,
    stepper: Stepper | None = None,
    geometry: Geometry | Mapping[str, Geometry] = Wasserstein(),
    space: Space | Mapping[str, Space] = Euclidean(),
    stop: Stop | None = None,
    finish: bool = True,
    on_failure: Literal["raise", "warn"] = "raise",
    throw: bool = False,
    trace: bool = False,
    callback: Callable[[Report], object] | None = None,
) -> Solution:
    r"""A stationary measure, :math:`\nabla_W F_\theta(\mu^*) = 0`, by L-BFGS and Newton's method; a function of :math:`\theta`.

    .. math:: \frac{\mathrm dZ^*}{\mathrm d\theta} = -H^+ \frac{\partial g}{\partial\theta}, \qquad
              g(Z, \theta) = \nabla_W F_\theta \text{ at the atoms } Z, \qquad H = \frac{\partial g}{\partial Z}

    (equilibria, T16), at every order of derivative and at constant memory, by solves with Hessian-vector products. Gradients
    reach the parameters of the functional, its targets and coefficients, ``mu0.weights``, and ``mu0.marks`` where they are
    read. Each sample of a batch is flowed and judged by itself.

    Parameters
    ----------
    functional
        The energy :math:`F_\theta`; of several measures by name a joint one, or one for each, a game. Twice differentiable at
        the stationary measure, for a derivative.
    mu0
        The start; its weights and marks stay.
    stepper
        How the flow steps; default ``LBFGS()``, in another geometry than `Wasserstein` ``AdaptiveEuler()``, and steps of Heun's
        method of a length that is found on the way where the velocity is not that of a descent, as in a game.
    geometry
        Of the flow. The stationary measures do not depend on it, if it is that of `Wasserstein`, or `Stein` with a strictly
        positive definite kernel; which of them is found may, and may depend on the stepper.
    space
        Where the atoms live. The equilibrium is then one of the functional on that space: the tangent part of the gradient
        vanishes, and at a boundary what is left of it points out. Derivatives take the Riemannian Hessian, on the face of the
        boundary where the atom is (spaces, T22); no gradient reaches the space.
    stop
        Tolerance and most steps. Default: ``rtol`` 1e-6 in double and 1e-4 in single precision, 2000 steps. The
        error of derivatives is about that of the points, relative to the length over which the Hessian changes.
    finish
        Whether samples leave the flow for Newton's method where that lowers the energy (see the notes); not done where the
        functional is twice differentiable almost everywhere only, as those are that declare no ``smoothness``, nor where
        the velocity leads uphill. If false, the flow alone goes to the end.
    on_failure
        What to do where the equations of the derivative have no answer: "raise" a `ConvergenceError` in backward, or "warn"
        with a `ConvergenceWarning` and take zero for these samples (the best answer found, where only a solve took too long).
    throw
        Raise a `ConvergenceError`, which carries the solution, unless all samples converged.
    trace
        Keep the residuals of all steps.
    callback
        Called with a `ddeq.iteration.Report` at every step.

    Returns
    -------
    Solution
        The stationary measure, with residual, steps and status of each sample. ``residual`` is the norm of the gradient
        (of the velocity, in another geometry) relative to the start; ``steps`` counts those of flow and Newton's method alike;
        ``evaluations`` velocities, and gradients and products with the Hessian of Newton's method, each once for
        all samples that take part (not energies); ``error_bound`` is infinite: a gradient
        alone bounds no distance.

    Raises
    ------
    ValueError
        If an option is not what it should be; if ``mu0.points`` require grad; if a tensor that requires grad enters the
        functional unseen; if the geometry is another and the functional has an entropy, whose flow it changes.
    RuntimeError
        Under transforms of ``torch.func`` and ``torch.vmap``: measures are batched already.
    ConvergenceError
        With ``throw``, unless all samples converged. In backward, where a derivative is asked for that does not exist or cannot
        be trusted: see the notes.

    Warns
    -----
    NoDescentWarning
        If Newton's method was not used because the velocity leads uphill for some samples, as in a game, whose mobility is
        indefinite.
    ConvergenceWarning
        In backward: of samples that did not converge (derivatives are taken where they are) or diverged (zero); of a loss
        that depends on how the equilibrium is turned, where rotations leave the functional as it is.

    Notes
    -----
    Steps of L-BFGS take one gradient each. Newton's method is tried once the velocity is a tenth of that at the start and
    20 steps of another stepper are done, or 300 of L-BFGS, again at once where it helped, ever later where not, and where
    the flow is stuck; a step takes at most 64 products with the Hessian. It is accepted only if the energy falls by a share
    of what the quadratic model promises; or, below what rounding lets energies tell, if the energy rises by no more than
    that and the norm of the gradient falls, with no negative curvature in sight. Along negative curvature steps lead
    downhill, and none of them is a last one: like a flow, it ends in a saddle only if the gradient has no part along the
    way out, to the tolerance (equilibria, T16). Each sample has the result that it has alone.

    Translations and rotations that leave :math:`F_\theta` as it is are found from gradients at other configurations (above
    dimension 6: all translations, or none) and left out of the equations. The answer is that of an equilibrium which does not
    move along them. In the geometry of Wasserstein it keeps the mean, as the flow does.

    Refused are: a kink of :math:`F` at the atoms; a loss or a tensor with a slope along directions in which :math:`H` is
    singular and that are no symmetries; atoms so far from stationary that one step of Newton's method changes the equations by
    more than a tenth, as at degenerate minima and where a flow creeps to infinity.

    Atoms of mass zero move in the flow, but their derivative is zero by convention; they influence no other.

    References
    ----------
    :cite:t:`blondel2022efficient`.

    Examples
    --------
    >>> from ddeq.functionals import MMD
    >>> from ddeq.kernels import Gaussian
    >>> target = torch.tensor([[3.0]], requires_grad=True)
    >>> F = MMD(DiscreteMeasure(target), Gaussian(2.0))
    >>> z = equilibrium(F, DiscreteMeasure(torch.tensor([[2.0]]))).measure.points
    >>> (gradient,) = torch.autograd.grad(z.square().sum(), target)  # z is the target, so the gradient is 2 * 3
    >>> round(z.item(), 2), round(gradient.item(), 1)
    (3.0, 6.0)
    """
    rest: dict[str, Any] = {"stop": stop, "finish": finish, "on_failure": on_failure, "throw": throw, "trace": trace}
    system = System.of(functional, mu0)
    if system is None:
        alone: Any = (functional, mu0)
        return _equilibrium(*alone, stepper=stepper, geometry=geometry, space=space, callback=callback, **rest)  # type: ignore[arg-type]
    options = system.options(stepper, geometry, space=space)
    parts = {name: options[name] for name in ("stepper", "geometry", "space")}
    return system.solved(_equilibrium(system.dynamics, system.start, callback=system.callback(callback), **parts, **rest))


def _equilibrium(
    functional: Any,
    mu0: DiscreteMeasure,
    *,
    stepper: Stepper | None,
    geometry: Geometry,
    space: Space,
    stop: Stop | None,
    finish: bool,
    on_failure: Literal["raise", "warn"],
    throw: bool,
    trace: bool,
    callback: Callable[[Report], object] | None,
) -> Solution:
    """The stationary measure of one functional or packed game."""
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            "equilibrium cannot run inside torch.func transforms or vmap; it is batched, and differentiable by autograd"
        )
    if isinstance(functional, Dynamics) and functional.is_force:
        game: dict[str, Any] = {"finish": finish, "on_failure": on_failure, "trace": trace, "callback": callback}
        return _thrown(_of_game(functional, mu0, stepper, geometry, space, stop, game), throw)
    if stepper is None:
        stepper = LBFGS() if isinstance(geometry, Geometry) and geometry.is_gradient else EulerOrHeun()
    _check_options(functional, mu0, stepper, geometry, space, stop, finish, on_failure)
    check_recordable("an equilibrium")
    _check_start(mu0)
    stop = stop or _default_stop(mu0)
    mu0 = check_combination(functional, mu0, stepper, geometry, None, None, space)
    check_mass("mu0", mu0)
    way = NewtonFinish(stepper, stop) if finish and functional.smoothness < Smoothness.ALMOST_EVERYWHERE else stepper
    descent = FunctionalDescent(functional, mu0, geometry, space=space)

    def run(equation: Equation, stop: Stop, *, watch: bool = False) -> Outcome:
        if watch:
            watched(equation, mu0.points.detach())
        return iterate(
            descent,
            stop,
            z=mu0.points.detach(),
            method=way,
            patient=True,
            best=False,
            metric=partial(by_energy, stop) if stop.metric == "energy" else None,
            trace=trace,
            callback=None if callback is None else watched_callback(callback, functional),
        )

    eps = torch.finfo(mu0.dtype).eps
    rtol = max(0.1 * stop.rtol, 20 * eps) if stop.rtol < 1e-5 else 1e-6
    free = geometry.is_wasserstein and not descent.has_metric
    equation = Stationary(functional, mu0, space=descent.space, conserves_mean=free, rtol=rtol)
    outcome = Implicit(on_failure=on_failure).solve(equation, run, stop)
    warn_of_ascent(outcome, way, descent)
    points = outcome.value
    chart = descent.in_chart(points.detach())[1] if points.requires_grad else None
    points = points if chart is None else chart.points(points)
    solution = Solution(
        measure=mu0.with_points(points),
        residual=outcome.residual,
        steps=outcome.steps,
        status=outcome.status,
        evaluations=outcome.evaluations,
        error_bound=torch.full_like(outcome.residual, torch.inf),
        trace=outcome.trace,
    )
    return _thrown(solution, throw)


def _of_game(
    dynamics: Dynamics,
    mu0: DiscreteMeasure,
    stepper: Stepper | None,
    geometry: Geometry,
    space: Space,
    stop: Stop | None,
    options: dict[str, Any],
) -> Solution:
    """The equilibrium of a packed game, once its parts are known to make sense together."""
    check_recordable("an equilibrium")
    _check_start(mu0)
    mu0 = check_combination(dynamics, mu0, stepper or Euler(), geometry, None, None, space)
    check_mass("mu0", mu0)
    stop = stop or _default_stop(mu0)
    if stop.metric is not None:
        raise ValueError(f"stop: expected the metric None (the velocity) for a game, got {stop.metric!r}")
    return game_equilibrium(dynamics, mu0, stepper=stepper, space=space, stop=stop, **options)


def _default_stop(mu0: DiscreteMeasure) -> Stop:
    return Stop(rtol=1e-6 if mu0.dtype == torch.float64 else 1e-4, max_steps=2000)


def _check_start(mu0: DiscreteMeasure) -> None:
    if torch.is_grad_enabled() and mu0.points.requires_grad:
        raise ValueError(
            "mu0: its points require grad, but an equilibrium does not depend on where the flow starts. Use mu0 with "
            "detached points, mu0.with_points(mu0.points.detach()), or differentiate the steps of ddeq.flow(...)"
        )


def _thrown(solution: Solution, throw: bool) -> Solution:
    """The solution; with ``throw`` a `ConvergenceError` unless all samples converged."""
    if throw and not bool(solution.converged.all()):
        raise ConvergenceError(f"the equilibrium was not found: {solution.summary()}", solution)
    return solution


def _check_stationary(functional: object) -> None:
    """Raise a `ValueError` that says why where dynamics have no stationary measure that is that of an energy."""
    if isinstance(functional, Dynamics) and functional.varies:
        raise ValueError(
            f"functional: {functional!r} is another energy in each step, and their stationary measures differ; take one, or "
            "ddeq.flow with steps that fall to zero"
        )
    if isinstance(functional, Dynamics) and not functional.has_energy:
        raise ValueError(
            f"functional: {functional!r} has no energy, whose Hessian gives the derivative of a stationary measure; use "
            "ddeq.fixed_point of the map that moves atoms by a step, or ddeq.flow with a stop"
        )


def _check_options(
    functional: object,
    mu0: object,
    stepper: object,
    geometry: object,
    space: object,
    stop: object,
    finish: object,
    on_failure: object,
) -> None:
    _check_stationary(functional)
    check_kinds(
        ("functional", functional, Functional, "a ddeq.Functional"),
        ("mu0", mu0, DiscreteMeasure, "a DiscreteMeasure"),
        ("stepper", stepper, Stepper, "a ddeq.flows.Stepper such as AdaptiveEuler()"),
        ("geometry", geometry, Geometry, "a ddeq.flows.Geometry such as Wasserstein()"),
        ("space", space, Space, "a ddeq.spaces.Space such as Sphere()"),
        ("stop", stop, Stop | None, "a Stop such as Stop(rtol=1e-6)"),
        ("finish", finish, bool, "True or False"),
    )
    if isinstance(stop, Stop) and stop.metric not in (None, "energy"):
        raise ValueError(f"stop: expected the metric None (the gradient) or 'energy' for a flow, got {stop.metric!r}")
    if on_failure not in ("raise", "warn"):
        raise ValueError(f"on_failure: expected 'raise' or 'warn', got {on_failure!r}")
    assert isinstance(geometry, Geometry)
    assert isinstance(functional, Functional)
    if geometry.replaces_entropy:
        share = entropy_share(functional)
        if not (isinstance(share, float) and share == 0.0):
            raise ValueError(
                f"geometry: {geometry.label} flows a functional with an entropy to another measure than the one where "
                "its Wasserstein gradient vanishes; use Wasserstein()"
            )
