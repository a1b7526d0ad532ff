"""Bandwidths from data."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.measures import DiscreteMeasure

__all__ = ["median_bandwidth"]

MOST_PAIRS = 2**22
"""Distances of so many pairs are sorted at once; of more, the median is found by counting."""
BINS = 2**12


def median_bandwidth(
    mu: DiscreteMeasure, nu: DiscreteMeasure | None = None, *, coincident: float | None = None
) -> Float[Tensor, "*batch"]:
    r"""Median heuristic: the median of :math:`|x - y|` for :math:`x \sim \mu` and :math:`y \sim \nu` (default :math:`\mu`).

    A weighted median over pairs with :math:`x \ne y`, so that it depends on the measures alone. Not differentiated.
    The work is that of all pairs, the memory is bounded.

    Parameters
    ----------
    mu, nu
        The measures; a single ``nu`` serves a batch.
    coincident
        What to give where all atoms of positive mass coincide; default: raise.

    Raises
    ------
    ValueError
        If all atoms of positive mass coincide and there is no number for this, or the measures differ in dimension, dtype,
        device or batch shape.

    References
    ----------
    :cite:t:`gretton2012kernel`; :cite:t:`garreau2017large`, on what it tends to.

    Examples
    --------
    >>> median_bandwidth(DiscreteMeasure(torch.tensor([[0.0], [3.0]])))
    tensor(3.)
    """
    nu = mu if nu is None else nu
    if not nu.batch_shape:  # one for all
        nu = nu.expand(*mu.batch_shape)
    if (mu.dim, mu.dtype, mu.device, mu.batch_shape) != (nu.dim, nu.dtype, nu.device, nu.batch_shape):
        raise ValueError(f"nu: expected a measure of the kind of mu, {mu}, got {nu}")
    mu, nu = mu.detach(), nu.detach()
    if mu.n * nu.n <= MOST_PAIRS:
        median = _by_sorting(*_pairs(mu, nu, 0, mu.n))
    else:
        flat = [_by_counting(a, b) for a, b in zip(_each(mu), _each(nu), strict=True)]
        median = torch.stack(flat).reshape(mu.batch_shape)
    if coincident is not None:
        return torch.where(median > 0, median, coincident)
    if not bool((median > 0).all()):
        raise ValueError("mu, nu: expected at least two different atoms of positive mass in each pair of measures")
    return median


def _each(mu: DiscreteMeasure) -> list[DiscreteMeasure]:
    points, weights = mu.points.reshape(-1, mu.n, mu.dim), mu.weights.reshape(-1, mu.n)
    return [DiscreteMeasure(x, w) for x, w in zip(points, weights, strict=True)]


def _pairs(mu: DiscreteMeasure, nu: DiscreteMeasure, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Distances and masses of the pairs of some atoms of ``mu`` with all of ``nu``; coincident ones have mass zero."""
    x, w = mu.points[..., start:stop, :], mu.weights[..., start:stop]
    distance = torch.cdist(x, nu.points, compute_mode="donot_use_mm_for_euclid_dist").flatten(-2)
    return distance, (w.unsqueeze(-1) * nu.weights.unsqueeze(-2)).flatten(-2) * (distance > 0)


def _by_sorting(distance: Tensor, mass: Tensor) -> Tensor:
    """The median of the distances, 0 where no pair of different atoms has mass."""
    distance, order = distance.sort(-1)
    cumulative = mass.gather(-1, order).cumsum(-1)
    total = cumulative[..., -1:].contiguous()
    middle = torch.searchsorted(cumulative, 0.5 * total)
    median = distance.gather(-1, middle.clamp_max(distance.shape[-1] - 1))
    return torch.where(total > 0, median, 0.0).squeeze(-1)


def _by_counting(mu: DiscreteMeasure, nu: DiscreteMeasure) -> Tensor:
    """The same by histograms of the bin in which the median lies, finer and finer, until it is known to rounding."""
    rows = max(1, MOST_PAIRS // nu.n)
    blocks = range(0, mu.n, rows)
    low = torch.zeros((), dtype=torch.float64, device=mu.device)
    farthest = [torch.where(mass > 0, distance, 0.0).amax() for distance, mass in (_pairs(mu, nu, i, i + rows) for i in blocks)]
    high = torch.stack(farthest).amax().double() * (1 + 1e-6)
    below = torch.zeros_like(low)
    half: Tensor | None = None
    for _ in range(3 if mu.dtype == torch.float32 else 5):
        counts = torch.zeros(BINS, dtype=torch.float64, device=mu.device)
        for i in blocks:
            distance, mass = _pairs(mu, nu, i, i + rows)
            place = (distance.double() - low) / (high - low) * BINS
            inside = (place >= 0) & (place < BINS)
            counts.index_add_(0, place[inside].long(), mass[inside].double())
        if half is None:
            half = 0.5 * counts.sum()
            if not bool(half > 0):
                return mu.points.new_zeros(())
        cumulative = below + counts.cumsum(0)
        k = int(torch.searchsorted(cumulative, half).clamp_max(BINS - 1))
        below = below if k == 0 else cumulative[k - 1]
        low, high = low + (high - low) * k / BINS, low + (high - low) * (k + 1) / BINS
    return (0.5 * (low + high)).to(mu.dtype)
