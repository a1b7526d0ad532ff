"""Optimal transport on the line, by sorting: costs, potentials and slopes, differentiable again.

Points that coincide are one place; atoms of mass zero have a place, and take no part in the transport. Which points are
neighbours and which levels of mass meet is held constant under differentiation: everything is then a polynomial in points
and weights, and its derivatives are those of the transport wherever they exist.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.reductions.sorted import first_in_place
from ddeq.reductions.sorting import arrange, ascending_with_ties, is_plain, members, put_back, runs, sort, sorted_values

__all__ = ["LineTransport"]

LEVELS_AGREE = 4 * torch.finfo(torch.float32).eps
"""Cumulative weights that differ by so little count as equal, in double precision too, so that both precisions agree."""


class LineTransport(ABC):
    r"""Optimal transport on the line for the cost :math:`|x - y|^p / p`, ``p`` = 1 or 2; `between` makes one.

    .. math:: \phi' (x) = c'\big(x, Q(R(x))\big), \qquad c'(x, y) = x - y \;(p = 2) , \quad \operatorname{sign}(x - y) \;(p = 1) ,

    with the distribution function :math:`R` of the source and the quantile function :math:`Q` of the target. Where a level of
    mass is met by two target atoms, the mean of both is taken: potentials are not unique then. At the place of an atom the
    slope is the mean of :math:`c'` over where its mass goes.
    """

    @staticmethod
    def between(
        s: Float[Tensor, "*#batch n"],
        a: Float[Tensor, "*#batch n"],
        t: Float[Tensor, "*#batch m"],
        b: Float[Tensor, "*#batch m"],
        p: int,
    ) -> LineTransport:
        """Transport from probabilities ``a`` at ``s`` to probabilities ``b`` at ``t``."""
        plain = is_plain(s.detach(), a, t.detach(), b)
        equal = plain and s.shape == t.shape and all(map(_are_equal, (a, b)))
        return _Matched(p, s, a, t, b) if equal else _Coupled.between(s, a, t, b, p)

    @abstractmethod
    def reversed(self) -> LineTransport:
        """The same transport, from the target to the source."""

    @abstractmethod
    def cost(self) -> Float[Tensor, "*batch"]:
        """Value of the transport, a function of the points; its derivatives in the probabilities are the `potentials`."""

    @abstractmethod
    def slopes(self) -> Float[Tensor, "*batch n"]:
        """Derivatives of the first variation in the place of each source atom."""

    @abstractmethod
    def potentials(self) -> Float[Tensor, "*batch n"]:
        """First variation at each source atom, up to a constant that depends on the atoms of positive mass only."""


@dataclass(frozen=True)
class _Matched(LineTransport):
    """Between equally many atoms of equal mass: each goes to the one with its rank, and little but the sorting is left to do.

    How derivatives depend on atoms that coincide is left to `_Coupled`.
    """

    p: int
    s: Tensor
    a: Tensor
    t: Tensor
    b: Tensor

    def reversed(self) -> LineTransport:
        return _Matched(self.p, self.t, self.b, self.s, self.a)

    def cost(self) -> Tensor:
        if self._shares_derivatives():
            return self._coupled().cost()
        return _cost(self._sorted_source() - self._sorted_target(), self.p).mean(-1)

    def slopes(self) -> Tensor:
        order, ties = self._of_source
        if ties is None or self._shares_derivatives():
            return self._coupled().slopes()
        slopes = _slope(arrange(self.s, order) - self._sorted_target(), self.p)
        if len(ties):
            first, last = runs(ties)
            places, run = members(first, last)
            sums = slopes.new_zeros(len(first)).index_add(0, run, slopes.view(-1)[places])
            slopes.view(-1)[places] = (sums / (last - first + 1))[run]
        return put_back(slopes, order)

    def potentials(self) -> Tensor:
        if self._shares_derivatives():
            return self._coupled().potentials()
        order, _ = self._of_source
        y = self._sorted_target()
        potentials = _potentials(arrange(self.s, order), (y[..., :-1], y[..., 1:]), self.p)
        return put_back(potentials - potentials.mean(-1, keepdim=True), order)

    @cached_property
    def _of_source(self) -> tuple[Tensor, Tensor | None]:
        return ascending_with_ties(self.s)

    @cached_property
    def _of_target(self) -> tuple[Tensor, Tensor | None]:
        return ascending_with_ties(self.t)

    def _sorted_source(self) -> Tensor:
        return sorted_values(self.s) if is_plain(self.s) else arrange(self.s, self._of_source[0])

    def _sorted_target(self) -> Tensor:
        return sorted_values(self.t) if is_plain(self.t) else arrange(self.t, self._of_target[0])

    def _shares_derivatives(self) -> bool:
        recorded = [not is_plain(points) for points in (self.s, self.t)]
        known = ([self._of_source[1]] if recorded[0] else []) + ([self._of_target[1]] if recorded[1] else [])
        return any(ties is None or bool(len(ties)) for ties in known)

    def _coupled(self) -> LineTransport:
        return _Coupled.between(self.s, self.a, self.t, self.b, self.p)


@dataclass(frozen=True)
class _Coupled(LineTransport):
    """Between any masses."""

    p: int
    source: _Atoms
    target: _Atoms
    rows: Tensor
    """Numbers ``(*batch, n + m - 1)`` of the sorted source atoms from which mass goes"""
    columns: Tensor
    """to these sorted target atoms,"""
    flow: Tensor
    """and how much."""

    @classmethod
    def between(cls, s: Tensor, a: Tensor, t: Tensor, b: Tensor, p: int) -> _Coupled:
        source, target = _Atoms.sort(s, a), _Atoms.sort(t, b)
        levels, order = sort(torch.cat([source.levels[..., :-1], target.levels[..., :-1]], -1))
        # Between two levels one atom sends its mass to one other; at a level one of the two sides goes on to its next atom.
        rows = torch.nn.functional.pad((order < s.shape[-1] - 1).cumsum(-1), (1, 0))
        columns = torch.arange(rows.shape[-1], device=rows.device) - rows
        bottom = torch.zeros_like(source.levels[..., :1])
        return cls(p, source, target, rows, columns, torch.cat([bottom, levels, bottom + 1.0], -1).diff())

    def reversed(self) -> LineTransport:
        return _Coupled(self.p, self.target, self.source, self.columns, self.rows, self.flow)

    def cost(self) -> Tensor:
        x, y = self.source.places.gather(-1, self.rows), self.target.places.gather(-1, self.columns)
        return (self.flow.detach() * _cost(x - y, self.p)).sum(-1)

    def slopes(self) -> Tensor:
        return self.source.in_place(self._sorted_slopes())

    def potentials(self) -> Tensor:
        source = self.source
        potentials = _potentials(source.places, self._met(source.levels[..., :-1]), self.p)
        potentials = potentials - (source.masses.detach() * potentials).sum(-1, keepdim=True)
        # An atom that moves away alone from a place that it shares: no change in value, but one in its derivative.
        away = source.points - source.places
        potentials = potentials + away * self._sorted_slopes()
        if self.p == 2:
            potentials = potentials + 0.5 * away.square()
        return source.in_place(potentials)

    def _sorted_slopes(self) -> Tensor:
        source = self.source
        place = source.first.gather(-1, self.rows)
        slopes = _slope(source.places.gather(-1, self.rows) - self.target.places.gather(-1, self.columns), self.p)
        total = torch.zeros_like(source.points).scatter_add(-1, place, self.flow * slopes).gather(-1, source.first)
        mass = torch.zeros_like(source.points).scatter_add(-1, place, self.flow).gather(-1, source.first)
        empty = mass <= 0
        if is_plain(empty) and not bool(empty.any()):
            return total / mass
        met = [0.5 * _slope(source.places - y, self.p) for y in self._met(source.levels)]
        return torch.where(empty, met[0] + met[1], total / torch.where(empty, 1.0, mass))

    def _met(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """The places of the two target atoms that meet at each level: the same one twice, except where it is a border."""
        levels = levels.detach().clamp(2 * LEVELS_AGREE, 1.0 - 2 * LEVELS_AGREE)
        ends = self.target.levels.detach()
        lower, upper = _count(ends, levels - LEVELS_AGREE), _count(ends, levels + LEVELS_AGREE, right=True)
        return self.target.places.gather(-1, lower), self.target.places.gather(-1, upper)


@dataclass(frozen=True)
class _Atoms:
    """Atoms on the line in ascending order."""

    points: Tensor
    masses: Tensor
    order: Tensor
    first: Tensor
    """Number of the first atom in the same place."""
    places: Tensor
    """Where the atoms of each place lie: as a function of the points their mean, weighted by mass."""
    levels: Tensor
    """Cumulative masses, the last one exactly one."""

    @classmethod
    def sort(cls, points: Tensor, masses: Tensor) -> _Atoms:
        order, ties = ascending_with_ties(points)
        points, masses = arrange(points, order), arrange(masses, order)
        levels = masses.cumsum(-1)
        levels = levels / levels[..., -1:]
        if ties is not None and not len(ties):
            alone = torch.arange(points.shape[-1], device=points.device).expand(points.shape)
            return cls(points, masses, order, alone, points, levels)
        where = points.detach()
        first = first_in_place(where)
        sums = torch.stack([masses.detach(), torch.ones_like(where)], -2)
        index = first.unsqueeze(-2).expand(sums.shape)
        mass, count = torch.zeros_like(sums).scatter_add(-1, index, sums).gather(-1, index).unbind(-2)
        share = torch.where(mass > 0, masses.detach() / torch.where(mass > 0, mass, 1.0), 1.0 / count)
        moves = torch.zeros_like(points).scatter_add(-1, first, share * (points - where)).gather(-1, first)
        return cls(points, masses, order, first, where + moves, levels)

    def in_place(self, values: Tensor) -> Tensor:
        """Values of the sorted atoms in the order in which the atoms came."""
        return put_back(values, self.order)


def _are_equal(masses: Tensor) -> bool:
    low, high = masses.aminmax(dim=-1)
    return torch.equal(low, high)


def _cost(away: Tensor, p: int) -> Tensor:
    return away.abs() if p == 1 else 0.5 * away.square()


def _slope(away: Tensor, p: int) -> Tensor:
    return away.sign() if p == 1 else away


def _potentials(x: Tensor, met: tuple[Tensor, Tensor], p: int) -> Tensor:
    """Potentials at ascending ``x``, zero at the first, where between two the target atoms ``met`` lie opposite, half of each."""
    here, next_one = x[..., :-1], x[..., 1:]
    steps = torch.zeros_like(here)
    for y in met:
        if p == 1:
            steps = steps + 0.5 * ((next_one - y).abs() - (here - y).abs())
        else:
            steps = steps + 0.5 * (next_one - here) * (0.5 * (next_one + here) - y)
    return torch.nn.functional.pad(steps.cumsum(-1), (1, 0))


def _count(numbers: Tensor, x: Tensor, right: bool = False) -> Tensor:
    """How many of the ascending ``numbers`` lie below ``x``, or up to it if ``right``."""
    count: Tensor = _Count.apply(numbers, x, right)  # type: ignore[no-untyped-call]
    return count


class _Count(torch.autograd.Function):
    """``torch.searchsorted``, which under `vmap` sees tensors whose batch lies wherever in memory, and warns."""

    @staticmethod
    def forward(numbers: Tensor, x: Tensor, right: bool) -> Tensor:
        return torch.searchsorted(numbers.contiguous(), x.contiguous(), right=right)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], numbers: Tensor, x: Tensor, right: bool) -> tuple[Tensor, int]:
        def in_front(t: Tensor, k: int | None) -> Tensor:
            return t.expand(info.batch_size, *t.shape) if k is None else t.movedim(k, 0)

        return _count(in_front(numbers, dims[0]), in_front(x, dims[1]), right), 0
