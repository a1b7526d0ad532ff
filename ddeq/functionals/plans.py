r"""Plans of entropic transport as operators: stored as matrices, or summed anew for every product; no derivatives.

A potential :math:`g` at the atoms of :math:`\nu` and :math:`f = T_\nu g` fix the kernel

.. math:: P(x, y) = e^{g(y)/\varepsilon + f(x)/(\tau\varepsilon) - c(x, y)/\varepsilon}\,\nu(y) , \qquad \sum_y P(x, y) = 1 ,

of which the plan is a multiple, row by row: :math:`\pi = \mathrm{diag}(r) P`.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ddeq.functionals.cells import Cells
from ddeq.functionals.entropic import EntropicTransport
from ddeq.kernels import Gaussian
from ddeq.kernels.distances import squared_distances
from ddeq.measures import DiscreteMeasure, unchecked
from ddeq.ranks import is_sharded
from ddeq.reductions import integrate_kernel
from ddeq.reductions.exponential import Exponential

__all__ = ["Pairs", "Plan", "StoredPairs", "SummedPairs", "in_precision", "single"]

SINGLE_FROM = 2**18
"""From so many numbers on, plans are in single precision where three digits or a tolerance of `SINGLE_RTOL` are enough."""
SINGLE_RTOL = 1e-5
"""Relative error of marginals by exponentials in single precision."""
SINGLE_EPS = torch.finfo(torch.float32).eps
LOST = {True: 1e-280, False: 1e-24}
"""`Plan.lost` in double and in single precision."""
SMALLEST, NORMAL = -60.0, 1e-26
"""Least exponent of an exponential in single precision, and least exponential that is not taken for zero there."""
ROWS = 1024
"""Most rows from which sums over cells are made where no plan is stored."""
SINGLE_RANGE = 1e4
"""Largest exponent of which single precision leaves three digits of the exponential."""


class Plan(ABC):
    """The kernel ``P`` of a potential."""

    f: Tensor
    """The potential at the rows, ``(*batch, n)``."""
    eps: float
    """Rounding unit of the products."""

    @property
    def lost(self) -> float:
        """Sums of a column relative to its mass that are smaller have lost digits."""
        return LOST[self.eps < SINGLE_EPS]

    @abstractmethod
    def product(self, b: Tensor) -> Tensor:
        """``P b``, from ``(*batch, m)`` to ``(*batch, n)``."""

    @abstractmethod
    def average(self, values: Tensor) -> Tensor:
        """``P`` times values ``(*batch, m, c)``: their averages ``(*batch, n, c)``."""

    @abstractmethod
    def transposed(self, a: Tensor) -> Tensor:
        """``P^T a``, from ``(*batch, n)`` to ``(*batch, m)``."""

    def rough(self) -> Plan:
        """The plan in single precision, where that is faster and leaves three digits of the products."""
        return self

    @abstractmethod
    def summed(self, cells: Cells, r: Tensor) -> tuple[Tensor, Tensor]:
        """Columns summed over the `Pairs.cells`, as a matrix ``(*batch, k, count)``, and the masses of its rows ``(*batch, k)``.

        The rows are those of the plan, of masses ``r``, or some that stand for all.
        """


class Pairs(ABC):
    """The pairs of atoms of two measures."""

    @abstractmethod
    def plan(self, transport: EntropicTransport, g: Tensor, *, rtol: float = 0.0) -> Plan:
        """The plan of ``g``, ``(*batch, m)``, whose marginals may have a relative error of ``rtol``."""

    @abstractmethod
    def cells(self, most: int) -> Cells | None:
        """At most so many cells of the atoms of the second measure, for `Plan.summed`; None where they are spread over ranks."""

    @abstractmethod
    def columns(self, transport: EntropicTransport, f: Tensor) -> Tensor:
        """The transform of ``f``, ``(*batch, n)``, at the atoms of the second measure, ``(*batch, m)``."""


class StoredPairs(Pairs):
    """All costs as a matrix."""

    def __init__(self, mu: DiscreteMeasure, nu: DiscreteMeasure) -> None:
        self._costs = squared_distances(mu.points, nu.points).mul_(0.5)
        self._mu, self._nu = mu, nu

    def plan(self, transport: EntropicTransport, g: Tensor, *, rtol: float = 0.0) -> Plan:
        return self._plan(transport, g, self._nu.weights, self._costs, rtol)

    def columns(self, transport: EntropicTransport, f: Tensor) -> Tensor:
        return self._plan(transport, f, self._mu.weights, self._costs.mT, 0.0).f

    def cells(self, most: int) -> Cells | None:
        return Cells.of(self._nu, most)

    @staticmethod
    def _plan(transport: EntropicTransport, g: Tensor, weights: Tensor, costs: Tensor, rtol: float) -> _StoredPlan:
        exponents = (torch.where(weights > 0, g, -torch.inf).unsqueeze(-2) - costs).mul_(1.0 / transport.epsilon)
        largest = exponents.amax(-1, keepdim=True)  # without it a row may underflow
        return _StoredPlan(in_precision(exponents.sub_(largest), rtol).exp_(), largest.squeeze(-1), weights, transport)


def in_precision(exponents: Tensor, rtol: float) -> Tensor:
    """Exponents of many numbers in single precision, where the tolerance allows it."""
    if rtol < SINGLE_RTOL or exponents.numel() < SINGLE_FROM:
        return exponents
    return exponents.float().clamp_min_(SMALLEST)  # numbers below the normal ones are slow


def single(exponentials: Tensor) -> Tensor:
    """Exponentials in single precision, zero where they would not be normal numbers, which are slow."""
    return torch.nn.functional.threshold(exponentials.float(), NORMAL, 0.0)


class _StoredPlan(Plan):
    """Exponentials of each row divided by their largest, and its exponent; zero at dead columns."""

    def __init__(self, exponentials: Tensor, largest: Tensor, weights: Tensor, transport: EntropicTransport) -> None:
        self._exponentials, self._weights = exponentials, weights.to(exponentials.dtype)
        self._out, self.eps = largest.dtype, torch.finfo(exponentials.dtype).eps
        self._sums = self._times(exponentials, self._weights)
        self.f = -transport.tau * transport.epsilon * (largest + self._sums.to(self._out).log())

    def rough(self) -> Plan:
        if self._exponentials.numel() < SINGLE_FROM or self._exponentials.dtype == torch.float32:
            return self
        other = copy.copy(self)
        other._exponentials = single(self._exponentials)
        other._weights, other._sums = self._weights.float(), self._sums.float()
        other.eps = torch.finfo(torch.float32).eps
        return other

    def product(self, b: Tensor) -> Tensor:
        product = self._times(self._exponentials, self._weights * b.to(self._weights.dtype))
        return (product / self._sums).to(self._out)

    def average(self, values: Tensor) -> Tensor:
        values = self._weights.unsqueeze(-1) * values.to(self._weights.dtype)
        return (self._exponentials @ values / self._sums.unsqueeze(-1)).to(self._out)

    def transposed(self, a: Tensor) -> Tensor:
        product = self._times(self._exponentials.mT, a.to(self._sums.dtype) / self._sums)
        return (self._weights * product).to(self._out)

    def summed(self, cells: Cells, r: Tensor) -> tuple[Tensor, Tensor]:
        weighted = self._exponentials * self._weights.unsqueeze(-2)
        if cells.count < weighted.shape[-1]:
            index = cells.labels.unsqueeze(-2).expand(weighted.shape)
            weighted = weighted.new_zeros(*weighted.shape[:-1], cells.count).scatter_add_(-1, index, weighted)
        return (weighted / self._sums.unsqueeze(-1)).to(self._out), r

    @staticmethod
    def _times(matrix: Tensor, vector: Tensor) -> Tensor:
        return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


class SummedPairs(Pairs):
    """Nothing is stored: sums of `ddeq.reductions`."""

    def __init__(self, mu: DiscreteMeasure, nu: DiscreteMeasure) -> None:
        self._mu, self._nu = mu, nu

    def plan(self, transport: EntropicTransport, g: Tensor, *, rtol: float = 0.0) -> Plan:
        return _SummedPlan(transport, self._mu, self._nu, g)

    def columns(self, transport: EntropicTransport, f: Tensor) -> Tensor:
        return transport.transform(f, self._mu, self._nu.points)

    def cells(self, most: int) -> Cells | None:
        return None if is_sharded(self._nu.points) else Cells.of(self._nu, most)


class _SummedPlan(Plan):
    def __init__(self, transport: EntropicTransport, mu: DiscreteMeasure, nu: DiscreteMeasure, g: Tensor) -> None:
        self._transport, self._g = transport, g
        self.f = transport.transform(g, nu, mu.points)
        live = torch.where(nu.support(), g, 0.0)
        self._mu, self._nu, self._out, self.eps = mu, nu, g.dtype, torch.finfo(g.dtype).eps
        exponents = self.f / (transport.tau * transport.epsilon), live / transport.epsilon
        self._at_mu, self._at_nu = (e.unsqueeze(-1) for e in exponents)
        self._kernel = Exponential(Gaussian(transport.blur), mu.dim)

    def rough(self) -> Plan:
        if not bool(torch.stack([e.abs().amax() for e in (self._at_mu, self._at_nu)]).amax() < SINGLE_RANGE):
            return self
        other, single = copy.copy(self), torch.float32
        other._mu, other._nu = self._mu.to(single), self._nu.to(single)
        other._at_mu, other._at_nu = self._at_mu.to(single), self._at_nu.to(single)
        other.eps = torch.finfo(single).eps
        return other

    def product(self, b: Tensor) -> Tensor:
        return self.average(b.unsqueeze(-1)).squeeze(-1)

    def average(self, values: Tensor) -> Tensor:
        rows = torch.cat([self._mu.points, -self._at_mu], -1)
        columns = torch.cat([self._nu.points, self._at_nu], -1)
        return self._sum(rows, columns, self._nu.weights, values)

    def transposed(self, a: Tensor) -> Tensor:
        rows = torch.cat([self._nu.points, -self._at_nu], -1)
        columns = torch.cat([self._mu.points, self._at_mu], -1)
        return self._nu.weights.to(self._out) * self._sum(
            rows, columns, torch.ones_like(self._mu.weights), a.unsqueeze(-1)
        ).squeeze(-1)

    def _sum(self, rows: Tensor, columns: Tensor, weights: Tensor, values: Tensor) -> Tensor:
        return integrate_kernel(self._kernel, rows, unchecked(columns, weights), values.to(rows.dtype)).to(self._out)

    def summed(self, cells: Cells, r: Tensor) -> tuple[Tensor, Tensor]:
        # One atom in each of many cells of rows stands for the others.
        of_rows = Cells.of(self._mu, ROWS)
        index = of_rows.members[..., 0].clamp_max(self._mu.n - 1)
        points = self._mu.points.gather(-2, index.unsqueeze(-1).expand(*index.shape, self._mu.dim))
        some = unchecked(points, torch.ones_like(index, dtype=points.dtype))
        sums, _ = StoredPairs(some, self._nu).plan(self._transport, self._g).summed(cells, some.weights)
        return sums, of_rows.sums(r)
