"""Small problems on which checks try a user's parts when the user gives none: seeded, fast, with known solutions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ddeq.functionals.base import Functional, Smoothness
from ddeq.measures import DiscreteMeasure, unchecked
from ddeq.reductions import integrate

__all__ = ["Bowl", "MeanField", "contraction", "far_dead_atom", "trial_batch"]


def trial_batch(*, marks: bool = False, seed: int = 0) -> DiscreteMeasure:
    """Three measures of six atoms in the plane, in double precision: two atoms coincide, and one has mass zero.

    With ``marks`` of dimension 2, those of coincident atoms equal.
    """
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(3, *shape, generator=g, dtype=torch.float64)

    weights = torch.rand(3, 4, generator=g, dtype=torch.float64) + 0.2
    mu = DiscreteMeasure(draw(4, 2), weights / weights.sum(-1, keepdim=True), draw(4, 2) if marks else None)
    mu = mu.split_atom(1, 0.3).pad_atoms(1)
    moved = torch.zeros_like(mu.weights)
    moved[..., -1] = 1.5
    return mu.with_points(mu.points + moved.unsqueeze(-1))


def far_dead_atom(mu: DiscreteMeasure, place: float = 1e30) -> DiscreteMeasure:
    """The same measure with one more atom of mass zero, last and far away."""
    padded = mu.pad_atoms(1)
    points = padded.points.clone()
    points[..., -1, :] = place
    return unchecked(points, padded.weights, padded.marks)


def contraction(mu: DiscreteMeasure, rate: Tensor | float) -> DiscreteMeasure:
    """A map that contracts by the factor ``rate``, one number or one for each sample; at its fixed point points are marks."""
    assert mu.marks is not None
    if isinstance(rate, Tensor) and rate.ndim:
        rate = rate[..., None, None]
    apart = mu.points - mu.marks
    mean = (mu.normalized().weights.unsqueeze(-1) * apart).sum(-2, keepdim=True)
    return mu.with_points(mu.marks + rate * (0.8 * apart.sin() + 0.2 * mean))


class MeanField(nn.Module):
    """A smooth map that contracts and depends on everything: a parameter, two arguments, marks, weights and the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([[0.4, 0.1], [-0.2, 0.3]], dtype=torch.float64))

    def forward(self, mu: DiscreteMeasure, rate: Tensor, shift: Tensor) -> DiscreteMeasure:
        rate = rate[..., None, None] if rate.ndim else rate
        mean = (mu.normalized().weights.unsqueeze(-1) * mu.points.sin()).sum(-2, keepdim=True)
        drive = shift if mu.marks is None else shift + 0.5 * mu.marks
        return mu.with_points(torch.tanh(rate * mu.points @ self.gain.mT + 0.3 * mean + drive))


class Bowl(Functional):
    r"""A smooth energy with one minimum: :math:`\tfrac12 s \int |x|^2 + \cos x_1 \,\mathrm d\mu` and attraction to the mean.

    Parameters
    ----------
    stiffness
        :math:`s`; with 1 the derivatives of the gradient are at most about 2.
    """

    smoothness = Smoothness.SMOOTH
    removable = True

    def __init__(self, stiffness: float = 1.0) -> None:
        super().__init__()
        self.stiffness = stiffness

    def forward(self, mu: DiscreteMeasure) -> Tensor:
        energies = 0.5 * self.stiffness * mu.points.square().sum(-1) + 0.3 * mu.points[..., 0].cos()
        mean = (mu.weights.unsqueeze(-1) * mu.points).sum(-2)
        value: Any = integrate(energies, mu) - 0.25 * self.stiffness * mean.square().sum(-1)
        return value  # type: ignore[no-any-return]
