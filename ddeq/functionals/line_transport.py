"""Optimal transport on the line, by sorting: costs, potentials and slopes, differentiable again.

Points that coincide are one place; atoms of mass zero have a place, and take no part in the transport. Which points are
neighbours and which levels of mass meet is held constant under differentiation: everything is then a polynomial in points
and weights, and its derivatives are those of the transport wherever they exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.reductions.sorted import ascending

__all__ = ["LineTransport"]

LEVELS_AGREE = 4 * torch.finfo(torch.float32).eps
"""Cumulative weights that differ by so little count as equal, in double precision too, so that both precisions agree."""


@dataclass(frozen=True)
class LineTransport:
    r"""Optimal transport on the line for the cost :math:`|x - y|^p / p`, ``p`` = 1 or 2; `between` makes one.

    .. math:: \phi' (x) = c'\big(x, Q(R(x))\big), \qquad c'(x, y) = x - y \;(p = 2) , \quad \operatorname{sign}(x - y) \;(p = 1) ,

    with the distribution function :math:`R` of the source and the quantile function :math:`Q` of the target. Where a level of
    mass is met by two target atoms, the mean of both is taken: potentials are not unique then. At the place of an atom the
    slope is the mean of :math:`c'` over where its mass goes.
    """

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
    def between(
        cls,
        s: Float[Tensor, "*#batch n"],
        a: Float[Tensor, "*#batch n"],
        t: Float[Tensor, "*#batch m"],
        b: Float[Tensor, "*#batch m"],
        p: int,
    ) -> LineTransport:
        """Transport from probabilities ``a`` at ``s`` to probabilities ``b`` at ``t``."""
        source, target = _Atoms.sort(s, a), _Atoms.sort(t, b)
        levels, order = torch.cat([source.levels[..., :-1], target.levels[..., :-1]], -1).sort(dim=-1, stable=True)
        # Between two levels one atom sends its mass to one other; at a level one of the two sides goes on to its next atom.
        rows = torch.nn.functional.pad((order < s.shape[-1] - 1).cumsum(-1), (1, 0))
        columns = torch.arange(rows.shape[-1], device=rows.device) - rows
        bottom = torch.zeros_like(source.levels[..., :1])
        return cls(p, source, target, rows, columns, torch.cat([bottom, levels, bottom + 1.0], -1).diff())

    def reversed(self) -> LineTransport:
        """The same transport, from the target to the source."""
        return LineTransport(self.p, self.target, self.source, self.columns, self.rows, self.flow)

    def cost(self) -> Float[Tensor, "*batch"]:
        """Value of the transport, a function of the points; its derivatives in the probabilities are the `potentials`."""
        x, y = self.source.places.gather(-1, self.rows), self.target.places.gather(-1, self.columns)
        costs = (x - y).abs() if self.p == 1 else 0.5 * (x - y).square()
        return (self.flow.detach() * costs).sum(-1)

    def slopes(self) -> Float[Tensor, "*batch n"]:
        """Derivatives of the first variation in the place of each source atom."""
        return self.source.in_place(self._sorted_slopes())

    def potentials(self) -> Float[Tensor, "*batch n"]:
        """First variation at each source atom, up to a constant that depends on the atoms of positive mass only."""
        source = self.source
        here, next_one = source.places[..., :-1], source.places[..., 1:]
        steps = torch.zeros_like(here)
        for y in self._met(source.levels[..., :-1]):
            if self.p == 1:
                steps = steps + 0.5 * ((next_one - y).abs() - (here - y).abs())
            else:
                steps = steps + 0.5 * (next_one - here) * (0.5 * (next_one + here) - y)
        potentials = torch.nn.functional.pad(steps.cumsum(-1), (1, 0))
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
        slopes = self._slope(source.places.gather(-1, self.rows), self.target.places.gather(-1, self.columns))
        total = torch.zeros_like(source.points).scatter_add(-1, place, self.flow * slopes).gather(-1, source.first)
        mass = torch.zeros_like(source.points).scatter_add(-1, place, self.flow).gather(-1, source.first)
        empty = mass <= 0
        met = [0.5 * self._slope(source.places, y) for y in self._met(source.levels)]
        return torch.where(empty, met[0] + met[1], total / torch.where(empty, 1.0, mass))

    def _slope(self, x: Tensor, y: Tensor) -> Tensor:
        return (x - y).sign() if self.p == 1 else x - y

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
        order = ascending(points)
        points, masses = points.gather(-1, order), masses.expand(points.shape).gather(-1, order)
        where = points.detach()
        first = _count(where, where)
        sums = torch.stack([masses.detach(), torch.ones_like(where)], -2)
        index = first.unsqueeze(-2).expand(sums.shape)
        mass, count = torch.zeros_like(sums).scatter_add(-1, index, sums).gather(-1, index).unbind(-2)
        share = torch.where(mass > 0, masses.detach() / torch.where(mass > 0, mass, 1.0), 1.0 / count)
        moves = torch.zeros_like(points).scatter_add(-1, first, share * (points - where)).gather(-1, first)
        levels = masses.cumsum(-1)
        return cls(points, masses, order, first, where + moves, levels / levels[..., -1:])

    def in_place(self, values: Tensor) -> Tensor:
        """Values of the sorted atoms in the order in which the atoms came."""
        return torch.zeros_like(values).scatter(-1, self.order, values)


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
