"""The one driver: runs a method on an equation, with per-sample stop, best iterate, removal of finished samples and traces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from typing import Any, Generic, Literal, NamedTuple, TypeVar

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
from ddeq.iteration.iterate import Iterate, Step
from ddeq.iteration.method import Method, restored
from ddeq.iteration.samples import Measured, Rule, Samples, agreed, choose, running_rows, scatter
from ddeq.iteration.status import Status, Stop
from ddeq.memory import Saved, memory_of_all, memory_rows, restored_memory
from ddeq.ranks import all_true, gathered, is_sharded

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
    told: Callable[[int], bool] | None = None,
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
    told
        Which steps, by their numbers, the callback is told of; None: all. Where it is given, nothing is to converge and the
        method is `unwatched <Method.unwatched>`, samples are looked at only now and then: an iterate that is found not to be
        finite takes the iteration back to the last look, and from there on every step is looked at.
    draw
        Random numbers for the method.
    first, state, scale, memory
        Of an iteration that goes on: number of the first step, the tensors of the state, what residuals are divided by, what
        was saved of the memory of the equation.
    """
    check_problem(equation, z, method)
    if not torch.is_grad_enabled():
        z = z.clone()  # a method that wrote into it would change what the caller holds
    run = _Run(equation, stop, z, method, converging, patient, best, metric, trace, callback, told, draw, first, scale)
    with without_autocast(z.device), _Bar(progress, stop.max_steps) as bar:
        if memory:
            run.remember(memory)
        while True:
            asked, value = run.prepare()
            if watch and (equation.varies or not run.at.step):
                found = unseen_leaves(partial(asked.residual, value.detach()), *asked.tensors)
                residual, made = _seen(asked, value, *found), None
            else:
                residual, made = asked.evaluated(value)
            then = run.see(residual, made)
            if then == "end":
                break
            if then == "again":
                continue
            taken = method.step(*run.begin(state))
            if not run.move(taken):
                break
            bar.update()
    return run.outcome()


@dataclass
class _Place(Generic[E]):
    """Where an iteration stands before an evaluation; a copy is a place to go back to."""

    equation: E
    samples: Samples
    index: Tensor
    """Entries of the first batch dimension that were not removed."""
    draw: Draws | None
    step: int = 0
    state: Any = None
    """The state of the method."""
    memory: Any = None
    """The memory of the equation."""
    of_all: Any = None
    """That of all samples, those that were removed included."""
    previous: Iterate | None = None
    energy: Tensor | None = None
    generator_state: Tensor | None = None


class _Run(Generic[E]):
    """One call of `iterate`, whose arguments it is given."""

    def __init__(
        self,
        equation: E,
        stop: Stop,
        z: Tensor,
        method: Method[E],
        converging: bool,
        patient: bool,
        best: bool,
        metric: Metric[E] | None,
        trace: bool,
        callback: Callable[[Report], object] | None,
        told: Callable[[int], bool] | None,
        draw: Draws | None,
        first: int,
        scale: Tensor | None,
    ) -> None:
        self._stop, self._method, self._converging = stop, method, converging
        self._metric, self._callback, self._told, self._first, self._scale = metric, callback, told, first, scale
        self._rule, self._floor = Rule(stop, converging, patient, best, method.recovers), stop.atol / stop.rtol
        self._batch_shape = equation.inner.batch_shape
        self._removable = equation.removable and method.removable and bool(self._batch_shape) and not is_sharded(z)
        self._rows = self._batch_shape[0] if self._batch_shape else 1
        self._often = stop.check_every if converging else RARELY
        start = Status.MAX_STEPS if converging else Status.COMPLETED
        self._full = Samples.start(z, self._batch_shape, start, len(method.parts))
        self.at = _Place(equation, self._full, torch.arange(self._rows, device=z.device), draw)
        self._here = self._back = replace(self.at)
        """Before the evaluation that is being looked at, and before the last one that was."""
        known = not converging and metric is None and not trace and (callback is None or told is not None)
        self._unwatched = known and method.unwatched and equation.keeps_nonfinite and not equation.varies
        self._watched_until = 0
        self._all_run = True
        self._evaluations = 0
        self._durations: list[float | Tensor] = []
        self._traces: list[Tensor] | None = [] if trace else None
        self._used: Any = None  # the memory that the last evaluation was prepared with

    def remember(self, memory: Saved) -> None:
        """Begin with the ``memory`` that was saved of the equation."""
        at = self.at
        state = None if at.draw is None else at.draw.generator.get_state()
        at.memory = restored_memory(at.equation.prepared(at.samples.value, None, self._first, at.draw)[1], memory)
        if at.draw is not None and state is not None:
            at.draw.generator.set_state(state)  # as if there had been no such call

    def prepare(self) -> tuple[E, Tensor]:
        """The equation to evaluate, and where."""
        at, step = self.at, self.at.step
        value, number = at.samples.value, self._first + step
        looks = not (self._unwatched and self._all_run) or step < self._watched_until
        self._looks = looks or step % self._often == 0 or step == self._stop.max_steps
        if self._looks:
            at.generator_state = None if at.draw is None else at.draw.generator.get_state()
            self._here = replace(at)
        self._used = at.memory
        self._problem, at.memory = at.equation.prepared(value, at.memory, number, at.draw)
        self._asked = self._method.perturbed(self._problem, value, number, at.draw)
        return self._asked, value

    def see(self, residual: Tensor, made: Any) -> Literal["step", "again", "end"]:
        """Look at the ``residual`` where that is due; what comes then: a step, another evaluation or the end."""
        at, value = self.at, self.at.samples.value
        residual = self._asked.inner.bounded(residual, 0.0)
        self._evaluations += 1
        if residual.requires_grad or value.requires_grad:
            check_can_be_recorded(self._method)
        if self._looks:
            return self._look(residual, made)
        samples, most = at.samples, self._stop.max_steps
        norm, size, number = samples.norm, samples.scale, self._first + at.step
        self._iterate = Iterate(value, residual, norm, size, number, at.draw, most=most, made=made)
        if self._callback is not None and self._told is not None and self._told(at.step):
            with torch.no_grad():
                norm = self._asked.sizes(value.detach(), residual.detach(), None).norm
            self._callback(Report(at.step, value, norm, samples.running, norm, self._problem))
        return "step"

    def _look(self, residual: Tensor, made: Any) -> Literal["step", "again", "end"]:
        """Judge the samples by the ``residual``."""
        at, step, value = self.at, self.at.step, self.at.samples.value
        with torch.no_grad():  # sizes are for judging only
            norm, size, extent, growth, image, changes = self._asked.sizes(value.detach(), residual.detach(), at.previous)
            if self._unwatched and step > self._back.step + 1 and not _all_finite(norm, value):
                self._go_back()
                return "again"
            relative_to = None  # what changes with the iterate
            if size is not None:
                size = relative_to = size + self._floor
            elif step:
                size = at.samples.scale
            else:
                size = norm + self._floor if self._scale is None else self._scale
        if residual.requires_grad:  # the method records its own
            image = changes = None
        number, most = self._first + step, self._stop.max_steps
        found = Iterate(value, residual, norm, size, number, at.draw, at.previous, at.energy, image, changes, most, made)
        if self._metric is None:
            seen = Measured(norm / size if self._converging else norm, norm, None, relative_to)
        else:
            seen = self._metric(self._problem, found)
            found = found if seen.energy is None else replace(found, energy=seen.energy)
        extent = extent if extent is None else extent + self._floor
        at.samples = at.samples.judge(found, seen, extent, growth, step, self._rule)
        self._iterate, self._back = found, self._here
        self._tell()
        running = at.samples.running
        if step == self._stop.max_steps or (self._converging and not running.numel()):
            return "end"
        if step % self._often == 0 and not agreed(running):
            left = running_rows(running)
            if not len(left):
                return "end"
            if self._removable and len(left) <= FILL * len(at.index):
                self._leave_only(left)
        self._all_run = self._unwatched and all_true(at.samples.running)
        return "step"

    def _go_back(self) -> None:
        """Go back to the last look, and look at every step from there to here."""
        self._watched_until, self.at = self.at.step, replace(self._back)
        del self._durations[self.at.step :]
        if self.at.draw is not None and self.at.generator_state is not None:
            self.at.draw.generator.set_state(self.at.generator_state)

    def _tell(self) -> None:
        """Keep the trace and call the callback, of all samples."""
        at, step = self.at, self.at.step
        tells = self._callback is not None and (self._told is None or self._told(step))
        if self._traces is None and not tells:
            return
        self._full = full = scatter(self._full, at.samples, at.index, self._rows)
        if self._traces is not None:
            self._traces.append(torch.where(full.running | (full.checked == step), full.seen, torch.nan))
        if self._callback is not None and tells:
            self._callback(Report(step, full.value, full.seen, full.running, full.norm, self._problem))

    def _leave_only(self, left: Tensor) -> None:
        """Remove all samples but those ``left``."""
        at = self.at
        self._full = scatter(self._full, at.samples, at.index, self._rows)
        at.of_all = self._used if at.of_all is None else memory_of_all(at.of_all, self._used, at.index)
        self._asked, self._iterate = self._asked.rows(left), self._iterate.rows(left)
        at.equation, at.samples, at.index = at.equation.rows(left), at.samples.rows(left), at.index[left]
        at.state, at.draw = pytree.tree_map_only(Tensor, itemgetter(left), at.state), self._iterate.draw
        self._used, at.memory = memory_rows(self._used, left), memory_rows(at.memory, left)

    def begin(self, state: tuple[Tensor, ...]) -> tuple[E, Iterate, Any]:
        """What the method takes a step from, the first one from a ``state`` that was saved."""
        at, method, here = self.at, self._method, self._iterate
        if not at.step:
            at.state = restored(method.init(self._asked, here), state, at.equation.inner)
            check_state(method, at.state, at.equation.inner.batch_shape)
        self._before = versions(here)
        return self._asked, here, at.state

    def move(self, taken: Step) -> bool:
        """To where the step that was ``taken`` leads; whether to go on."""
        at, method, here, equation = self.at, self._method, self._iterate, self.at.equation
        check_unchanged(method, here, self._before)
        if not at.step:
            check_step(method, taken, here.z)
            check_state(method, taken.state, equation.inner.batch_shape)
        self._evaluations, at.state = self._evaluations + taken.evaluations, taken.state
        if taken.duration is not None:
            self._durations.append(_of_all(taken.duration, at.index, self._batch_shape))
        z = equation.admitted(equation.inner.bounded(taken.z, here.z))
        if self._unwatched and self._all_run and at.step >= self._watched_until:
            at.samples = at.samples.moved(z)
        else:
            at.samples = at.samples.move(z, taken, method.ends_when_still and self._converging)
            at.energy = None if taken.energy is None else taken.energy.detach()
            at.previous = here.without_previous(taken.to_image)
        at.step += 1
        return not (self._converging and taken.status is not None and agreed(~at.samples.running))

    def outcome(self) -> Outcome:
        """What was found."""
        at = self.at
        full, best = scatter(self._full, at.samples, at.index, self._rows), self._rule.best
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
            trace=None if self._traces is None else torch.stack(self._traces),
            evaluations=self._evaluations,
            durations=self._durations,
            state=at.state,
            left=at.index,
            generator_state=at.generator_state,
            memory=self._used if at.of_all is None else memory_of_all(at.of_all, self._used, at.index),
            taken=self._iterate.step,
        )


def _all_finite(norm: Tensor, value: Tensor) -> bool:
    """Whether residuals and iterates are finite; looking may wait for a device."""
    return bool(gathered(torch.isfinite(norm).all() & torch.isfinite(value).all()))


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
