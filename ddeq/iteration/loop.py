"""The one loop: per-sample stop, best iterate, freezing and removal of finished samples, traces, callbacks, progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from ddeq.iteration.status import Status, Stop
from ddeq.ranks import is_sharded, whole

__all__ = ["Evaluation", "Outcome", "Process", "Report", "choose", "iterate"]

DIVERGENCE = 1e8
"""An iterate this many times larger than the first one has diverged; it would take long to become infinite."""
RARELY = 64
"""Where nothing is to converge, look only every so many steps whether all samples have diverged."""
FILL = 0.6
"""Finished samples are removed when at most this share of the current batch is still running."""


class Evaluation(NamedTuple):
    """What a process sees at an iterate, before it steps on."""

    residual: Tensor
    """How far the iterate is from a solution, ``(*batch,)``, as the tolerance measures it."""
    absolute: Tensor
    """The same in the units of the problem, ``(*batch,)``."""
    growth: Tensor
    """By how much the last step of the method would grow if it were repeated, ``(*batch,)``; 0 where unknown."""
    size: Tensor
    """How large the next iterate threatens to be, ``(*batch,)``; not finite: diverged."""
    found: Any
    """What `Process.advance` needs of it."""
    note: Tensor | None = None
    """What is to be known of each sample when it has finished, besides, ``(*batch, k)``."""


@runtime_checkable
class Process(Protocol):
    """An iterative method on batches of tensors ``(*batch, ...)``: what `iterate` runs."""

    def evaluate(self, value: Tensor, memory: Any) -> tuple[Evaluation, Any]:
        """Look at the iterate ``value``; also returns the ``memory``, a pytree of tensors, which it may change."""
        ...

    def advance(self, value: Tensor, memory: Any, found: Any, step: int) -> tuple[Tensor, Any]:
        """The next iterate and memory, after step number ``step``.

        ``value`` and ``memory`` are those of `evaluate`, and ``found`` is what it found.
        """
        ...

    def select(self, keep: Tensor) -> Process:
        """The same process for the entries ``keep`` of the first batch dimension."""
        ...


class Report(NamedTuple):
    """What a callback is told at every step."""

    step: int
    """Number of the step."""
    value: Tensor
    """The current iterates ``(*batch, ...)``, those of finished samples where they stopped."""
    residual: Tensor
    """The last residuals ``(*batch,)``."""
    active: Tensor
    """Which samples still run, ``(*batch,)``."""


@dataclass(frozen=True)
class Outcome:
    """What an iteration gives: ``(*batch, ...)`` each, ``trace`` with a first dimension of evaluations, NaN once finished."""

    value: Tensor
    """The iterates that are kept: the best or the last ones."""
    residual: Tensor
    """Residual of ``value``."""
    steps: Tensor
    """Steps until the sample finished."""
    status: Tensor
    """`Status` as whole numbers."""
    absolute: Tensor
    """Absolute residual of ``value``."""
    growth: Tensor
    """Largest growth that was seen."""
    trace: Tensor | None
    """Residuals of all evaluations, on request."""
    memory: Any
    """The memory of the process, for the samples that were not removed."""
    left: Tensor
    """Which entries of the first batch dimension were not removed."""
    note: Tensor
    """The last `Evaluation.note` of each sample; ``(*batch, 0)`` where there is none."""


def iterate(
    process: Process,
    value: Tensor,
    memory: Any,
    *,
    stop: Stop,
    batch_shape: tuple[int, ...],
    converging: bool = True,
    patient: bool = False,
    best: bool = True,
    last: bool = False,
    still: bool = False,
    removable: bool = False,
    trace: bool = False,
    callback: Callable[[Report], object] | None = None,
    progress: bool = False,
) -> Outcome:
    """Run ``process`` from ``value`` until every sample of the batch has converged, diverged or stagnated.

    Parameters
    ----------
    process, value, memory
        The method, its first iterate ``(*batch, ...)`` and its memory, a pytree of tensors ``(*batch, ...)``.
    stop
        Tolerance and most steps; the last iterate is evaluated too, so that its residual is known.
    batch_shape
        Shape of the batch: the first dimensions of ``value``.
    converging
        If false, all steps are taken, and samples end as COMPLETED.
    patient
        Whether samples may go on for ever without a new minimum of the residual.
    best
        Return each sample's iterate of least residual instead of its last one; of those that diverged, then, the last one
        that was in order.
    last
        Evaluate the last iterate even if nothing is to converge.
    still
        Whether a sample that a step leaves where it is will never move again, and has stagnated.
    removable
        Whether finished samples may leave the computation through `Process.select`.
    trace, callback, progress
        Keep the residuals of all evaluations; call at each of them; show a bar.
    """
    removable = removable and not is_sharded(value)
    device, rows = value.device, batch_shape[0] if batch_shape else 1
    look = stop.check_every if converging else RARELY
    full = _Samples.start(value, batch_shape, Status.MAX_STEPS if converging else Status.COMPLETED)
    now, index, traces = full, torch.arange(rows, device=device), []
    with _Bar(progress, stop.max_steps) as bar:
        for step in range(stop.max_steps + (converging or last)):
            evaluation, memory = process.evaluate(now.value, memory)
            now = now.judge(evaluation, step, stop, converging, patient, best)
            if trace or callback is not None:
                full = _scatter(full, now, index, rows)
                if trace:
                    traces.append(torch.where(full.running | (full.checked == step), full.seen, torch.nan))
                if callback is not None:
                    callback(Report(step, full.value, full.seen, full.running))
            if step == stop.max_steps or (converging and not now.running.numel()):
                break
            if step % look == 0 and not agreed(now.running):
                left = _running_rows(now.running)
                if not len(left):
                    break
                if removable and len(left) <= FILL * len(index):
                    full = _scatter(full, now, index, rows)
                    now, index, process = now.select(left), index[left], process.select(left)
                    memory, evaluation = pytree.tree_map_only(Tensor, itemgetter(left), (memory, evaluation))
            proposal, memory = process.advance(now.value, memory, evaluation.found, step)
            now = now.move(proposal, still and converging)
            bar.update()
    full = _scatter(full, now, index, rows)
    return Outcome(
        value=full.best if best else choose(full.status == Status.DIVERGED.value, full.best, full.value),
        residual=full.least if best else full.seen,
        steps=full.steps,
        status=full.status,
        absolute=full.distance,
        growth=full.growth,
        trace=torch.stack(traces) if trace else None,
        memory=memory,
        left=index,
        note=full.note,
    )


class _Samples(NamedTuple):
    """The state of every sample: what the loop knows of it, ``(*batch, ...)`` each."""

    value: Tensor
    seen: Tensor  # residual at the last evaluation while running
    best: Tensor  # of least residual, or the last one in order
    least: Tensor  # its residual
    distance: Tensor  # the same, absolute
    growth: Tensor
    improved: Tensor  # step of that iterate
    checked: Tensor  # step of the last evaluation while running
    limit: Tensor  # size from which the sample counts as diverged
    steps: Tensor
    status: Tensor
    running: Tensor
    note: Tensor

    @classmethod
    def start(cls, value: Tensor, batch_shape: tuple[int, ...], status: Status) -> _Samples:
        zeros = value.new_zeros(batch_shape, dtype=torch.long)
        infinite = value.new_full(batch_shape, torch.inf)
        running = value.new_ones(batch_shape, dtype=torch.bool)
        none = torch.zeros_like(infinite)
        return cls(
            value,
            infinite,
            value,
            infinite,
            infinite,
            none,
            zeros,
            zeros,
            infinite,
            zeros,
            zeros + status.value,
            running,
            value.new_zeros(*batch_shape, 0),
        )

    def judge(self, evaluation: Evaluation, step: int, stop: Stop, converging: bool, patient: bool, best: bool) -> _Samples:
        residual, size = evaluation.residual.detach(), evaluation.size.detach()
        # With a finite limit, what is not finite exceeds it too.
        limit = (DIVERGENCE * size).clamp_max(torch.finfo(size.dtype).max) if step == 0 else self.limit
        running = self.running
        valid = running & (size <= limit)
        whole = agreed(valid)  # all run, and nothing need be kept from entering where others stopped
        better = valid & (residual < self.least) if best else valid
        improved = torch.where(better, step, self.improved)
        status, left = self.status, valid
        if not whole:
            status = torch.where(valid, status, torch.where(running, Status.DIVERGED.value, status))
        if converging:
            if not (whole and agreed(residual > stop.rtol)):
                converged = valid & (residual <= stop.rtol)
                status = torch.where(converged, Status.CONVERGED.value, status)
                left = valid & ~converged
            if not patient and step >= stop.patience:
                stagnated = left & (step - improved >= stop.patience)
                status = torch.where(stagnated, Status.STAGNATED.value, status)
                left = left & ~stagnated
        note, growth = evaluation.note, torch.maximum(self.growth, evaluation.growth.detach())
        return self._replace(
            seen=residual if whole else torch.where(running, residual, self.seen),
            best=choose(better, self.value, self.best),
            least=torch.where(better, residual, self.least),
            distance=torch.where(better, evaluation.absolute.detach(), self.distance),
            growth=growth if whole else torch.where(running, growth, self.growth),
            improved=improved,
            checked=torch.where(running, step, self.checked),
            limit=limit,
            status=status,
            running=left,
            note=self.note if note is None else note if step == 0 else choose(running, note, self.note),
        )

    def move(self, proposal: Tensor, still: bool) -> _Samples:
        """To the proposed iterates, where they are finite; the others stay where they were, and have diverged.

        ``still``: those that are proposed to stay where they are have stagnated.
        """
        total = proposal.detach().flatten(self.running.ndim).sum(-1)  # one pass; what overflows has diverged
        finite = total * 0.0 == 0.0  # NaN for all others
        moving, status = self.running & finite, self.status
        if not agreed(moving):
            status = torch.where(self.running & ~finite, Status.DIVERGED.value, status)
        if still:
            moved = (proposal.detach() != self.value.detach()).flatten(self.running.ndim).any(-1)
            status = torch.where(moving & ~moved, Status.STAGNATED.value, status)
            moving = moving & moved
        return self._replace(
            value=choose(moving, proposal, self.value),
            steps=self.steps + moving,
            status=status,
            running=moving,
        )

    def select(self, keep: Tensor) -> _Samples:
        return _Samples(*(t[keep] for t in self))


def _scatter(full: _Samples, now: _Samples, index: Tensor, rows: int) -> _Samples:
    """What is known of the samples that are left, put back among all."""
    return now if len(index) == rows else _Samples(*(f.index_copy(0, index, t) for f, t in zip(full, now, strict=True)))


def _running_rows(running: Tensor) -> Tensor:
    """Entries of the first batch dimension in which a sample still runs."""
    rows = running.reshape(1) if running.ndim == 0 else running
    return whole(rows).unsqueeze(-1).flatten(1).any(-1).nonzero().squeeze(-1)


def agreed(mask: Tensor) -> bool:
    """Whether a mask is true everywhere, where looking costs nothing; else "maybe not"."""
    return mask.device.type == "cpu" and bool(mask.all())


def choose(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """``torch.where`` with a mask of samples ``(*batch,)``, without a copy where all agree and looking costs nothing."""
    if mask.device.type == "cpu":
        if bool(mask.all()):
            return yes
        if not bool(mask.any()):
            return no
    return torch.where(mask.reshape(*mask.shape, *(1,) * (yes.ndim - mask.ndim)), yes, no)


class _Bar:
    """A progress bar, or none; tqdm is asked for only where one is shown."""

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
