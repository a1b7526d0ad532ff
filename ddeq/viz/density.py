"""Smoothed densities of measures on a line."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.viz.discs import Discs

__all__ = ["Density", "fitting_bandwidth", "smoothed"]

CELLS = 1024
"""Cells in which masses are collected before they are smoothed."""

Density = tuple[Float[Tensor, " cells"], Float[Tensor, " cells"]]
"""Places and heights."""


def fitting_bandwidth(shown: Discs) -> float:
    """Two thirds of what Silverman's rule gives, which would flatten two bumps into one; 0 for a single place."""
    x, shares = shown.places[:, 0], shown.shares
    deviation = ((x - shares @ x).square() @ shares).sqrt()
    return 0.7 * float(deviation) * float(shown.count ** (-0.2))


def smoothed(shown: Discs, bandwidth: float) -> Density:
    """Gaussian smoothing of a probability measure on a line, from three bandwidths left of it to three right of it."""
    x = shown.places[:, 0]
    low, high = float(x.min()) - 3 * bandwidth, float(x.max()) + 3 * bandwidth
    bandwidth = max(bandwidth, (high - low) / CELLS)
    cell = ((x - low) / (high - low) * CELLS).long().clamp(0, CELLS - 1)
    masses = x.new_zeros(CELLS).index_add(0, cell, shown.shares)
    places = low + (high - low) * (torch.arange(CELLS, dtype=x.dtype) + 0.5) / CELLS
    distances = (places.unsqueeze(-1) - places) / bandwidth
    return places, (-0.5 * distances.square()).exp() @ masses / (bandwidth * math.sqrt(2 * math.pi))
