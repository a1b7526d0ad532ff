"""Plans of entropic transport that are nearly zero for most pairs: only blocks of pairs that count are stored; no derivatives."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ddeq.functionals.cells import Cells
from ddeq.functionals.entropic import EntropicTransport
from ddeq.functionals.plans import SINGLE_FROM, Pairs, Plan, SummedPairs, in_precision, single
from ddeq.measures import DiscreteMeasure

__all__ = ["BlockPairs"]

SIZE = 32
"""At least so many atoms make a cell."""
LEFT_OUT, LEAST = 1e-3, 1e-16
"""Terms that are left out are smaller than the largest of their row by this share of the tolerance, and no smaller than this."""
MARGIN = 6.0
"""Blocks are kept for as long as potentials change by less than so many epsilon."""
WORTHWHILE = 0.5
"""Share of all pairs up to which blocks are faster than all pairs."""


class BlockPairs(Pairs):
    """The pairs of atoms of two measures without a batch, in blocks of cells by cells.

    Parameters
    ----------
    mu, nu
        The measures.
    otherwise
        What to use where most pairs count.
    most
        Most numbers that may be stored.
    """

    def __init__(self, mu: DiscreteMeasure, nu: DiscreteMeasure, otherwise: Pairs, most: int) -> None:
        self._rows, self._columns, self._otherwise, self._most = _Side.of(mu), _Side.of(nu), otherwise, most
        self._exact = SummedPairs(mu, nu)
        self._kept: _Kept | None = None

    def plan(self, transport: EntropicTransport, g: Tensor, *, rtol: float = 0.0) -> Plan:
        kept = self._kept
        if kept is None or not kept.serves(transport, g):
            kept = self._kept = self._chosen(transport, g, -math.log(max(LEFT_OUT * rtol, LEAST)))
        if kept.costs is None:
            return self._otherwise.plan(transport, g, rtol=rtol)
        return _BlockPlan(self._rows, self._columns, kept.rows, kept.columns, kept.costs, transport, g, rtol)

    def columns(self, transport: EntropicTransport, f: Tensor) -> Tensor:
        return self._exact.columns(transport, f)

    def cells(self, most: int) -> Cells | None:
        return self._columns.merged(most)

    def _chosen(self, transport: EntropicTransport, g: Tensor, cutoff: float) -> _Kept:
        """The blocks with terms whose exponents are at most by ``cutoff`` smaller than the largest of their row, near ``g``."""
        rows, columns = self._rows, self._columns
        potential = columns.laid_out(g, -torch.inf)
        highest, at = potential.max(-1)
        nearest = (columns.low - rows.high.unsqueeze(-2)).maximum(rows.low.unsqueeze(-2) - columns.high).clamp_min(0)
        largest = highest - 0.5 * nearest.square().sum(-1)
        # In each row of a block there is a term of at least this size.
        there = columns.points.gather(-2, at[:, None, None].expand(-1, 1, columns.points.shape[-1])).squeeze(-2)
        farthest = (there - rows.low.unsqueeze(-2)).abs().maximum((there - rows.high.unsqueeze(-2)).abs())
        least = (highest - 0.5 * farthest.square().sum(-1)).amax(-1, keepdim=True)
        i, j = (largest >= least - (cutoff + MARGIN) * transport.epsilon).nonzero(as_tuple=True)
        numbers = len(i) * rows.points.shape[-2] * columns.points.shape[-2]
        costs = None
        if numbers <= min(WORTHWHILE * rows.n * columns.n, self._most):
            costs = _costs(rows.points[i], columns.points[j])
        return _Kept(transport.epsilon, g, i, j, costs)


@dataclass(frozen=True)
class _Side:
    """A measure laid out in cells, ``(count, size)``; places of no atom have mass zero."""

    members: Tensor
    n: int
    points: Tensor
    weights: Tensor
    low: Tensor
    """Corners of the boxes of the cells, of atoms with mass, ``(count, d)``."""
    high: Tensor

    @classmethod
    def of(cls, mu: DiscreteMeasure) -> _Side:
        count = 2 ** max(0, (mu.n // SIZE).bit_length() - 1)
        members = Cells.of(mu, count).members
        index = members.clamp_max(mu.n - 1)
        weights = torch.where(members < mu.n, mu.weights[index], 0.0)
        points, dead = mu.points[index], (weights == 0).unsqueeze(-1)
        low, high = points.masked_fill(dead, torch.inf).amin(-2), points.masked_fill(dead, -torch.inf).amax(-2)
        return cls(members, mu.n, points, weights, low, high)

    def laid_out(self, values: Tensor, otherwise: float = 0.0) -> Tensor:
        """Values ``(n, ...)`` at the atoms of the cells, ``(count, size, ...)``."""
        there = values[self.members.clamp_max(self.n - 1)]
        return torch.where((self.weights > 0).reshape(*self.weights.shape, *(1,) * (there.ndim - 2)), there, otherwise)

    def collected(self, values: Tensor) -> Tensor:
        """The reverse of `laid_out`."""
        flat, index = values.flatten(0, 1), self.members.flatten()
        out = flat.new_zeros(self.n + 1, *flat.shape[1:])
        return out.index_copy(0, index.clamp_max(self.n), flat)[: self.n]

    def merged(self, most: int) -> Cells:
        """At most so many cells, which are unions of these."""
        count = min(len(self.members), 2 ** (most.bit_length() - 1))
        members = self.members.reshape(count, -1)
        numbers = torch.arange(count, device=members.device).unsqueeze(-1).expand(members.shape)
        labels = members.new_zeros(self.n + 1).index_copy(0, members.flatten().clamp_max(self.n), numbers.flatten())
        return Cells(labels[: self.n], members)


@dataclass(frozen=True)
class _Kept:
    """Blocks that count for potentials near ``g``: cells of rows and of columns, and their costs, None if there are too many."""

    epsilon: float
    g: Tensor
    rows: Tensor
    columns: Tensor
    costs: Tensor | None

    def serves(self, transport: EntropicTransport, g: Tensor) -> bool:
        """Whether they do for this potential and this blur too."""
        change = (g - self.g)[torch.isfinite(g)]
        near = not change.numel() or bool(change.amax() - change.amin() <= MARGIN * self.epsilon)
        return near and transport.epsilon == self.epsilon


def _costs(x: Tensor, y: Tensor) -> Tensor:
    """Half of the squared distances of points ``(k, n, d)`` and ``(k, m, d)``."""
    if x.shape[-1] > 3:
        return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square_().mul_(0.5)
    total: Tensor | None = None
    for a, b in zip(x.unbind(-1), y.unbind(-1), strict=True):
        square = (a.unsqueeze(-1) - b.unsqueeze(-2)).square_()
        total = square if total is None else total.add_(square)
    assert total is not None
    return total.mul_(0.5)


class _BlockPlan(Plan):
    """Exponentials of each block, ``(k, n, m)``, divided by the largest of their row."""

    def __init__(
        self, rows: _Side, columns: _Side, i: Tensor, j: Tensor, costs: Tensor, by: EntropicTransport, g: Tensor, rtol: float
    ) -> None:
        self._rows, self._columns, self._i, self._j = rows, columns, i, j
        exponents = (columns.laid_out(g, -torch.inf)[j].unsqueeze(-2) - costs).mul_(1.0 / by.epsilon)
        of_rows = exponents.amax(-1)
        largest = torch.full_like(rows.weights, -torch.inf)
        largest = largest.scatter_reduce(0, i.unsqueeze(-1).expand(of_rows.shape), of_rows, "amax")
        largest = torch.where(torch.isfinite(largest), largest, 0.0)
        exponents = in_precision(exponents.sub_(largest[i].unsqueeze(-1)), rtol)
        self._set(exponents.exp_())
        sums = self._gathered(torch.bmm(self._blocks, self._weights[j].unsqueeze(-1)).squeeze(-1), i, len(rows.members))
        self._sums = torch.where(sums > 0, sums, 1.0)
        f = -by.tau * by.epsilon * (largest + self._sums.to(g.dtype).log())
        self._out, self.f = g.dtype, rows.collected(torch.where(sums > 0, f, torch.inf))

    def _set(self, blocks: Tensor) -> None:
        self._blocks, self._weights = blocks, self._columns.weights.to(blocks.dtype)
        self.eps = torch.finfo(blocks.dtype).eps

    def rough(self) -> Plan:
        if self._blocks.numel() < SINGLE_FROM or self._blocks.dtype == torch.float32:
            return self
        other = copy.copy(self)
        other._set(single(self._blocks))
        other._sums = self._sums.float()
        return other

    def product(self, b: Tensor) -> Tensor:
        return self.average(b.unsqueeze(-1)).squeeze(-1)

    def average(self, values: Tensor) -> Tensor:
        laid_out = self._weights.unsqueeze(-1) * self._columns.laid_out(values.to(self._weights.dtype))
        sums = self._gathered(torch.bmm(self._blocks, laid_out[self._j]), self._i, len(self._rows.members))
        return self._rows.collected(sums / self._sums.unsqueeze(-1)).to(self._out)

    def transposed(self, a: Tensor) -> Tensor:
        laid_out = self._rows.laid_out(a.to(self._sums.dtype)) / self._sums
        products = torch.bmm(laid_out[self._i].unsqueeze(-2), self._blocks).squeeze(-2)
        return self._columns.collected(self._weights * self._gathered(products, self._j, len(self._columns.members))).to(
            self._out
        )

    def summed(self, cells: Cells, r: Tensor) -> tuple[Tensor, Tensor]:
        each, size = torch.bmm(self._blocks, self._weights[self._j].unsqueeze(-1)).squeeze(-1), self._sums.shape[-1]
        into = self._i * cells.count + self._j // (len(self._columns.members) // cells.count)
        sums = self._gathered(each, into, len(self._rows.members) * cells.count)
        sums = sums.reshape(-1, cells.count, size).mT / self._sums.unsqueeze(-1)
        return self._rows.collected(sums).to(self._out), r

    @staticmethod
    def _gathered(values: Tensor, index: Tensor, count: int) -> Tensor:
        return values.new_zeros(count, *values.shape[1:]).index_add_(0, index, values)
