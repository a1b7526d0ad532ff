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

from ddeq.functionals.entropic import EntropicTransport
from ddeq.kernels import Gaussian
from ddeq.kernels.distances import squared_distances
from ddeq.measures import DiscreteMeasure, unchecked
from ddeq.ranks import is_sharded
from ddeq.reductions import integrate_kernel
from ddeq.reductions.exponential import Exponential
from ddeq.reductions.settings import blocks_are_below

__all__ = ["Pairs", "Plan"]

STORED_UP_TO = 2**24
"""Matrices of up to so many numbers, the batch included, are stored."""
SINGLE_FROM = 2**18
"""From so many numbers on, plans that only direct a step are kept in single precision."""
SINGLE_RANGE = 1e4
"""Largest exponent of which single precision leaves three digits of the exponential."""


class Plan(ABC):
    """The kernel ``P`` of a potential."""

    f: Tensor
    """The potential at the rows, ``(*batch, n)``."""
    eps: float
    """Rounding unit of the products."""

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

    def summed(self, labels: Tensor, count: int) -> Tensor | None:
        """Columns summed by their labels ``(*batch, m)``, as a matrix ``(*batch, n, count)``; None where it is not stored."""
        return None


class Pairs(ABC):
    """The pairs of atoms of two measures."""

    @classmethod
    def of(cls, mu: DiscreteMeasure, nu: DiscreteMeasure) -> Pairs:
        """Stored where the matrix is small enough for memory and `ddeq.reductions.block_size`."""
        numbers = mu.weights[..., 0].numel() * mu.n * nu.n
        if numbers > STORED_UP_TO or blocks_are_below(numbers) or is_sharded(mu.points) or is_sharded(nu.points):
            return _Summed(mu, nu)
        return _Stored(mu, nu)

    @abstractmethod
    def plan(self, transport: EntropicTransport, g: Tensor) -> Plan:
        """The plan of ``g``, ``(*batch, m)``."""

    @abstractmethod
    def columns(self, transport: EntropicTransport, f: Tensor) -> Tensor:
        """The transform of ``f``, ``(*batch, n)``, at the atoms of the second measure, ``(*batch, m)``."""


class _Stored(Pairs):
    def __init__(self, mu: DiscreteMeasure, nu: DiscreteMeasure) -> None:
        self._costs = squared_distances(mu.points, nu.points).mul_(0.5)
        self._rows, self._columns = (m.weights for m in (mu, nu))

    def plan(self, transport: EntropicTransport, g: Tensor) -> Plan:
        return self._plan(transport, g, self._columns, self._costs)

    def columns(self, transport: EntropicTransport, f: Tensor) -> Tensor:
        return self._plan(transport, f, self._rows, self._costs.mT).f

    @staticmethod
    def _plan(transport: EntropicTransport, g: Tensor, weights: Tensor, costs: Tensor) -> _StoredPlan:
        exponents = (torch.where(weights > 0, g, -torch.inf).unsqueeze(-2) - costs).mul_(1.0 / transport.epsilon)
        largest = exponents.amax(-1, keepdim=True)  # without it a row may underflow
        return _StoredPlan(exponents.sub_(largest).exp_(), largest.squeeze(-1), weights, transport)


class _StoredPlan(Plan):
    """Exponentials of each row divided by their largest, and its exponent; zero at dead columns."""

    def __init__(self, exponentials: Tensor, largest: Tensor, weights: Tensor, transport: EntropicTransport) -> None:
        self._exponentials, self._weights = exponentials, weights
        self._out, self.eps = largest.dtype, torch.finfo(weights.dtype).eps
        self._sums = self._times(exponentials, weights)
        self.f = -transport.tau * transport.epsilon * (largest + self._sums.log())

    def rough(self) -> Plan:
        if self._exponentials.numel() < SINGLE_FROM:
            return self
        other = copy.copy(self)
        other._exponentials, other._weights, other._sums = (
            t.float() for t in (self._exponentials, self._weights, self._sums)
        )
        other.eps = torch.finfo(torch.float32).eps
        return other

    def product(self, b: Tensor) -> Tensor:
        product = self._times(self._exponentials, self._weights * b.to(self._weights.dtype))
        return (product / self._sums).to(self._out)

    def average(self, values: Tensor) -> Tensor:
        return self._exponentials @ (self._weights.unsqueeze(-1) * values) / self._sums.unsqueeze(-1)

    def transposed(self, a: Tensor) -> Tensor:
        product = self._times(self._exponentials.mT, a.to(self._sums.dtype) / self._sums)
        return (self._weights * product).to(self._out)

    def rough(self) -> Plan:
        """The plan in single precision, where that is faster and leaves three digits of the products."""
        return self

    def summed(self, labels: Tensor, count: int) -> Tensor | None:
        weighted = self._exponentials * self._weights.unsqueeze(-2)
        sums = weighted.new_zeros(*weighted.shape[:-1], count)
        sums.scatter_add_(-1, labels.unsqueeze(-2).expand(weighted.shape), weighted)
        return (sums / self._sums.unsqueeze(-1)).to(self._out)

    @staticmethod
    def _times(matrix: Tensor, vector: Tensor) -> Tensor:
        return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


class _Summed(Pairs):
    def __init__(self, mu: DiscreteMeasure, nu: DiscreteMeasure) -> None:
        self._mu, self._nu = mu, nu

    def plan(self, transport: EntropicTransport, g: Tensor) -> Plan:
        return _SummedPlan(transport, self._mu, self._nu, g)

    def columns(self, transport: EntropicTransport, f: Tensor) -> Tensor:
        return transport.transform(f, self._mu, self._nu.points)


class _SummedPlan(Plan):
    def __init__(self, transport: EntropicTransport, mu: DiscreteMeasure, nu: DiscreteMeasure, g: Tensor) -> None:
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
        return self._nu.weights.to(self._out) * self._sum(rows, columns, torch.ones_like(self._mu.weights), a.unsqueeze(-1)).squeeze(-1)

    def _sum(self, rows: Tensor, columns: Tensor, weights: Tensor, values: Tensor) -> Tensor:
        return integrate_kernel(self._kernel, rows, unchecked(columns, weights), values.to(rows.dtype)).to(self._out)
