"""Solves for the potentials of entropic transport: from a start or along a falling blur, by Newton's method."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from ddeq.autodiff import without_autocast
from ddeq.functionals.cells import Cells
from ddeq.functionals.jacobians import Place
from ddeq.functionals.plans import Pairs, Plan
from ddeq.functionals.potentials import CELLS, PotentialEquation
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
from ddeq.untraced import untraced

__all__ = ["Guess", "Solved", "solved"]

NEWTON_BELOW = 1.0
"""Newton's method takes over once potentials change by less than so many units, `EntropicTransport.unit`."""
NEAR = 0.5
"""A start is taken if potentials change by less than so many units there; else the blur falls from above."""
SOON = 10
"""Steps within which a solve from the solution of a step before should end; else the blur falls from above."""
ROUNDING, HIDDEN = 32.0, 1e-6
"""So many rounding units of the largest potential may be left in a potential, but no larger errors."""


class Guess(Enum):
    """What is known of a start."""

    PERHAPS = auto()
    """It may be near: it is tried where its error is small."""
    NEAR = auto()
    """It is the solution of a measure a step before."""
    SOLVED = auto()
    """It probably is the solution."""
    KNOWN = auto()
    """It is the solution."""


@dataclass(frozen=True)
class Solved:
    """A solution of an equation of potentials."""

    z: Tensor
    """The potential, differentiable in the tensors of the equation, ``(*batch, m)``."""
    status: Tensor
    """`Status` of each sample, ``(*batch,)``."""
    plan: Callable[[], Plan]
    """Gives the plan of the potential, without derivatives."""


Coarse = Callable[[], Tensor]
"""Finds a start where the one at hand is far from the solution."""


def solved(equation: PotentialEquation, stop: Stop, start: Tensor, guess: Guess, coarse: Coarse | None = None) -> Solved:
    """The solution from a ``start`` ``(*batch, m)``; ``rtol`` of the ``stop`` bounds the relative error of the marginals.

    Where the start is far, ``coarse`` finds another one; where that is far too, or there is none, the blur falls from above.

    Warns
    -----
    InnerProblemWarning
        If a solve did not reach its tolerance; the best iterate is used.
    """
    z, status = start.detach(), torch.zeros(start.shape[:-1], dtype=torch.long, device=start.device)
    search: _Search | None = None
    if guess is not Guess.KNOWN:
        with torch.no_grad(), without_autocast(start.device):
            search = _Search.of(equation)
            z, status, residual = search.solution(stop, z, guess, coarse)
        failed = status != Status.CONVERGED.value
        if bool(failed.any()):
            text = (
                "Sinkhorn: some solves did not reach the relative error that `stop` wants in the marginals. Take a larger blur, "
                "or a `stop` with more steps or a larger rtol"
            )
            warn(InnerProblemWarning(text, failed=failed, residual=residual, wanted=stop.rtol))
    tied = z
    if torch.is_grad_enabled() and any(t.requires_grad for t in equation.tensors):
        equation.rtol = stop.rtol
        tied = Implicit().attach(equation, z, torch.full_like(status, Status.CONVERGED.value), stop)
    return Solved(tied, status, untraced(cache(lambda: (search or _Search.of(equation)).plan(z))))


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
        pairs = equation.pairs()
        return cls(equation, pairs, equation.cells(pairs))

    def evaluated(self, z: Tensor) -> tuple[Tensor, Place]:
        place = self.equation.place(self.pairs, z, rtol=self.rtol)
        return place.residual + self.equation.transport.tau**2 * place.shift, place

    def residual(self, z: Tensor, *tensors: Tensor) -> Tensor:
        return self.evaluated(z)[0]

    def sizes(self, z: Tensor, residual: Tensor, previous: Iterate | None) -> Sizes:
        transport = self.equation.transport
        error = self.inner.norm(residual / transport.unit) / self.inner.everywhere(self.equation.at.mass()).sqrt()
        largest = 0.5 * self._diameter.square()
        if transport.reach is not None:
            largest = largest.clamp_min(transport.rho)
        rounding = self.rounding(z)
        # Rounding of large potentials hides smaller errors; where it hides large ones, that the residual is small says nothing.
        error = torch.where(rounding > HIDDEN, torch.maximum(error, rounding), error)
        hidden = torch.maximum(rounding, torch.finfo(z.dtype).eps * largest / transport.unit)
        return Sizes(error, (ROUNDING * hidden).clamp_max(HIDDEN).div(self.rtol).clamp_min(1.0))

    def rounding(self, z: Tensor) -> Tensor:
        """What rounding leaves of an error in a potential, ``(*batch,)``."""
        largest = self.inner.everywhere(torch.where(self.equation.at.support(), z, 0.0).abs().amax(-1))
        return torch.finfo(z.dtype).eps * largest / self.equation.transport.unit

    @torch.no_grad()
    def plan(self, z: Tensor) -> Plan:
        """The plan of a potential."""
        return self.equation.place(self.pairs, z, rtol=self.rtol).plan

    def solution(self, stop: Stop, start: Tensor, guess: Guess, coarse: Coarse | None) -> tuple[Tensor, Tensor, Tensor]:
        """The solution, the status of each sample, and the error that is left."""
        stop = replace(stop, rtol=max(stop.rtol, torch.finfo(start.dtype).eps), atol=0.0)
        self.rtol = stop.rtol
        z, first = start, stop
        if guess is Guess.NEAR:
            first = replace(stop, max_steps=min(stop.max_steps, SOON))
        else:
            error, size, *_ = self.sizes(start, self.residual(start), None)
            assert size is not None
            if guess is Guess.SOLVED and bool((error <= stop.rtol * size).all()):
                return start, torch.zeros_like(error, dtype=torch.long), error
            far = ~(error <= NEAR)
            if coarse is not None and bool(far.any()):
                z = self._where(far, coarse(), z)
                far = ~(self.sizes(z, self.residual(z), None).norm <= NEAR)
            if self.equation.anneals and bool(far.any()):
                z = self._where(far, self._annealed(ANNEALINGS[0]), z)
        outcome = self._by_newton(z, first)
        z, status, error = outcome.value, outcome.status, outcome.absolute
        for by in ANNEALINGS if guess is Guess.NEAR else ANNEALINGS[1:]:
            failed = (status != Status.CONVERGED.value) & (status != Status.STAGNATED.value)
            if not bool(failed.any()):
                break
            again = self._by_newton(self._annealed(by) if self.equation.anneals else torch.zeros_like(start), stop)
            better = failed & ~(again.absolute >= error)
            z = self._where(better, again.value, z)
            status, error = (torch.where(better, a, b) for a, b in ((again.status, status), (again.absolute, error)))
        z, live = self.equation.normalised(z), self.equation.at.support()
        if bool(self.inner.everywhere((~live).any())):
            # The potential at an atom of mass zero is what the others make of it.
            z = torch.where(live, z, self.equation.at_all_atoms(self.pairs, z))
        return z, status, error

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
            # The dual objective is generalised self-concordant with the constant 1/unit: a damped step is safe.
            length = (change.amax(-1, keepdim=True) - change.amin(-1, keepdim=True)) / equation.equation.transport.unit
            damping = torch.where(length > 0, torch.log1p(length) / torch.where(length > 0, length, 1.0), 1.0)
            bold = near & fallen
            newton = near.unsqueeze(-1) & jacobian.alive & torch.isfinite(change)
            damped = torch.where(newton, z + damping * change, following)
            following = torch.where(newton & bold.unsqueeze(-1), z + change, damped)
            safe = torch.where(bold.unsqueeze(-1), damped, safe)
        back = retreats.unsqueeze(-1)
        state = _State(torch.where(retreats, state.before, error), torch.where(back, state.safe, safe), bold & ~retreats)
        return Step(torch.where(back, state.safe, following), state, status=self._ended(equation, z, error))

    @staticmethod
    def _ended(equation: _Search, z: Tensor, error: Tensor) -> Tensor | None:
        """Samples end whose error is as small as rounding allows, where that is too large."""
        rounding = equation.rounding(z)
        ended = (rounding > HIDDEN) & (error <= ROUNDING * rounding)
        return torch.where(ended, Status.STAGNATED.value, -1) if bool(ended.any()) else None
