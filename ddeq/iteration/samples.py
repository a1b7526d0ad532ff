"""What the driver knows of each sample: its iterate, its best one, how it ended."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ddeq.iteration.inner import DIVERGENCE
from ddeq.iteration.iterate import Iterate, Step
from ddeq.iteration.status import Status, Stop
from ddeq.ranks import gathered

__all__ = ["Measured", "Rule", "Samples", "agreed", "choose", "running_rows", "scatter"]

FAR = 4.0
"""A recovering method's iterate this many times larger than where its residual last changed much must have a smaller residual."""
FALLEN = 0.5
"""Share of its largest value so far to which the absolute residual of a sample must have come down before it has converged."""


class Measured(NamedTuple):
    """The residual of an iterate as the stop measures it, ``(*batch,)`` each; no derivatives."""

    relative: Tensor
    """Compared with ``rtol``."""
    absolute: Tensor
    """In the units of the problem."""
    energy: Tensor | None = None
    """The energy there, where it was computed on the way."""
    size: Tensor | None = None
    """What ``relative`` is relative to, if that changes with the iterate: then a small one may mean that the iterate is large."""


class Rule(NamedTuple):
    """What `Samples.judge` goes by."""

    stop: Stop
    converging: bool
    """Whether there is anything to converge."""
    patient: bool
    """Whether samples may go on without limit while the residual has no new minimum."""
    best: bool
    """Whether the best iterate is kept, or the last finite one."""
    recovers: bool
    """`Method.recovers`."""


class Samples(NamedTuple):
    """The state of every sample, ``(*batch, ...)`` each."""

    value: Tensor
    seen: Tensor  # relative residual at the last evaluation while running
    norm: Tensor  # norm of the residual there
    best: Tensor  # iterate of least residual, or the last finite one
    least: Tensor  # its relative residual
    distance: Tensor  # its absolute residual
    growth: Tensor
    improved: Tensor  # step of that iterate
    checked: Tensor  # step of the last evaluation while running
    scale: Tensor  # what residuals are divided by at the start
    limit: Tensor  # extent from which the sample counts as diverged
    changed_norm: Tensor  # norm of the residual when it was last half or twice as large
    changed_extent: Tensor  # the extent then
    largest: Tensor  # largest absolute residual, as the stop measures it
    small: Tensor  # one that is small at the start
    steps: Tensor
    status: Tensor
    running: Tensor
    note: Tensor

    @classmethod
    def start(cls, value: Tensor, batch_shape: tuple[int, ...], status: Status, notes: int) -> Samples:
        """Before the first evaluation, with ``notes`` numbers in each `Step.note`."""
        zeros = value.new_zeros(batch_shape, dtype=torch.long)
        infinite = value.new_full(batch_shape, torch.inf)
        none = torch.zeros_like(infinite)
        return cls(
            value=value,
            seen=infinite,
            norm=infinite,
            best=value,
            least=infinite,
            distance=infinite,
            growth=none,
            improved=zeros,
            checked=zeros,
            scale=infinite,
            limit=infinite,
            changed_norm=infinite,
            changed_extent=infinite,
            largest=none,
            small=infinite,
            steps=zeros,
            status=zeros + status.value,
            running=value.new_ones(batch_shape, dtype=torch.bool),
            note=value.new_zeros(*batch_shape, notes, dtype=torch.long),
        )

    def judge(self, at: Iterate, seen: Measured, extent: Tensor | None, growth: Tensor | None, step: int, rule: Rule) -> Samples:
        """After evaluation number ``step``: which samples have converged, diverged or stagnated, and what is best so far."""
        relative, absolute = seen.relative, seen.absolute
        extent = 0.0 * at.norm if extent is None else extent  # NaN where the residual is not finite
        samples = self
        if not step:  # with a finite limit, what is not finite exceeds it too
            samples = self._replace(
                scale=at.size,
                limit=(DIVERGENCE * extent).clamp_max(torch.finfo(extent.dtype).max),
                changed_norm=at.norm,
                changed_extent=extent,
                small=self.small if seen.size is None else rule.stop.rtol * seen.size,
            )
        elif rule.recovers:
            relative, extent, samples = self._not_misled(relative, at.norm, extent)
        fallen = None
        if rule.converging and seen.size is not None:
            value = relative * seen.size
            largest = torch.maximum(samples.largest, torch.where(torch.isfinite(value), value, 0.0))
            fallen = (value <= FALLEN * largest) | (value <= samples.small)
            samples = samples._replace(largest=largest)
        running = samples.running
        valid = running & (extent <= samples.limit)
        all_valid = agreed(valid)  # then nothing need be kept from entering where other samples have stopped
        better = valid & (relative < samples.least) if rule.best else valid
        improved = torch.where(better, step, samples.improved)
        status, left = samples.status, valid
        if not all_valid:
            status = torch.where(valid, status, torch.where(running, Status.DIVERGED.value, status))
        if rule.converging:
            if not (all_valid and agreed(relative > rule.stop.rtol)):
                converged = valid & (relative <= rule.stop.rtol)
                converged = converged if fallen is None else converged & fallen
                status = torch.where(converged, Status.CONVERGED.value, status)
                left = valid & ~converged
            if not rule.patient and step >= rule.stop.patience:
                stagnated = left & (step - improved >= rule.stop.patience)
                status = torch.where(stagnated, Status.STAGNATED.value, status)
                left = left & ~stagnated
        if growth is not None:
            growth = torch.maximum(samples.growth, growth)
            growth = growth if all_valid else torch.where(running, growth, samples.growth)
        return samples._replace(
            seen=relative if all_valid else torch.where(running, relative, samples.seen),
            norm=at.norm if all_valid else torch.where(running, at.norm, samples.norm),
            best=choose(better, samples.value, samples.best),
            least=torch.where(better, relative, samples.least),
            distance=torch.where(better, absolute, samples.distance),
            growth=samples.growth if growth is None else growth,
            improved=improved,
            checked=torch.where(running, step, samples.checked),
            status=status,
            running=left,
        )

    def _not_misled(self, relative: Tensor, norm: Tensor, extent: Tensor) -> tuple[Tensor, Tensor, Samples]:
        """Relative residual and extent for a method that extrapolates and recovers.

        What is not finite or too large is no solution, and for the method to deal with. Nor is a point far away whose residual
        is small next to it only because it is far away: where there is no fixed point, extrapolation leads there.
        """
        ratio, too_large = extent / self.changed_extent, ~(extent <= self.limit)
        far = ratio > FAR
        if agreed(~(too_large | far)):
            changed = (norm <= 0.5 * self.changed_norm) | (norm >= 2.0 * self.changed_norm)
            return relative, extent, self._changed(changed, norm, extent)
        rounding = self.changed_norm < 100.0 * torch.finfo(extent.dtype).eps * extent  # all that the residual would be there
        rejected = too_large | (far & (rounding | (norm * ratio > FAR * self.changed_norm)))
        changed = ~rejected & ((norm <= 0.5 * self.changed_norm) | (~far & (norm >= 2.0 * self.changed_norm)))
        samples = self._changed(changed, norm, extent)
        return torch.where(rejected, torch.inf, relative), torch.where(too_large, 0.0, extent), samples

    def _changed(self, changed: Tensor, norm: Tensor, extent: Tensor) -> Samples:
        if agreed(changed):
            return self._replace(changed_norm=norm, changed_extent=extent)
        return self._replace(
            changed_norm=torch.where(changed, norm, self.changed_norm),
            changed_extent=torch.where(changed, extent, self.changed_extent),
        )

    def moved(self, z: Tensor) -> Samples:
        """To the iterates ``z``, all of them; whether they are finite is seen later."""
        return self._replace(value=z, steps=self.steps + 1)

    def move(self, z: Tensor, taken: Step, ends_when_still: bool) -> Samples:
        """To the proposed iterates ``z``, where they are finite; the others stay where they were, and have diverged."""
        total = z.detach().flatten(self.running.ndim).sum(-1)  # one pass; what overflows has diverged
        finite = total * 0.0 == 0.0  # NaN for all others
        moving, status, note = self.running & finite, self.status, taken.note
        if taken.status is None and not ends_when_still and agreed(moving):
            return self._replace(value=z, steps=self.steps + 1, note=self.note if note is None else note)
        status = torch.where(self.running & ~finite, Status.DIVERGED.value, status)
        if taken.status is not None:
            ended = moving & (taken.status >= 0)
            status, moving = torch.where(ended, taken.status, status), moving & ~ended
        if ends_when_still:
            moved = (z.detach() != self.value.detach()).flatten(self.running.ndim).any(-1)
            status = torch.where(moving & ~moved, Status.STAGNATED.value, status)
            moving = moving & moved
        return self._replace(
            value=choose(moving, z, self.value),
            steps=self.steps + moving,
            status=status,
            running=moving,
            note=self.note if note is None else choose(moving, note, self.note),
        )

    def rows(self, keep: Tensor) -> Samples:
        return Samples(*(t[keep] for t in self))


def scatter(full: Samples, now: Samples, index: Tensor, rows: int) -> Samples:
    """What is known of the samples that are left, put back among all."""
    if len(index) == rows:
        return now
    return Samples(*(f.index_copy(0, index, t) for f, t in zip(full, now, strict=True)))


def running_rows(running: Tensor) -> Tensor:
    """Entries of the first batch dimension in which a sample still runs."""
    rows = running.reshape(1) if running.ndim == 0 else running
    return gathered(rows).unsqueeze(-1).flatten(1).any(-1).nonzero().squeeze(-1)


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
