"""Distances to the support of a measure."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.autodiff import recompute, under_transforms
from ddeq.kernels.distances import by_cdist, squared_distances
from ddeq.measures import DiscreteMeasure, check_mass
from ddeq.reductions.integrals import against
from ddeq.reductions.placement import by_rows
from ddeq.reductions.settings import rows_per_block

__all__ = ["nearest_squared_distance"]

TIES = 4
"""Largest mean number of nearest atoms per point that is kept for derivatives; with more, distances are computed again."""


def nearest_squared_distance(x: Float[Tensor, "*batch n d"], mu: DiscreteMeasure) -> Float[Tensor, "*batch n"]:
    r"""Squared distance :math:`\min_{y \in \operatorname{supp}\mu} |x_i - y|^2` of points to the support of a measure.

    A function of the support: atoms of mass zero do not count, and there is no derivative in the weights (first variation, T2).
    Where several atoms are nearest, the derivative is their mean, weighted by mass. It therefore depends on the measure alone
    (measure consistency, T1): copies of a split atom share the derivative in proportion to their mass, and the order in which
    atoms are stored selects no subgradient at a tie.

    Parameters
    ----------
    x
        Points ``(*batch, n, d)``.
    mu
        Measure of positive mass; a single one serves every point set of the batch.

    Raises
    ------
    ValueError
        If ``mu`` has mass zero, ``x`` and ``mu`` differ in dimension, dtype or device, or their batch shapes do not broadcast.

    Notes
    -----
    Computed in blocks of `block_size` pairs; only the nearest atoms are kept for derivatives. Differentiable at every order;
    second derivatives are those of the distances to the nearest atoms and ignore that the nearest atom may change.

    Examples
    --------
    >>> mu = DiscreteMeasure(torch.tensor([[0.0], [5.0], [9.0]]), torch.tensor([1.0, 1.0, 0.0]))
    >>> nearest_squared_distance(torch.tensor([[1.0], [8.0]]), mu)
    tensor([1., 9.])
    """
    check_mass("mu", mu)
    return by_rows(_nearest, x, against(x, mu))


def _nearest(x: Tensor, mu: DiscreteMeasure) -> Tensor:
    mu = against(x, mu)
    weights = mu.weights.detach()
    size = rows_per_block(x, mu.points, 1, cached=True)
    stored = under_transforms() or torch.compiler.is_compiling()
    pairs = None if stored else _nearest_pairs(x.detach(), mu.points.detach(), weights, size)
    if pairs is not None:
        row, atom, share = pairs
        squares = (x.flatten(0, -2)[row] - mu.points.flatten(0, -2)[atom]).square().sum(-1)
        return x.new_zeros(x.shape[:-1].numel()).index_add(0, row, share * squares).reshape(x.shape[:-1])
    blocks = x.split(size, -2)
    if stored:
        return torch.cat([_block(block, mu.points, weights)[0] for block in blocks], -1)
    return torch.cat([recompute(_block, block, mu.points, weights)[0] for block in blocks], -1)


def _block(x: Tensor, y: Tensor, weights: Tensor) -> tuple[Tensor]:
    """From all pairs, as a mean over nearest atoms with constant weights."""
    squares = squared_distances(x, y)
    masses = _are_nearest(squares.detach(), weights) * weights.unsqueeze(-2)
    return (((masses / masses.sum(-1, keepdim=True)) * squares).sum(-1),)


@torch.no_grad()
def _nearest_pairs(x: Tensor, y: Tensor, weights: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Points and their nearest atoms, as flat indices, and the weights of these; None if there are too many."""
    n, m = x.shape[-2], y.shape[-2]
    x, y, weights = x.reshape(-1, n, x.shape[-1]), y.reshape(-1, m, y.shape[-1]), weights.reshape(-1, m)
    rows, atoms, count = [], [], 0
    for start, block in zip(range(0, n, size), x.split(size, -2), strict=True):
        which, row, atom = _are_nearest(by_cdist(block, y), weights).nonzero(as_tuple=True)
        count += len(row)
        if count > TIES * x.shape[:-1].numel():
            return None
        rows.append(which * n + start + row)
        atoms.append(which * m + atom)
    row, atom = torch.cat(rows), torch.cat(atoms)
    masses = weights.flatten()[atom]
    return row, atom, masses / weights.new_zeros(x.shape[:-1].numel()).index_add(0, row, masses)[row]


def _are_nearest(squares: Tensor, weights: Tensor) -> Tensor:
    alive = (weights > 0).unsqueeze(-2)
    least = squares.masked_fill(~alive, torch.inf).amin(-1, keepdim=True)
    return ~(squares > least) & alive  # not `<=`: the result is NaN where a distance is NaN
