"""Energies and measures on which flows are tried."""

import torch
from hypothesis import settings

from ddeq import DiscreteMeasure
from ddeq.functionals import PotentialEnergy

DOUBLE = torch.float64
FEW = settings(max_examples=max(5, settings.default.max_examples // 3))
"""For laws whose every example is several flows."""


def quadratic(stiffness=1.0):
    """The potential energy of l |x|^2 / 2."""
    return PotentialEnergy(lambda x: 0.5 * stiffness * x.square().sum(-1))


def cloud(n, dim=2, *, seed=0, scale=1.0, shift=0.0, batch=()):
    """Normal atoms of equal mass."""
    g = torch.Generator().manual_seed(seed)
    return DiscreteMeasure(scale * torch.randn(*batch, n, dim, generator=g, dtype=DOUBLE) + shift)


def normal_quantiles(n, deviation=1.0):
    """The standard normal distribution on the line by n atoms at its quantiles, with exactly the given deviation."""
    points = torch.special.ndtri((torch.arange(n, dtype=DOUBLE) + 0.5) / n).unsqueeze(-1)
    return DiscreteMeasure(points * (deviation / points.square().mean().sqrt()))


def deviation(mu):
    """Standard deviation of a measure on the line."""
    return mu.covariance().squeeze().sqrt().item()
