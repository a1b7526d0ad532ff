"""`equilibrium`: a stationary measure of a functional as a differentiable function of what enters the functional."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, cast

import torch
from torch import Tensor

from ddeq.flows.adaptive import AdaptiveEuler
from ddeq.flows.bound_functional import BoundFunctional
from ddeq.flows.flow import flow
from ddeq.flows.geometries import Geometry, Wasserstein
from ddeq.flows.newton import NewtonFinish, Tally
from ddeq.flows.stationary import Stationary
from ddeq.flows.steppers import Stepper
from ddeq.functionals.base import Functional, Smoothness
from ddeq.functionals.entropy import split_entropy
from ddeq.iteration import ConvergenceError, Report, Solution, Status, Stop, implicit_function
from ddeq.measures import DiscreteMeasure
from ddeq.ranks import check_in_one_place

__all__ = ["equilibrium"]


def equilibrium(
    functional: Functional,
    mu0: DiscreteMeasure,
    *,
    stepper: Stepper | None = None,
    geometry: Geometry = Wasserstein(),
    stop: Stop | None = None,
    finish: bool = True,
    on_failure: Literal["raise", "warn"] = "raise",
    throw: bool = False,
    trace: bool = False,
    callback: Callable[[Report], object] | None = None,
) -> Solution:
    r"""A stationary measure, :math:`\nabla_W F_\theta(\mu^*) = 0`, by flow and Newton's method, as a function of :math:`\theta`.

    .. math:: \frac{\mathrm dZ^*}{\mathrm d\theta} = -H^+ \frac{\partial g}{\partial\theta}, \qquad
              g(Z, \theta) = \nabla_W F_\theta \text{ at the atoms } Z, \qquad H = \frac{\partial g}{\partial Z}

    (T16), at every order of derivative and at constant memory, by solves with Hessian-vector products. Gradients reach the
    parameters of the functional, its targets and coefficients, ``mu0.weights``, and ``mu0.marks`` where they are read.
    Each sample of a batch is flowed and judged by itself.

    Parameters
    ----------
    functional
        The energy :math:`F_\theta`. Twice differentiable where the atoms come to rest, for a derivative.
    mu0
        The start; its weights and marks stay.
    stepper
        How the flow steps; default ``AdaptiveEuler()``.
    geometry
        Of the flow. The points of rest do not depend on it, if it is that of `Wasserstein`, or `Stein` with a strictly positive
        definite kernel; which of them is found may.
    stop
        Tolerance and most steps. Default: ``rtol`` 1e-6 in double and 1e-4 in single precision, 2000 steps. The
        error of derivatives is about that of the points, relative to the length over which the Hessian changes.
    finish
        Whether samples leave the flow for Newton's method where that lowers the energy (see the notes); not done where the
        functional is twice differentiable almost everywhere only, as those are that declare no ``smoothness``. If false, the
        flow alone goes to the end.
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
        Where the atoms came to rest, with residual, steps and status of each sample. ``residual`` is the norm of the gradient
        (of the velocity, in another geometry) relative to the start; ``steps`` counts those of flow and Newton's method alike;
        ``evaluations`` velocities at the steps, and gradients and products with the Hessian of Newton's method, each once for
        all samples that take part (not energies, nor what happens within a stepper); ``error_bound`` is infinite: a gradient
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
    ConvergenceWarning
        In backward: of samples that did not come to rest (derivatives are taken where they are) or diverged (zero); of a loss
        that depends on how the equilibrium is turned, where rotations leave the functional as it is.

    Notes
    -----
    Newton's method is tried once the velocity is a tenth of that at the start and 20 steps are done, again at once where it
    helped, ever later where not, and where the flow is stuck; a step takes at most 64 products with the Hessian. It is accepted
    only if the energy falls by a share of what the quadratic model promises; or, below what rounding lets energies tell, if the
    energy rises by no more than that and the norm of the gradient falls, with no negative curvature in sight. Along negative
    curvature steps lead downhill, and none of them is a last one: like a flow, it ends in a saddle only if the gradient has
    no part along the way out, to the tolerance (T16). Each sample has the result that it has alone.

    Translations and rotations that leave :math:`F_\theta` as it is are found from gradients at other configurations (above
    dimension 6: all translations, or none) and left out of the equations. The answer is that of an equilibrium which does not
    move along them. In the geometry of Wasserstein it keeps the mean, as the flow does.

    Refused are: a kink of :math:`F` at the atoms; a loss or a tensor with a slope along directions in which :math:`H` is
    singular and that are no symmetries; atoms so far from rest that one step of Newton's method changes the equations by
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
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            "equilibrium cannot run inside torch.func transforms or vmap; it is batched, and differentiable by autograd"
        )
    _check_options(functional, mu0, geometry, finish, on_failure)
    check_in_one_place("mu0", mu0.points)
    stop = stop or Stop(rtol=1e-6 if mu0.dtype == torch.float64 else 1e-4, max_steps=2000)
    differentiated = torch.is_grad_enabled()
    if differentiated:
        if mu0.points.requires_grad:
            raise ValueError(
                "mu0: its points require grad, but an equilibrium does not depend on where the flow starts. Use mu0 with "
                "detached points, mu0.with_points(mu0.points.detach()), or differentiate the steps of ddeq.flow(...)"
            )
        BoundFunctional(functional, mu0).watch(mu0.points)
    tally = Tally()
    way: Stepper = AdaptiveEuler() if stepper is None else stepper
    known = isinstance(way, Stepper) and isinstance(stop, Stop)  # else `flow` says what is wrong
    if known and finish and functional.smoothness < Smoothness.ALMOST_EVERYWHERE:
        way = cast(Stepper, NewtonFinish(way, stop, tally))  # it promises what the one within it does
    seen: list[Tensor] = []

    def observe(report: Report) -> None:
        seen[:] = [*seen, report.residual] if trace else [report.residual]
        if callback is not None:
            callback(report)

    with torch.no_grad():
        trajectory = flow(
            functional,
            mu0,
            stepper=way,
            geometry=geometry,
            stop=stop,
            record=[],
            callback=observe,
        )
    z, status, steps = trajectory.measure.points.detach(), trajectory.status, trajectory.steps
    if differentiated:
        z = _attach(functional, mu0, z, status, geometry, stop.rtol, on_failure)
    solution = Solution(
        measure=mu0.with_points(z),
        residual=seen[-1],
        steps=steps,
        status=status,
        evaluations=int(steps.max()) + 1 + tally.evaluations if steps.numel() else 0,
        error_bound=torch.full_like(seen[-1], torch.inf),
        trace=torch.stack([torch.where(steps >= k, r, torch.nan) for k, r in enumerate(seen)]) if trace else None,
    )
    if throw and not bool(solution.converged.all()):
        raise ConvergenceError(f"the equilibrium was not found: {solution.summary()}", solution)
    return solution


def _attach(
    functional: Functional,
    mu0: DiscreteMeasure,
    z: Tensor,
    status: Tensor,
    geometry: Geometry,
    rtol: float,
    on_failure: Literal["raise", "warn"],
) -> Tensor:
    """``z``, the same numbers, as a differentiable function of what enters the functional."""
    diverged = status == Status.DIVERGED.value
    keep = None
    if functional.selectable and mu0.batch_shape and bool(diverged.any()):
        # Zero times NaN is NaN: where it is known how to leave samples out, those that diverged take no part in backward.
        keep = (~diverged).unsqueeze(-1).flatten(1).any(-1).nonzero().squeeze(-1)
    bound = BoundFunctional(functional, mu0, keep)
    if not any(t.requires_grad for t in bound.tensors):
        return z
    stationary = Stationary(
        bound,
        z,
        mu0.points.detach(),
        frozen=diverged.unsqueeze(-1) | (mu0.weights.detach() <= 0),
        status=status,
        rtol=max(0.1 * rtol, 20 * torch.finfo(z.dtype).eps) if rtol < 1e-5 else 1e-6,
        conserves_mean=isinstance(geometry, Wasserstein),
        on_failure=on_failure,
    )
    return implicit_function(stationary.equation, stationary, z, *bound.tensors)


def _check_options(functional: object, mu0: object, geometry: object, finish: object, on_failure: object) -> None:
    if not isinstance(functional, Functional):
        raise ValueError(f"functional: expected a ddeq.Functional, got {type(functional).__name__}")
    if not isinstance(mu0, DiscreteMeasure):
        raise ValueError(f"mu0: expected a DiscreteMeasure, got {type(mu0).__name__}")
    if not isinstance(finish, bool):
        raise ValueError(f"finish: expected True or False, got {finish!r}")
    if on_failure not in ("raise", "warn"):
        raise ValueError(f"on_failure: expected 'raise' or 'warn', got {on_failure!r}")
    if not isinstance(geometry, Wasserstein):
        share = split_entropy(functional)[1]
        if not (isinstance(share, float) and share == 0.0):
            raise ValueError(
                f"geometry: {type(geometry).__name__} flows a functional with an entropy to another measure than the one where "
                "its Wasserstein gradient vanishes; use Wasserstein()"
            )
