"""Solves for the potentials of entropic transport: from a start or along a falling blur, by Newton's method."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ddeq.functionals.cells import Cells
from ddeq.functionals.plans import Pairs
from ddeq.functionals.potentials import CELLS, Place, PotentialEquation
from ddeq.iteration import (
    Equation,
    Implicit,
    InnerProblemWarning,
    Iterate,
    Method,
    Outcome,
    Sizes,
    Status,
    Step,
    Stop,
    iterate,
)
from ddeq.messages import warn

__all__ = ["solved"]

NEWTON_BELOW = 1.0
"""Newton's method takes over once potentials change by less than so many epsilon."""
BOLD = 3.0
"""Newton's steps are whole if they change potentials by no more than so many epsilon."""
NEAR = 0.5
"""A start is taken if potentials change by less than so many epsilon there; else the blur falls from above."""
ROUNDING = 32.0
"""So many rounding units of the largest potential may be left in a potential."""


def solved(equation: PotentialEquation, stop: Stop, start: Tensor, *, annealed: bool) -> tuple[Tensor, Tensor]:
    """The solution, differentiable in the tensors of the equation, and the status of each sample, ``(*batch,)`` each.

    Parameters
    ----------
    equation, stop
        What to solve, and how well: ``rtol`` bounds the relative error of the marginals.
    start
        A guess, ``(*batch, m)``, which is taken where it is near.
    annealed
        Whether to go down from a large blur where it is not.
    """
    found: list[Tensor] = []

    def run(of: Equation, stop: Stop, *, watch: bool = False) -> Outcome:
        outcome = _Search.of(equation).solution(stop, start.detach(), annealed)
        failed = outcome.status != Status.CONVERGED.value
        if bool(failed.any()):
            text = (
                "Sinkhorn: some solves did not reach the relative error that `stop` wants in the marginals. Take a larger blur, "
                "or a `stop` with more steps or a larger rtol"
            )
            warn(InnerProblemWarning(text, failed=failed, residual=outcome.residual, wanted=stop.rtol))
        found.append(outcome.status)
        # What it did not reach it has said already.
        return replace(outcome, status=torch.full_like(outcome.status, Status.CONVERGED.value))

    equation.rtol = stop.rtol
    outcome = Implicit().solve(equation, run, stop)
    return outcome.value, found[0]


@dataclass(frozen=True)
class _Annealing:
    """How the blur falls from the diameter of the measures to its own value."""

    shrink: float
    """Factor from level to level."""
    stop: Stop
    """How well a level is solved before the next one."""


ANNEALINGS = (
    _Annealing(0.4, Stop(rtol=1e-2, max_steps=20, atol=0.0)),
    _Annealing(0.75, Stop(rtol=1e-6, max_steps=40, atol=0.0)),
)
"""The first one, and what is tried where it has failed."""


class _Search(Equation):
    """The equation without derivatives, whose image is Sinkhorn's with the best constant added."""

    name = "potentials"
    shardable = True

    def __init__(self, equation: PotentialEquation, pairs: Pairs, cells: Cells | None) -> None:
        self.equation, self.pairs, self.cells, self.rtol = equation, pairs, cells, 1.0
        self.inner = equation.inner
        self._diameter = equation.diameter()

    @classmethod
    def of(cls, equation: PotentialEquation) -> _Search:
        equation = equation.at_blur(equation.transport.blur)
        return cls(equation, equation.pairs(), equation.cells())

    def evaluated(self, z: Tensor) -> tuple[Tensor, Place]:
        place = self.equation.place(self.pairs, z)
        return place.residual + self.equation.transport.tau**2 * place.shift, place

    def residual(self, z: Tensor, *tensors: Tensor) -> Tensor:
        return self.evaluated(z)[0]

    def sizes(self, z: Tensor, residual: Tensor, previous: Iterate | None) -> Sizes:
        measure, epsilon = self.equation.at, self.equation.transport.epsilon
        error = self.inner.norm(residual / epsilon) / self.inner.everywhere(measure.mass()).sqrt()
        largest = self.inner.everywhere(torch.where(measure.support(), z, 0.0).abs().amax(-1))
        largest = torch.maximum(largest, 0.5 * self._diameter.square())
        if self.equation.transport.reach is not None:
            largest = largest.clamp_min(self.equation.transport.rho)
        # Rounding of large potentials hides smaller errors.
        leeway = ROUNDING * torch.finfo(z.dtype).eps * largest / epsilon / self.rtol
        return Sizes(error, leeway.clamp_min(1.0))

    @torch.no_grad()
    def solution(self, stop: Stop, start: Tensor, annealed: bool) -> Outcome:
        """From the ``start`` where it is near, else, if ``annealed``, along a falling blur."""
        eps = torch.finfo(start.dtype).eps
        stop = replace(stop, rtol=max(stop.rtol, eps), atol=0.0)
        self.rtol = stop.rtol
        z, far = start, None
        if annealed:
            far = ~(self.sizes(start, self.residual(start), None).norm <= NEAR)
            if bool(far.any()):
                z = self._where(far, self._annealed(ANNEALINGS[0]), start)
        outcome = self._by_newton(z, stop)
        near_failed = (outcome.status != Status.CONVERGED.value) if annealed else None
        if near_failed is not None and bool(near_failed.any()):
            again = self._by_newton(self._annealed(ANNEALINGS[1]), stop)
            better = near_failed & ~(again.residual >= outcome.residual)
            outcome = replace(
                outcome,
                value=self._where(better, again.value, outcome.value),
                **{n: torch.where(better, getattr(again, n), getattr(outcome, n)) for n in ("status", "residual", "absolute")},
            )
        z, live = self.equation.normalised(outcome.value), self.equation.at.support()
        if bool(self.inner.everywhere((~live).any())):
            # The potential at an atom of mass zero is what the others make of it.
            z = torch.where(live, z, self.equation.image(self.pairs, z))
        return replace(outcome, value=z, residual=outcome.absolute)

    def _where(self, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.where(self.inner.per_sample(condition).unsqueeze(-1), a, b)

    def _annealed(self, by: _Annealing) -> Tensor:
        """Along a blur that falls from the size of the measures to the level above its own: a guess.

        As long as the blur is larger than cells of atoms, these stand for the atoms.
        """
        equation, blur = self.equation, self.equation.transport.blur
        z = torch.zeros_like(equation.at.weights)
        levels = self.inner.per_sample(_levels(self._diameter / blur, by.shrink))
        lowest = int(levels.max()) if levels.numel() else 0
        if max(equation.at.n, equation.other.n) > 2 * CELLS and not self.inner.is_sharded:
            coarse = _Search.of(equation.in_cells())
            highest = lowest
            radii = [Cells.of(m, CELLS).radius(m) for m in (equation.at, equation.other)]
            lowest = min(highest, int(_levels(torch.maximum(*radii) / blur, by.shrink).max()))
            z = coarse._descended(torch.zeros_like(coarse.equation.at.weights), levels, highest, lowest, by)
            z = equation.extended(z, coarse.equation.at_blur(blur / by.shrink**lowest))
        return self._descended(z, levels, lowest, 0, by)

    def _descended(self, z: Tensor, levels: Tensor, highest: int, lowest: int, by: _Annealing) -> Tensor:
        """Solutions of the levels from the ``highest`` to the one above the ``lowest``; a guess for that one."""
        before = z
        for level in range(highest, lowest, -1):
            search = self._at_level(level, by)
            if level < highest:
                z, before = search._guess(z, before, by.shrink), z
            # Each sample begins at the level of its own diameter, whatever else is in the batch.
            z = self._where(levels >= level, search._by_newton(z, by.stop).value, z)
        return self._at_level(lowest, by)._guess(z, before, by.shrink)

    def _at_level(self, level: int, by: _Annealing) -> _Search:
        search = copy.copy(self)
        search.rtol = by.stop.rtol
        search.equation = self.equation.at_blur(self.equation.transport.blur / by.shrink**level)
        return search

    def _guess(self, z: Tensor, before: Tensor, shrink: float) -> Tensor:
        """The solution ``z`` of the level above or, where that has a smaller error, what it extrapolates to.

        For a small epsilon potentials are nearly affine in it.
        """
        extrapolated = z + shrink**2 * (z - before)
        errors = [self.sizes(guess, self.residual(guess), None).norm for guess in (z, extrapolated)]
        return self._where(errors[1] < errors[0], extrapolated, z)

    def _by_newton(self, z: Tensor, stop: Stop) -> Outcome:
        return iterate(self, stop, z=z, method=_Newton(), patient=True)


def _levels(ratio: Tensor, shrink: float) -> Tensor:
    """How often a blur so many times too large must shrink, ``(*batch,)``."""
    return (ratio.log() / -math.log(shrink)).nan_to_num(posinf=0.0, neginf=0.0).ceil().clamp_min(0)


class _State(NamedTuple):
    before: Tensor
    """The error at the last iterate from which a step was taken that counts, ``(*batch,)``."""
    safe: Tensor
    """Where a shorter step would have gone from there."""
    bold: Tensor
    """Whether the last step was a whole one of Newton's, ``(*batch,)``."""


@dataclass(frozen=True)
class _Newton(Method[_Search]):
    """Sinkhorn's iteration until it is near, then Newton's: whole steps while the error falls, else damped ones."""

    def init(self, equation: _Search, at: Iterate) -> _State:
        return _State(torch.full_like(at.norm, torch.inf), at.z, torch.zeros_like(at.norm, dtype=torch.bool))

    def step(self, equation: _Search, at: Iterate, state: _State) -> Step:
        z, error = at.z, at.norm
        following = safe = z + equation.equation.relaxation * at.residual
        fallen, near = error <= state.before, error <= NEWTON_BELOW
        retreats = ~fallen & (state.bold | ~near)
        bold = torch.zeros_like(near)
        if bool(near.any()):
            assert isinstance(at.made, Place)
            jacobian = equation.equation.jacobian(at.made, equation.cells, rough=True)
            jacobian.prepare()
            change = jacobian.change(at.residual, error.clamp(1e-4, 0.1))
            # The dual objective is generalised self-concordant with the constant 1/epsilon: a damped step is safe.
            length = (change.amax(-1, keepdim=True) - change.amin(-1, keepdim=True)) / equation.equation.transport.epsilon
            damping = torch.where(length > 0, torch.log1p(length) / torch.where(length > 0, length, 1.0), 1.0)
            bold = near & fallen & (length <= BOLD).squeeze(-1)
            newton = near.unsqueeze(-1) & jacobian.alive & torch.isfinite(change)
            damped = torch.where(newton, z + damping * change, following)
            following = torch.where(newton & bold.unsqueeze(-1), z + change, damped)
            safe = torch.where(bold.unsqueeze(-1), damped, safe)
        back = retreats.unsqueeze(-1)
        state = _State(
            torch.where(retreats, state.before, error), torch.where(back, state.safe, safe), bold & ~retreats
        )
        return Step(torch.where(back, state.safe, following), state)
