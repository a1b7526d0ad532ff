"""The one driver: runs a method on an equation, with per-sample stop, best iterate, removal of finished samples and traces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from ddeq.autodiff import unseen_leaves, without_autocast
from ddeq.draws import Draws
from ddeq.iteration.checks import (
    check_can_be_recorded,
    check_problem,
    check_state,
    check_step,
    check_unchanged,
    versions,
)
from ddeq.iteration.equation import Equation
from ddeq.iteration.iterate import Iterate
from ddeq.iteration.method import Method, restored
from ddeq.iteration.samples import Measured, Rule, Samples, agreed, choose, running_rows, scatter
from ddeq.iteration.status import Status, Stop
from ddeq.memory import Saved, memory_of_all, memory_rows, restored_memory
from ddeq.ranks import gathered, is_sharded

__all__ = ["Metric", "Outcome", "Report", "iterate", "watched"]

RARELY = 64
"""Where nothing is to converge, look only every so many steps whether all samples have diverged."""
FILL = 0.6
"""Finished samples are removed when at most this share of the current batch is still running."""

E = TypeVar("E", bound=Equation)
Metric = Callable[[E, Iterate], Measured]
"""Measures the residual of an iterate where the stop has a metric of its own."""


class Report(NamedTuple):
    """What a callback is told at every step."""

    step: int
    """Number of the step."""
    value: Tensor
    """The current iterates ``(*batch, ...)``, those of finished samples where they stopped."""
    residual: Tensor
    """The last relative residuals ``(*batch,)``; norms of the residuals where nothing is to converge."""
    active: Tensor
    """Which samples still run, ``(*batch,)``."""
    norm: Tensor
    """Norms of the last residuals, ``(*batch,)``."""
    equation: Equation
    """The equation as it was prepared for the step, of the samples that were not removed."""


@dataclass(frozen=True)
class Outcome:
    """What `iterate` gives: ``(*batch, ...)`` each, ``trace`` with a first dimension of evaluations, NaN once finished."""

    value: Tensor
    """The iterates that are kept: the best or the last ones."""
    residual: Tensor
    """Relative residual of ``value``."""
    steps: Tensor
    """Steps until the sample finished."""
    status: Tensor
    """`Status` as whole numbers."""
    absolute: Tensor
    """Absolute residual of ``value``."""
    growth: Tensor
    """Largest growth that was seen."""
    scale: Tensor
    """What residuals were divided by at the start."""
    norm: Tensor
    """Norm of the last residual that was evaluated."""
    note: Tensor
    """The last `Step.note` of each sample; ``(*batch, 0)`` where there is none."""
    trace: Tensor | None
    """Relative residuals of all iterates, on request."""
    evaluations: int
    """Evaluations of the residual, on the batch."""
    durations: list[float | Tensor]
    """The time that each step took, one number or ``(*batch,)``."""
    state: Any
    """The state of the method, for the samples that were not removed."""
    left: Tensor
    """Which entries of the first batch dimension were not removed."""
    generator_state: Tensor | None
    """State of the generator before the last evaluation."""
    memory: Any
    """What `Equation.prepared` was given for the last evaluation, of all samples."""
    taken: int
    """Number of the step of that evaluation."""


def iterate(
    equation: E,
    stop: Stop,
    *,
    z: Tensor,
    method: Method[E],
    watch: bool = False,
    converging: bool = True,
    patient: bool = False,
    best: bool = True,
    metric: Metric[E] | None = None,
    trace: bool = False,
    callback: Callable[[Report], object] | None = None,
    progress: bool = False,
    draw: Draws | None = None,
    first: int = 0,
    state: tuple[Tensor, ...] = (),
    scale: Tensor | None = None,
    memory: Saved = (),
) -> Outcome:
    """Run ``method`` on ``equation`` from ``z`` until every sample of the batch has converged, diverged or stagnated.

    The last iterate is evaluated too, so that its residual is known. Autocast is off but in what the equation turns it on for.

    Parameters
    ----------
    equation, stop, z, method
        The problem, when to stop, the first iterate ``(*batch, ...)``, and what steps.
    watch
        Look for tensors that require grad and enter the residual without being among ``equation.tensors``: a `ValueError`.
    converging
        If false, all steps are taken, and samples end as COMPLETED.
    patient
        Whether samples may go on without limit while the residual has no new minimum.
    best
        Return each sample's iterate of least residual instead of its last one; of those that diverged, then, the last one
        that was finite.
    metric
        Measures the residual in the place of its norm.
    trace, callback, progress
        Keep the residuals of all iterates; call at each of them; show a bar.
    draw
        Random numbers for the method.
    first, state, scale, memory
        Of an iteration that goes on: number of the first step, the tensors of the state, what residuals are divided by, what
        was saved of the memory of the equation.
    """
    check_problem(equation, z, method)
    batch_shape = equation.inner.batch_shape
    if not torch.is_grad_enabled():
        z = z.clone()  # a method that wrote into it would change what the caller holds
    removable = equation.removable and method.removable and bool(batch_shape) and not is_sharded(z)
    rows = batch_shape[0] if batch_shape else 1
    look = stop.check_every if converging else RARELY
    rule = Rule(stop, converging, patient, best, method.recovers)
    floor = stop.atol / stop.rtol
    full = now = Samples.start(z, batch_shape, Status.MAX_STEPS if converging else Status.COMPLETED, len(method.parts))
    index = torch.arange(rows, device=z.device)
    kept: Any = None  # the method's state
    known: Any = None  # the memory of the equation
    of_all: Any = None  # that of all samples, those that were removed included
    previous: Iterate | None = None
    energy: Tensor | None = None
    generator_state: Tensor | None = None
    evaluations, traces, durations = 0, [], []
    with without_autocast(z.device), _Bar(progress, stop.max_steps) as bar:
        for step in range(stop.max_steps + 1):
            generator_state = None if draw is None else draw.generator.get_state()
            if memory and not step:
                known = restored_memory(equation.prepared(now.value, None, first, draw)[1], memory)
                if draw is not None and generator_state is not None:
                    draw.generator.set_state(generator_state)  # as if there had been no such call
            last = known
            problem, known = equation.prepared(now.value, last, first + step, draw)
            asked = method.perturbed(problem, now.value, first + step, draw)
            made = None
            if watch and (equation.varies or not step):
                residual = _seen(asked, now.value, *unseen_leaves(partial(asked.residual, now.value.detach()), *asked.tensors))
            else:
                residual, made = asked.evaluated(now.value)
            residual, evaluations = asked.inner.bounded(residual, 0.0), evaluations + 1
            with torch.no_grad():  # sizes are for judging only
                norm, size, extent, growth, image, changes = asked.sizes(now.value.detach(), residual.detach(), previous)
                relative_to = None  # what changes with the iterate
                if size is not None:
                    size = relative_to = size + floor
                elif step:
                    size = now.scale
                else:
                    size = norm + floor if scale is None else scale
            if residual.requires_grad or now.value.requires_grad:
                check_can_be_recorded(method)
            if residual.requires_grad:  # the method records its own
                image = changes = None
            at = Iterate(
                now.value, residual, norm, size, first + step, draw, previous, energy, image, changes, stop.max_steps, made
            )
            if metric is None:
                seen = Measured(norm / size if converging else norm, norm, None, relative_to)
            else:
                seen = metric(problem, at)
                at = at if seen.energy is None else replace(at, energy=seen.energy)
            now = now.judge(at, seen, extent if extent is None else extent + floor, growth, step, rule)
            if trace or callback is not None:
                full = scatter(full, now, index, rows)
                if trace:
                    traces.append(torch.where(full.running | (full.checked == step), full.seen, torch.nan))
                if callback is not None:
                    callback(Report(step, full.value, full.seen, full.running, full.norm, problem))
            if step == stop.max_steps or (converging and not now.running.numel()):
                break
            if step % look == 0 and not agreed(now.running):
                left = running_rows(now.running)
                if not len(left):
                    break
                if removable and len(left) <= FILL * len(index):
                    full = scatter(full, now, index, rows)
                    of_all = last if of_all is None else memory_of_all(of_all, last, index)
                    asked = asked.rows(left)
                    equation, now, index, at = equation.rows(left), now.rows(left), index[left], at.rows(left)
                    kept, draw = pytree.tree_map_only(Tensor, itemgetter(left), kept), at.draw
                    last, known = memory_rows(last, left), memory_rows(known, left)
            if not step:
                kept = restored(method.init(asked, at), state, equation.inner)
                check_state(method, kept, equation.inner.batch_shape)
            before = versions(at)
            taken = method.step(asked, at, kept)
            check_unchanged(method, at, before)
            if not step:
                check_step(method, taken, now.value)
                check_state(method, taken.state, equation.inner.batch_shape)
            evaluations, kept = evaluations + taken.evaluations, taken.state
            energy = None if taken.energy is None else taken.energy.detach()
            if taken.duration is not None:
                durations.append(_of_all(taken.duration, index, batch_shape))
            previous = at.without_previous(taken.to_image)
            now = now.move(
                equation.admitted(equation.inner.bounded(taken.z, now.value)), taken, method.ends_when_still and converging
            )
            bar.update()
            if converging and taken.status is not None and agreed(~now.running):
                break
    full = scatter(full, now, index, rows)
    return Outcome(
        value=full.best if best else choose(full.status == Status.DIVERGED.value, full.best, full.value),
        residual=gathered(full.least if best else full.seen),
        steps=gathered(full.steps),
        status=gathered(full.status),
        absolute=gathered(full.distance),
        growth=gathered(full.growth),
        scale=gathered(full.scale),
        norm=gathered(full.norm),
        note=gathered(full.note),
        trace=torch.stack(traces) if trace else None,
        evaluations=evaluations,
        durations=durations,
        state=kept,
        left=index,
        generator_state=generator_state,
        memory=last if of_all is None else memory_of_all(of_all, last, index),
        taken=first + step,
    )


def watched(equation: Equation, z: Tensor) -> Tensor:
    """The residual at ``z``, once no tensor that requires grad is known to enter it unseen; else a `ValueError`."""
    return _seen(equation, z, *unseen_leaves(partial(equation.residual, z.detach()), *equation.tensors))


def _seen(equation: Equation, z: Tensor, residual: Tensor, unseen: set[Tensor]) -> Tensor:
    if unseen & set(equation.tensors):
        raise ValueError(
            f"{type(equation).__name__}.residual: expected it to use the tensors that it is given in the place of `tensors`, "
            "`tensors or self.tensors`"
        )
    if unseen:
        raise ValueError(equation.unseen(", ".join(str(tuple(t.shape)) for t in unseen)))
    # Where the residual is recorded, it is so from the tensors themselves.
    return equation.residual(z) if torch.is_grad_enabled() else residual


def _of_all(duration: float | Tensor, index: Tensor, batch_shape: tuple[int, ...]) -> float | Tensor:
    """The duration of a step for all samples: zero for those that were removed."""
    if not isinstance(duration, Tensor):
        return duration
    duration = gathered(duration.detach())
    if duration.shape == batch_shape or duration.ndim == 0:
        return duration
    return duration.new_zeros(batch_shape).index_copy(0, index, duration)


class _Bar:
    """A progress bar, or none; tqdm is imported only where one is shown."""

    def __init__(self, shown: bool, total: int) -> None:
        self._bar: Any = None
        if shown:
            try:
                from tqdm.auto import tqdm
            except ImportError:
                raise ImportError("progress=True needs tqdm: pip install tqdm, or leave progress out") from None
            self._bar = tqdm(total=total)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self) -> None:
        if self._bar is not None:
            self._bar.update()
