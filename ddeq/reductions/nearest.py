"""Distances to the support of a measure."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.autodiff import recompute, under_transforms
from ddeq.kernels.distances import by_cdist, squared_distances
from ddeq.measures import DiscreteMeasure, check_mass
from ddeq.ranks import is_sharded
from ddeq.reductions.backend import rows_per_block
from ddeq.reductions.integrals import against, by_rows

__all__ = ["nearest_squared_distance"]

TIES = 4
"""Up to so many nearest atoms for each point, on average, are kept for derivatives; of more, distances are computed again."""


def nearest_squared_distance(x: Float[Tensor, "*batch n d"], mu: DiscreteMeasure) -> Float[Tensor, "*batch n"]:
    r"""Squared distance :math:`\min_{y \in \operatorname{supp}\mu} |x_i - y|^2` of points to the support of a measure.

    A function of the support: atoms of mass zero are not seen, and there is no derivative in the weights (T2). Where several
    atoms are nearest, derivatives are the mean over them, weighted by mass. So the copies of an atom that was split share what it
    gets in proportion to their mass (T1), and of the subgradients at a tie none is preferred for the place where it is stored.

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
    In blocks of rows of `block_size` pairs. What is kept for derivatives are the nearest atoms alone. Differentiable at every
    order; the second derivatives are those of the distances to the nearest atoms, not of the jumps between them.

    Examples
    --------
    >>> mu = DiscreteMeasure(torch.tensor([[0.0], [5.0], [9.0]]), torch.tensor([1.0, 1.0, 0.0]))
    >>> nearest_squared_distance(torch.tensor([[1.0], [8.0]]), mu)
    tensor([1., 9.])
    """
    check_mass("mu", mu)
    mu = against(x, mu)
    if is_sharded(x, mu.points, mu.weights):
        return by_rows(nearest_squared_distance, x, mu)
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
    """All pairs at once, as a mean with constant shares."""
    squares = squared_distances(x, y)
    masses = _are_nearest(squares.detach(), weights) * weights.unsqueeze(-2)
    return (((masses / masses.sum(-1, keepdim=True)) * squares).sum(-1),)


@torch.no_grad()
def _nearest_pairs(x: Tensor, y: Tensor, weights: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Points and their nearest atoms, numbered through the batch, and the shares of these; None where there are too many."""
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
    return ~(squares > least) & alive  # not `<=`: where a distance is no number, the result is none
