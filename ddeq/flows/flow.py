"""`flow`: the driver of gradient flows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch

from ddeq.autodiff import check_recordable
from ddeq.flows.combinations import check_combination
from ddeq.flows.continuation import clock_of, draws_of, remains_of, steps_to_record, whole_state
from ddeq.flows.descent import FunctionalDescent
from ddeq.flows.geometries import Geometry, Wasserstein
from ddeq.flows.method import FlowMethod
from ddeq.flows.noise import Noise
from ddeq.flows.observed import Observer
from ddeq.flows.reacting import ReactingDescent
from ddeq.flows.reaction import Reaction
from ddeq.flows.steppers import Euler, Stepper
from ddeq.flows.systems import System
from ddeq.flows.trajectory import Recorder, Remains, Trajectory
from ddeq.flows.varying import watched_callback
from ddeq.functionals.dynamics import Dynamics
from ddeq.integers import whole
from ddeq.iteration import Adjoint, Iterate, Measured, Report, Stop, Unrolled, iterate
from ddeq.iteration.declared import check_kinds
from ddeq.measures import DiscreteMeasure, check_mass
from ddeq.memory import saved_memory
from ddeq.spaces.euclidean import Euclidean
from ddeq.spaces.space import Space

__all__ = ["by_energy", "flow"]

STEPS = 500
"""Steps of a flow where the caller says neither how many nor when to stop."""


def flow(
    functional: Dynamics | Mapping[str, Dynamics],
    mu0: DiscreteMeasure | Mapping[str, DiscreteMeasure] | Trajectory,
    stepper: Stepper | Mapping[str, Stepper] = Euler(0.1),
    steps: int | None = None,
    geometry: Geometry | Mapping[str, Geometry] = Wasserstein(),
    noise: Noise | Mapping[str, Noise | None] | None = None,
    reaction: Reaction | Mapping[str, Reaction | None] | None = None,
    *,
    space: Space | Mapping[str, Space] = Euclidean(),
    stop: Stop | None = None,
    adjoint: Adjoint = Unrolled(),
    record: int | Iterable[int] | None = None,
    generator: torch.Generator | None = None,
    callback: Callable[[Report], object] | None = None,
    progress: bool = False,
) -> Trajectory:
    r"""Gradient flow of a functional from ``mu0``: :math:`\dot x_i = -\nabla_W F(\mu)(x_i)` for every atom.

    Functional, geometry, stepper, noise and reaction are independent of each other. Each sample of a batch flows as it would
    alone. Autograd records the steps where something requires grad, at the memory that this takes; under
    ``torch.no_grad`` it does not.

    Parameters
    ----------
    functional
        The energy :math:`F`; `Varying`, where it is another one in each step; a `VelocityField`, dynamics without an energy. Of
        several measures it reads them all, ``F({"prey": mu, "predator": nu})``; or one for each by name, a game: each measure
        descends its own, which reads all. A functional that `couples <ddeq.Functional.couples_batch>` its batch flows as one
        sample.
    mu0
        The start; or several measures by name, a system, of any numbers of atoms and dimensions. Then ``stepper``, ``geometry``,
        ``noise``, ``reaction`` and ``space`` are one for all, or one for each by name, and measures, energies and variations
        are dicts; residual and status are those of the root of the summed squared norms (systems, T23). Its marks stay, and its
        weights unless there is a ``reaction``. A `Trajectory`: go on from its last record, on the path that its flow would have
        taken with the same other arguments; ``steps`` are further ones, and the result holds the former records too.
    stepper
        How a step is made: `Euler`, `Heun`, `Nesterov`, `Optimizer`, `AdaptiveEuler`, `LBFGS`, `Proximal`.
    steps
        Number of steps; all are taken, and samples end as COMPLETED. Default: 500, where no ``stop`` is given.
    geometry
        What the velocity is: `Wasserstein`, `Stein`, `Preconditioned`, `Mirror`.
    noise
        `Langevin`, which adds a multiple of the entropy, or `NoiseInjection`, which helps out of flat places.
    reaction
        `FisherRao`: mass moves between atoms, or grows and shrinks.
    space
        Where the atoms live, and stay: a `ddeq.spaces.Space`, the same for all samples. Velocities and noise are tangent, steps
        follow the space, and steps of descent are projected where it has a boundary, noise reflected (spaces, T22). Residuals
        and dissipation are in the metric of the space.
    stop
        Stop a sample when its residual is at most ``rtol``; then it is frozen, and removed from the computation where the
        functional is `removable <Functional.removable>`. The residual is the norm of the velocity, with a reaction the root of
        the dissipation of both, divided by ``atol / rtol`` plus the one at the start. With ``metric="energy"`` it is by how
        much the energy changes in a step, divided by ``atol / rtol`` plus the energy.
    adjoint
        What autograd keeps of the steps: with `Unrolled`, all of it; with ``Unrolled(checkpoint=True)``, the iterates alone,
        whose velocities are evaluated again in backward.
    record
        Record every so many steps, or at the given ones; default: such that there are about a hundred records. The start
        and the end are always recorded.
    generator
        Randomness of noise, of a reaction and of a functional that `draws <ddeq.Functional.draws>`; default: one seeded by
        torch's global one.
    callback
        Called with a `ddeq.iteration.Report` at every step; with a reaction its ``value`` has the weights as a last coordinate.
        It must not change the functional, which is what `Varying` is for: a `ValueError` where the flow can see it.
    progress
        Show a progress bar (needs tqdm).

    Returns
    -------
    Trajectory
        Recorded measures, times, energies and dissipation (None where there is no energy), and the status of each sample. A
        sample whose points or velocity
        become NaN or infinite is DIVERGED and ends at its last good state; one that no step moves any more, without a
        gradient small enough to have converged, is STAGNATED.

    Raises
    ------
    ValueError
        If both ``steps`` and ``stop`` are given, an option is not what it should be, or the parts do not make sense together;
        the message says why.

    Notes
    -----
    Which parts go together (the others are errors):

    ================= ======= ======== ============== ========= ========== ================================
    stepper           `Stein` Langevin NoiseInjection FisherRao its births order of accuracy in time
    ================= ======= ======== ============== ========= ========== ================================
    `Euler`           yes     yes (a)  yes            yes (b)   yes (c)    1
    `Heun`            yes     yes (a)  yes            yes (b)   yes (c)    2; 1 with noise or reaction
    `Nesterov`        yes     no       yes            yes       no         accelerated, other time
    `Underdamped`     no      no (e)   no             yes (b)   no         2, and exact for quadratic potentials
    `Optimizer`       yes     no       yes            yes       no         that of the optimiser, other time
    `AdaptiveEuler`   yes     no       no             yes       no         1; energy never rises
    `LBFGS`           no      no       no             yes       no         other time; energy never rises (d)
    `Proximal`        yes     yes (a)  no             yes (b)   no         1, implicit; energy never rises
    ================= ======= ======== ============== ========= ========== ================================

    - (a) In the geometries `Wasserstein`, `Preconditioned` and `Mirror`, of a functional without `Entropy`, for which the noise
      stands.
    - (b) With `Langevin` noise, and `Underdamped`, the reaction is given its own ``functional``, with the entropy.
    - (c) For measures without marks.
    - (d) But for rounding.
    - (e) It has noise of its own.

    `Preconditioned` and `Mirror` go with all of these but `Underdamped` and `Optimizer`; what goes with which ``space`` is in
    the guide.

    Examples
    --------
    >>> from ddeq.functionals import PotentialEnergy
    >>> mu = DiscreteMeasure(torch.tensor([[1.0]]))
    >>> trajectory = flow(PotentialEnergy(lambda x: 0.5 * x.square().sum(-1)), mu, stepper=Euler(0.5), steps=2)
    >>> trajectory.measures.points.flatten(), trajectory.times
    (tensor([1.0000, 0.5000, 0.2500]), tensor([0.0000, 0.5000, 1.0000]))
    """
    given: Any = (functional, mu0, stepper, geometry, noise, reaction, space)
    system = System.of(functional, mu0)
    if system is not None:  # several measures flow as one
        options = system.options(stepper, geometry, noise, reaction, space)
        given, callback = (system.dynamics, system.start, *options.values()), system.callback(callback)
    of = _Parts(*given)
    before, mu0 = (of.mu0, of.mu0.measure) if isinstance(of.mu0, Trajectory) else (None, of.mu0)
    _check_options(of, mu0, steps, stop, adjoint, generator)
    mu0 = check_combination(of.functional, mu0, of.stepper, of.geometry, of.noise, of.reaction, of.space, stop)
    check_recordable("a flow")
    if stop is not None or of.reaction is not None:
        check_mass("mu0", mu0)
    remains = remains_of(before, of.functional)
    first = remains.taken
    limits = stop if stop is not None else Stop(max_steps=STEPS if steps is None else whole("steps", steps, 0))
    equation = _descent(of, mu0, stop)
    method = FlowMethod(of.stepper, of.noise, of.reaction, draws=of.functional.draws, varies=of.functional.varies)
    watches_energy = stop is not None and stop.metric == "energy"
    recorder = Recorder(steps_to_record(record, first, first + limits.max_steps), before)
    observer = Observer(equation, method, recorder, first)
    told = None if callback is None else watched_callback(callback, of.functional)

    def observe(report: Report) -> None:
        observer.see(report)
        if told is not None and (stop is not None or report.step < limits.max_steps):
            told(report)

    run = partial(
        iterate,
        z=equation.pack(mu0),
        method=method if method.is_random or method.varies or of.reaction is not None else of.stepper,
        converging=stop is not None,
        patient=True,
        best=False,
        metric=partial(by_energy, limits) if watches_energy else None,
        callback=observe,
        told=observer.wants if told is None else None,
        progress=progress,
        draw=draws_of(method, generator, remains, mu0),
        first=first,
        state=remains.memory,
        scale=remains.scale,
        memory=remains.of_functional,
    )
    outcome = adjoint.solve(equation, run, limits)
    end = observer.record(outcome)
    clock = clock_of(outcome.durations[:end], outcome.steps, mu0, before)
    left = Remains(
        taken=first + end,
        memory=remains.memory if outcome.state is None else whole_state(outcome, method, equation),
        scale=remains.scale if stop is None or watches_energy else outcome.scale,
        generator_state=outcome.generator_state,
        of_functional=saved_memory(outcome.memory),
    )
    trajectory = recorder.trajectory(clock, first, outcome.status, outcome.steps, left)
    return trajectory if system is None else system.unpacked(trajectory)


class _Parts(NamedTuple):
    """The parts of the flow of one measure, as which several flow too."""

    functional: Dynamics
    mu0: DiscreteMeasure | Trajectory
    stepper: Stepper
    geometry: Geometry
    noise: Noise | None
    reaction: Reaction | None
    space: Space


def _descent(of: _Parts, mu0: DiscreteMeasure, stop: Stop | None) -> FunctionalDescent:
    functional, geometry, space, reaction = of.functional, of.geometry, of.space, of.reaction
    if reaction is None:
        return FunctionalDescent(functional, mu0, geometry, space=space, shardable=True)
    if reaction.jumps:
        of_reaction = reaction.functional
        equation = FunctionalDescent(functional, mu0, geometry, space=space, shardable=True)
        equation.removable = equation.removable and (of_reaction is None or of_reaction.removable)
        return equation
    counts = stop is not None and stop.metric is None
    return ReactingDescent(functional, mu0, geometry, space=space, reaction=reaction, counts_reaction=counts, shardable=True)


def by_energy(stop: Stop, equation: FunctionalDescent, at: Iterate) -> Measured:
    """By how much the energy has changed in the last step."""
    with torch.no_grad():
        energy = equation.energy(at.z.detach()) if at.energy is None else at.energy
        before = None if at.previous is None else at.previous.energy
        change = (torch.full_like(energy, torch.inf) if before is None else before - energy).abs()
        change = torch.where(torch.isfinite(at.norm), change, torch.nan)
        return Measured(change / (energy.abs() + stop.atol / stop.rtol), change, energy)


def _check_options(of: _Parts, mu0: object, steps: int | None, stop: Stop | None, adjoint: object, generator: object) -> None:
    if steps is not None and stop is not None:
        raise ValueError(f"steps, stop: expected one of the two, got steps={steps}, stop={stop}")
    check_kinds(
        (
            "functional",
            of.functional,
            Dynamics,
            "a ddeq.Functional, or Functional.of(function), VelocityField(v), Varying(function)",
        ),
        ("mu0", mu0, DiscreteMeasure, "a DiscreteMeasure, or the Trajectory of a flow that is to go on"),
        ("stop", stop, Stop | None, "a Stop such as Stop(rtol=1e-4)"),
        ("stepper", of.stepper, Stepper, "a ddeq.flows.Stepper such as Euler(step_size=0.1)"),
        ("geometry", of.geometry, Geometry, "a ddeq.flows.Geometry such as Wasserstein()"),
        ("noise", of.noise, Noise | None, "a ddeq.flows.Noise such as Langevin(temperature), or None"),
        ("reaction", of.reaction, Reaction | None, "a ddeq.flows.Reaction such as FisherRao(rate), or None"),
        ("space", of.space, Space, "a ddeq.spaces.Space such as Sphere()"),
        ("adjoint", adjoint, Adjoint, "Unrolled() or Unrolled(checkpoint=True)"),
        ("generator", generator, torch.Generator | None, "a torch.Generator or None"),
    )
    if isinstance(adjoint, Adjoint) and not adjoint.records:
        raise ValueError(
            f"adjoint: expected Unrolled() or another one that records the steps of a flow, got {adjoint!r}; a stationary "
            "measure is differentiated by ddeq.flows.equilibrium"
        )
    if stop is not None and stop.metric not in (None, "energy"):
        raise ValueError(f"stop: expected the metric None (the gradient) or 'energy' for a flow, got {stop.metric!r}")
