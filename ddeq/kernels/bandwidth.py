"""Bandwidths from data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.autodiff import plain
from ddeq.measures import DiscreteMeasure, values_are_known

__all__ = ["median_bandwidth"]

FEW_PAIRS = 2**10
"""Up to so many pairs all measures of a batch are sorted together."""
MOST_PAIRS = 2**24
"""Distances of so many pairs are held at once; those of more are computed in blocks, and the ones near the median kept."""
CACHED = 2**18
"""On the CPU so many distances and masses stay in its cache, and are best looked through as they are."""
BLOCK = {"cpu": 2**17}
"""Pairs in a block, by device; elsewhere `MOST_PAIRS`."""
SAMPLES = 2**12, 2**20
"""Least and most pairs that are drawn to say about where the median lies."""


def median_bandwidth(
    mu: DiscreteMeasure, nu: DiscreteMeasure | None = None, *, coincident: float | None = None
) -> Float[Tensor, "*batch"]:
    r"""Median heuristic: the median of :math:`|x - y|` for :math:`x \sim \mu` and :math:`y \sim \nu` (default :math:`\mu`).

    A weighted median over pairs with :math:`x \ne y`, the lower one of two, so that it depends on the measures alone. Not
    differentiated. The work is that of all pairs, without a sort of them: by rank where the weights are equal, else the pairs
    near the median are found first. Of more than 1e7 pairs only these are kept: 8 % of all, less than 1 % beyond 1e9.

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
    :cite:t:`gretton2012kernel`; :cite:t:`garreau2017large`, on what it tends to; :cite:t:`floyd1975expected`, how it is found.

    Examples
    --------
    >>> median_bandwidth(DiscreteMeasure(torch.tensor([[0.0], [3.0]])))
    tensor(3.)
    """
    if nu is not None and not nu.batch_shape:  # one for all
        nu = nu.expand(*mu.batch_shape)
    if nu is not None and (mu.dim, mu.dtype, mu.device, mu.batch_shape) != (nu.dim, nu.dtype, nu.device, nu.batch_shape):
        raise ValueError(f"nu: expected a measure of the kind of mu, {mu}, got {nu}")
    x, a = mu.points.detach(), mu.weights.detach()
    y, b = (x, a) if nu is None else (nu.points.detach(), nu.weights.detach())
    if a.shape[-1] * b.shape[-1] <= FEW_PAIRS or not all(map(values_are_known, (x, a, y, b))):
        median = _by_sorting(x, a, y, b)
    else:
        sides = (x, a) if nu is None else (x, a, y, b)
        with plain(*sides) as tensors:
            each = [t.reshape(-1, *t.shape[len(mu.batch_shape) :]) for t in tensors]
            medians = [_of_one(*sample) for sample in zip(*each, strict=True)]
            median = torch.stack(medians).reshape(mu.batch_shape) if medians else a.new_zeros(mu.batch_shape)
    if coincident is not None:
        return torch.where(median > 0, median, coincident)
    if not bool((median > 0).all()):
        raise ValueError("mu, nu: expected at least two different atoms of positive mass in each pair of measures")
    return median


def _by_sorting(x: Tensor, a: Tensor, y: Tensor, b: Tensor) -> Tensor:
    """The median of each pair of measures of a batch, 0 where no pair of different atoms has mass."""
    distance = _distances(x, y).flatten(-2)
    mass = (a.unsqueeze(-1).double() * b.unsqueeze(-2).double()).flatten(-2) * (distance > 0)
    distance, order = distance.sort(-1)
    cumulative = mass.gather(-1, order).cumsum(-1)
    total = cumulative[..., -1:].contiguous()
    middle = torch.searchsorted(cumulative, _half(total, x.dtype))
    median = distance.gather(-1, middle.clamp_max(distance.shape[-1] - 1))
    return torch.where(total > 0, median, 0.0).squeeze(-1)


def _of_one(x: Tensor, a: Tensor, *other: Tensor) -> Tensor:
    """The median of one measure, or of a pair of them; 0 as above."""
    x, a = x[a > 0], a[a > 0]
    y, b = (other[0][other[1] > 0], other[1][other[1] > 0]) if other else (None, a)
    pairs = len(x) * (len(x) - 1) // 2 if y is None else len(x) * len(y)
    if not pairs:
        return x.new_zeros(())
    if pairs <= MOST_PAIRS and bool((a == a[0]).all() & (b == b[0]).all()):
        distance = _distances_of_pairs(x, y)
        apart = int(torch.count_nonzero(distance))
        return _ranked(distance, pairs - apart + (apart - 1) // 2).to(x.dtype) if apart else x.new_zeros(())
    if pairs <= min(CACHED, MOST_PAIRS) and x.device.type == "cpu":
        return x.new_tensor(_nearby(_distances_of_pairs(x, y).numpy(), _masses_of_pairs(a, b, y is None), x.dtype))
    low, high = _bracket(x, a, x if y is None else y, b, pairs)
    median, missed = _within(x, a, y, b, low, high)
    if missed:
        low, high = (0.0, low) if missed < 0 else (high, math.inf)
        median, _ = _within(x, a, y, b, low, high)
    return median


def _nearby(distance: Any, mass: Any, dtype: torch.dtype) -> float:
    """The median of distances with masses, by NumPy: looked for near that of a sample of them, and else among all."""
    apart = distance > 0
    half = float(_half(mass @ apart, dtype))
    if half <= 0:
        return 0.0
    drawn = np.random.default_rng(0).integers(len(distance), size=SAMPLES[0])
    drawn = drawn[distance[drawn].argsort()]
    levels, away = mass[drawn].cumsum(), 2.5 * math.sqrt(np.square(mass[drawn]).sum())  # five standard deviations
    ends = levels.searchsorted([0.5 * levels[-1] - away, 0.5 * levels[-1] + away]).clip(0, len(drawn) - 1)
    for low, high in (distance[drawn[ends]], (0.0, math.inf)):
        under = (distance < low) & apart
        below, inside = mass @ under, (((distance <= high) & apart) ^ under).nonzero()[0]
        near = distance[inside]
        order = near.argsort()
        levels = below + mass[inside][order].cumsum()
        k = int(levels.searchsorted(half))
        if below < half and k < len(levels):
            break
    return float(near[order[k]])


def _bracket(x: Tensor, a: Tensor, y: Tensor, b: Tensor, pairs: int) -> tuple[float, float]:
    """Two numbers that have the median between them, but for one case in a million: five standard deviations of a sample."""
    least, most = SAMPLES
    if pairs <= 8 * least:  # they are sorted as fast
        return 0.0, math.inf
    size = int(min(max(least, (5.0 * pairs / MOST_PAIRS) ** 2), most))
    uniform = torch.rand(2, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(x.device)
    i, j = (_drawn(masses, u) for masses, u in zip((a, b), uniform, strict=True))
    distance = (x[i] - y[j]).square().sum(-1).sqrt()
    distance = distance[distance > 0]
    k = len(distance)
    if not k:
        return 0.0, math.inf
    away = math.ceil(2.5 * math.sqrt(k))
    ranks = max(0, k // 2 - away), min(k - 1, k // 2 + away)
    low, high = (float(_ranked(distance, rank)) for rank in ranks)
    return low, high


def _drawn(masses: Tensor, uniform: Tensor) -> Tensor:
    """Numbers of atoms, drawn by their masses."""
    cumulative = masses.double().cumsum(0)
    return torch.searchsorted(cumulative, uniform * cumulative[-1]).clamp_max(len(masses) - 1)


def _within(x: Tensor, a: Tensor, y: Tensor | None, b: Tensor, low: float, high: float) -> tuple[Tensor, int]:
    """The median if it lies between ``low`` and ``high``, and 0; else the nearer of the two, and on which side it lies."""
    a, b = a.double(), b.double()
    total = below = a.new_zeros(())
    found: list[tuple[Tensor, Tensor]] = []
    for i, j, distance in _blocks(x, y):
        of_rows, of_columns = a[i : i + len(distance)], b[j:]
        apart, inside = distance > 0, (distance >= low) & (distance <= high)
        total = total + of_rows @ (apart.double() @ of_columns)
        if low > 0:
            below = below + of_rows @ (((distance < low) & apart).double() @ of_columns)
        else:
            inside &= apart
        row, column = inside.nonzero().unbind(-1)
        found.append((distance[row, column], of_rows[row] * of_columns[column]))
    half = _half(total, x.dtype)
    distance, mass = (torch.cat(parts) for parts in zip(*found, strict=True))
    if not bool(total > 0):
        return x.new_zeros(()), 0
    if bool(below >= half) or not len(mass):
        return x.new_tensor(low), -1 if bool(below >= half) else 1
    order = _ascending(distance)
    cumulative = below + mass[order].cumsum(0)
    k = int(torch.searchsorted(cumulative, half))
    return distance[order[min(k, len(order) - 1)]], int(k == len(order))


def _blocks(x: Tensor, y: Tensor | None) -> Iterator[tuple[int, int, Tensor]]:
    """Distances in blocks, with the numbers of the first row and column; each pair of a measure with itself once, else 0."""
    m = len(x if y is None else y)
    rows = max(1, BLOCK.get(x.device.type, MOST_PAIRS) // m)
    for i in range(0, len(x), rows):
        if y is None:
            yield i, i, _distances(x[i : i + rows], x[i:]).triu_(1)
        else:
            yield i, 0, _distances(x[i : i + rows], y)


def _half(total: Any, dtype: torch.dtype) -> Any:
    """Half of the mass, so much less that rounding of weights and sums does not decide between two neighbours."""
    return (0.5 - max(8.0 * torch.finfo(dtype).eps, 1e-12)) * total


def _distances(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _distances_of_pairs(x: Tensor, y: Tensor | None) -> Tensor:
    """Distances of all pairs as one row: of ``x`` and ``y``, or of the points ``x`` among each other, each once."""
    if x.device.type != "cpu":
        return torch.pdist(x) if y is None else _distances(x, y).flatten()
    if y is None and x.dtype == torch.float32 and x.shape[-1] >= 8:  # then PyTorch's is vectorised
        return torch.pdist(x)
    from scipy.spatial import distance  # several times as fast

    return torch.from_numpy(distance.pdist(x.numpy()) if y is None else distance.cdist(x.numpy(), y.numpy()).ravel())


def _masses_of_pairs(a: Tensor, b: Tensor, own: bool) -> Any:
    """Products of masses in the order of `_distances_of_pairs`, as an array."""
    from scipy.spatial.distance import squareform

    mass = torch.outer(a.double(), b.double()).numpy()
    return squareform(mass, checks=False) if own else mass.ravel()


def _ranked(numbers: Tensor, rank: int) -> Tensor:
    """The number of that rank, counted from 0."""
    if numbers.device.type != "cpu":
        return numbers.kthvalue(rank + 1).values
    array = numbers.numpy()
    array.partition(rank)  # a tenth of the time of kthvalue; in place: the numbers are ours
    return numbers[rank]


def _ascending(numbers: Tensor) -> Tensor:
    return torch.from_numpy(numbers.numpy().argsort()) if numbers.device.type == "cpu" else numbers.argsort()
