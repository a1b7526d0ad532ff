"""`flow`: the driver of gradient flows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ddeq.flows.geometries import Wasserstein
from ddeq.flows.problem import Descent
from ddeq.flows.steppers import Euler, Stepper
from ddeq.flows.trajectory import Recorder, Trajectory
from ddeq.functionals.base import Functional
from ddeq.iteration import Evaluation, Report, Stop, iterate
from ddeq.measures import DiscreteMeasure, check_mass

__all__ = ["flow"]

RECORDS = 100
"""About how many records a flow keeps where the caller does not choose."""


def flow(
    functional: Functional,
    mu0: DiscreteMeasure,
    *,
    stepper: Stepper = Euler(0.1),
    steps: int | None = None,
    geometry: Wasserstein = Wasserstein(),
    noise: None = None,
    reaction: None = None,
    stop: Stop | None = None,
    record: int | Iterable[int] | None = None,
    generator: torch.Generator | None = None,
    callback: Callable[[Report], object] | None = None,
    progress: bool = False,
) -> Trajectory:
    r"""Gradient flow of a functional from ``mu0``: :math:`\dot x_i = -\nabla_W F(\mu)(x_i)` for every atom.

    Each sample of a batch flows as it would alone. Autograd records the steps where something requires grad, at the
    memory that this takes; under ``torch.no_grad`` it does not.

    Parameters
    ----------
    functional
        The energy :math:`F`.
    mu0
        The start; its weights and marks stay.
    stepper
        How a step is made.
    steps
        Number of steps; all are taken, and samples end as COMPLETED. Give this or ``stop``.
    geometry
        What the gradient is.
    noise, reaction
        Not available yet: only None.
    stop
        Stop a sample when its gradient norm :math:`|\nabla_W F|_{L^2(\mu)}`, divided by ``atol / rtol`` plus the one at
        the start, is at most ``rtol``; then it stands still.
    record
        Record every so many steps, or at the given ones; default: such that there are about a hundred records. The start
        and the end are always recorded.
    generator
        Randomness of the noise.
    callback
        Called with a `ddeq.iteration.Report` at every step.
    progress
        Show a progress bar (needs tqdm).

    Returns
    -------
    Trajectory
        Recorded measures, times, energies, and the status of each sample. A sample that becomes NaN or infinite is
        DIVERGED and stays at its last good state.

    Raises
    ------
    ValueError
        If not exactly one of ``steps`` and ``stop`` is given, or an option is not what it should be.

    Examples
    --------
    >>> from ddeq.functionals import PotentialEnergy
    >>> mu = DiscreteMeasure(torch.tensor([[1.0]]))
    >>> trajectory = flow(PotentialEnergy(lambda x: 0.5 * x.square().sum(-1)), mu, stepper=Euler(0.5), steps=2)
    >>> trajectory.measures.points.flatten(), trajectory.times
    (tensor([1.0000, 0.5000, 0.2500]), tensor([0.0000, 0.5000, 1.0000]))
    """
    if (steps is None) == (stop is None):
        raise ValueError(f"steps, stop: expected one of the two, got steps={steps}, stop={stop}")
    if not isinstance(functional, Functional):
        raise ValueError(f"functional: expected a ddeq.Functional, got {type(functional).__name__}")
    if not isinstance(mu0, DiscreteMeasure):
        raise ValueError(f"mu0: expected a DiscreteMeasure, got {type(mu0).__name__}")
    if not isinstance(stop, Stop | None):
        raise ValueError(f"stop: expected a Stop such as Stop(rtol=1e-4), got {stop!r}")
    if not isinstance(stepper, Stepper):
        raise ValueError(f"stepper: expected a stepper such as Euler(step_size=0.1), got {stepper!r}")
    if not isinstance(geometry, Wasserstein):
        raise ValueError(f"geometry: expected Wasserstein(), got {geometry!r}")
    for name, value in (("noise", noise), ("reaction", reaction)):
        if value is not None:
            raise ValueError(f"{name}: expected None, got {value!r}")
    limits = stop if stop is not None else Stop(max_steps=steps or 0)
    problem = Descent(functional, mu0)
    if stop is not None:
        check_mass("mu0", mu0)
    recorder = Recorder(_steps_to_record(record, limits.max_steps))
    clock = [mu0.points.new_zeros(())]  # the time before each step

    def observe(report: Report) -> None:
        if report.step == len(clock):
            clock.append(clock[-1] + stepper.duration(report.step - 1))
        if recorder.wants(report.step):
            recorder.record(report.step, clock[report.step], problem.measure(report.value), problem.energy(report.value))
        if callback is not None:
            callback(report)

    outcome = iterate(
        _Flow(problem, stepper, stop),
        mu0.points,
        stepper.init(problem, mu0.points),
        stop=limits,
        batch_shape=mu0.batch_shape,
        converging=stop is not None,
        patient=True,
        best=False,
        callback=observe,
        progress=progress,
    )
    end = int(outcome.steps.max()) if outcome.steps.numel() else 0
    if end == len(clock):
        clock.append(clock[-1] + stepper.duration(end - 1))
    recorder.finish(end, clock[end], problem.measure(outcome.value), problem.energy(outcome.value))
    return recorder.trajectory(outcome.status, outcome.steps)


class _Flow:
    """A flow as the loop sees it."""

    def __init__(self, problem: Descent, stepper: Stepper, stop: Stop | None) -> None:
        self._problem, self._stepper, self._stop = problem, stepper, stop
        self._scale: Tensor | None = None

    def evaluate(self, value: Tensor, memory: Any) -> tuple[Evaluation, Any]:
        velocity = self._problem.velocity(value)
        v = velocity.detach()
        norm = self._problem.inner(v, v).sqrt()
        if self._scale is None:
            self._scale = norm + (0.0 if self._stop is None else self._stop.atol / self._stop.rtol)
        # A flow may grow as it likes; only a velocity that is not finite ends it.
        nothing = 0.0 * norm
        return Evaluation(norm / self._scale, norm, nothing, nothing, velocity), memory

    def advance(self, value: Tensor, memory: Any, found: Tensor, step: int) -> tuple[Tensor, Any]:
        return self._stepper.step(self._problem, value, found, memory, step)

    def select(self, keep: Tensor) -> _Flow:
        raise AssertionError("the samples of a flow are frozen, not removed")


def _steps_to_record(record: int | Iterable[int] | None, last: int) -> set[int] | range:
    if record is None:
        record = max(1, last // RECORDS)
    if isinstance(record, int):
        if record < 1:
            raise ValueError(f"record: expected a number of steps >= 1, or the steps to record, got {record}")
        return range(0, last + 1, record)
    if not isinstance(record, Iterable):
        raise ValueError(f"record: expected a number of steps >= 1, or the steps to record, got {record!r}")
    wanted = set(record)
    if not all(isinstance(step, int) and 0 <= step <= last for step in wanted):
        raise ValueError(f"record: expected steps between 0 and {last}, got {sorted(wanted)}")
    return wanted | {0}
