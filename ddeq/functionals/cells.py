"""Cells of atoms that lie together: a measure seen from afar."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddeq.measures import DiscreteMeasure, unchecked

__all__ = ["Cells"]


@dataclass(frozen=True)
class Cells:
    """A partition of the atoms of measures into cells; no derivatives.

    A k-d tree: cells are halved at the median of the coordinate in which they are longest.

    Parameters
    ----------
    labels
        The cell of each atom, ``(*batch, n)``.
    members
        The atoms of each cell, ``(*batch, count, size)``; numbers from n on stand for none.
    """

    labels: Tensor
    members: Tensor

    @property
    def count(self) -> int:
        """Number of cells."""
        return self.members.shape[-2]

    @classmethod
    def of(cls, mu: DiscreteMeasure, most: int) -> Cells:
        """At most so many cells (a power of two), or each atom a cell of its own if there are no more."""
        n = mu.n
        if n <= most:
            every = torch.arange(n, device=mu.device).expand(mu.weights.shape)
            return cls(every, every.unsqueeze(-1))
        live = mu.support().unsqueeze(-1)
        points = torch.where(live, mu.points, mu.mean().unsqueeze(-2))  # dead atoms may be anywhere
        rest = -n % most
        order = torch.arange(n + rest, device=mu.device).expand(*mu.batch_shape, 1, n + rest)
        count = 1
        while count < most:
            there = points.unsqueeze(-3).expand(*mu.batch_shape, count, n, mu.dim)
            cell = there.gather(-2, order.clamp_max(n - 1).unsqueeze(-1).expand(*order.shape, mu.dim))
            longest = (cell.amax(-2) - cell.amin(-2)).argmax(-1)
            along = cell.gather(-1, longest[..., None, None].expand(*order.shape, 1)).squeeze(-1)
            order = order.gather(-1, along.argsort(dim=-1, stable=True))
            count *= 2
            order = order.reshape(*mu.batch_shape, count, -1)
        numbers = torch.arange(count, device=mu.device).unsqueeze(-1).expand(order.shape)
        labels = order.new_zeros(*mu.batch_shape, n + rest).scatter(-1, order.flatten(-2), numbers.flatten(-2))
        return cls(labels[..., :n], order)

    def sums(self, values: Tensor) -> Tensor:
        """Sums ``(*batch, count)`` of values ``(*batch, n)`` over the cells."""
        return values.new_zeros(*values.shape[:-1], self.count).scatter_add(-1, self.labels, values)

    def spread(self, values: Tensor) -> Tensor:
        """Values ``(*batch, count)`` of the cells at their atoms, ``(*batch, n)``."""
        return values.gather(-1, self.labels)

    def measure(self, mu: DiscreteMeasure) -> DiscreteMeasure:
        """The measure with each cell's mass at its mean."""
        weights = self.sums(mu.weights)
        index = self.labels.unsqueeze(-1).expand(mu.points.shape)
        moments = mu.points.new_zeros(*mu.batch_shape, self.count, mu.dim)
        live = torch.where(mu.support().unsqueeze(-1), mu.points, 0.0)
        moments = moments.scatter_add(-2, index, mu.weights.unsqueeze(-1) * live)
        return unchecked(moments / torch.where(weights > 0, weights, 1.0).unsqueeze(-1), weights)

    def radius(self, mu: DiscreteMeasure) -> Tensor:
        """Root of the mean squared distance of the atoms of ``mu`` from the mean of their cell, ``(*batch,)``."""
        means = self.measure(mu).points.gather(-2, self.labels.unsqueeze(-1).expand(mu.points.shape))
        live = torch.where(mu.support().unsqueeze(-1), mu.points - means, 0.0)
        return ((mu.weights * live.square().sum(-1)).sum(-1) / mu.mass()).sqrt()
