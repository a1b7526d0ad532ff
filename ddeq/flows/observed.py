"""What a flow records: measures of chosen steps with energies and dissipation, each of the functional of its step."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddeq.flows.descent import FunctionalDescent
from ddeq.flows.method import FlowMethod
from ddeq.flows.trajectory import Record, Recorder
from ddeq.iteration import Outcome, Report
from ddeq.measures import DiscreteMeasure

__all__ = ["Observer"]

ATOMS_AT_ONCE = 2**13
"""Energies of records are evaluated together for so many atoms: for more of them the calls cost little."""


class _Seen(NamedTuple):
    """What is known of a step that is recorded."""

    value: Tensor
    norm: Tensor
    energy: Tensor | None = None
    """Where it was found as the flow was prepared for the step."""
    dissipation: Tensor | None = None


class Observer:
    """Sees the steps of a flow, and records those that a `Recorder` wants.

    Parameters
    ----------
    equation
        What the flow runs on.
    method
        The flow as a method.
    recorder
        Which steps to record, and where.
    first
        Number of the first step.
    """

    def __init__(self, equation: FunctionalDescent, method: FlowMethod, recorder: Recorder, first: int) -> None:
        self._equation, self._method, self._recorder, self._first = equation, method, recorder, first
        self._varies = equation.dynamics.varies and equation.dynamics.has_energy
        self._kept: dict[int, _Seen] = {}
        self._last: Report | None = None
        self._ended: tuple[Tensor, Tensor] | None = None
        """Of varying energies: that of each sample, and its dissipation, in the last step that was looked at or its last one."""

    def wants(self, step: int) -> bool:
        """Whether there is something to see in a step, counted from the start of this flow."""
        return self._varies or self._recorder.wants(self._first + step)

    def see(self, report: Report) -> None:
        """Look at a step."""
        step = self._first + report.step
        if self._varies:
            running = None if self._last is None else self._last.active
            finished = running is not None and bool((running & ~report.active).any())
            if finished or self._recorder.wants(step):
                self._ended = self._found(report, report.value, report.norm, running)
            self._last = report
        if self._recorder.wants(step):
            self._kept[step] = _Seen(report.value, report.norm, *self._known(report))

    def record(self, outcome: Outcome) -> int:
        """Record what was seen, and the end; the number of steps that were taken."""
        end = int(outcome.steps.max()) if outcome.steps.numel() else 0
        last, number = self._kept.get(self._first + end), self._first + end
        if self._last is not None:
            moved = ~(self._last.value == outcome.value).flatten(self._last.active.ndim).all(-1)
            found = self._found(self._last, outcome.value, outcome.norm, self._last.active | moved)
            at_end = _Seen(outcome.value, outcome.norm, *found)
        else:
            energy = None if last is None or not torch.equal(last.value, outcome.value) else last.energy
            at_end = _Seen(outcome.value, outcome.norm, energy)
        records = {k: kept for k, kept in self._kept.items() if k < number} | {number: at_end}
        norms = torch.stack([self._equation.inner.everywhere(seen.norm) for seen in records.values()])
        finite = norms.isfinite().reshape(len(records), -1).all(-1).tolist()  # one look for all
        measures = [self._equation.measure(seen.value) for seen in records.values()]
        energies = self._energies(measures, [seen.energy for seen in records.values()])
        for (step, seen), known, mu, energy in zip(records.items(), finite, measures, energies, strict=True):
            self._recorder.record(step, self._record(step, seen, known, mu, energy))
        return end

    def _energies(self, measures: list[DiscreteMeasure], known: list[Tensor | None]) -> list[Any]:
        """The energies of the records, those that are not ``known`` at once where that is possible."""
        dynamics = self._equation.dynamics
        if not dynamics.has_energy:
            return [dynamics.energies(mu) for mu in measures]
        found, unknown = list(known), [i for i, energy in enumerate(known) if energy is None]
        if not unknown:
            return found
        functional = self._equation.functional
        at_once = max(1, ATOMS_AT_ONCE // max(1, measures[0].weights.numel()))
        for begin in range(0, len(unknown), at_once):
            some = unknown[begin : begin + at_once]
            for i, energy in zip(some, functional.evaluate_all([measures[i] for i in some]), strict=True):
                found[i] = energy
        return found

    def _known(self, report: Report) -> tuple[Tensor | None, Tensor | None]:
        """Energy and dissipation, where they are best found now."""
        if self._ended is not None:
            return self._ended
        prepared, dynamics = _descent_of(report), self._equation.dynamics
        at_hand = dynamics.remembers and dynamics.has_energy and prepared.inner.batch_shape == self._equation.inner.batch_shape
        return (prepared.energy(report.value) if at_hand else None), None

    def _found(self, report: Report, value: Tensor, norm: Tensor, running: Tensor | None) -> tuple[Tensor, Tensor]:
        """Energy and dissipation by the functional of a step for the samples that are ``running``; others have what they had."""
        prepared = _descent_of(report)
        energy = prepared.energy(value)
        finite, mu = bool(norm.isfinite().all()), prepared.measure(value)
        dissipation = _dissipation(prepared, self._method, mu, self._first + report.step, norm, finite)
        if running is not None and self._ended is not None:
            energy, dissipation = (torch.where(running, a, b) for a, b in zip((energy, dissipation), self._ended, strict=True))
        return energy, dissipation

    def _record(self, step: int, seen: _Seen, finite: bool, mu: DiscreteMeasure, energy: Any) -> Record:
        equation, dissipation = self._equation, seen.dissipation
        everywhere = equation.inner.everywhere
        if not equation.dynamics.has_energy:
            return Record(mu, energy, None)
        if dissipation is None:
            dissipation = _dissipation(equation, self._method, mu, step, seen.norm, finite)
        return Record(mu, everywhere(energy), everywhere(dissipation))


def _descent_of(report: Report) -> FunctionalDescent:
    prepared = report.equation
    assert isinstance(prepared, FunctionalDescent)
    return prepared


def _dissipation(
    equation: FunctionalDescent, method: FlowMethod, mu: DiscreteMeasure, step: int, norm: Tensor, finite: bool
) -> Tensor:
    """Rate at which geometry and reaction lower the energy at ``mu``, where the last residual had that ``norm``, ``finite`` or
    not."""
    with torch.no_grad():
        known = method.noise is None and equation.geometry.is_gradient and finite
        rate = norm.square() if known else equation.dissipation(mu)
        if method.reaction is None or (known and equation.counts_reaction):
            return rate
        return rate + method.reaction.dissipation(equation, mu, step)
