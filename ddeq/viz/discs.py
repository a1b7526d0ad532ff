"""What is seen of a measure: one disc for each place that carries mass."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ddeq.measures import DiscreteMeasure

__all__ = ["Discs", "area_of", "box", "check_single", "discs", "fitting_alpha", "largest_radius", "live_points", "merged"]

MANY = 1000
"""From so many discs on a picture is stored as pixels: vector files of more are slow to open."""


@dataclass(frozen=True)
class Discs:
    """Places that carry mass, by decreasing share of it: small discs lie on large ones."""

    places: Float[Tensor, "k d"]
    shares: Float[Tensor, " k"]
    """Shares of the total mass."""
    atoms: Int[Tensor, " k"]
    """Number of the first atom at each place."""
    n: int
    """Number of atoms, those of mass zero included."""

    @property
    def count(self) -> float:
        """Effective number of places: as many equal ones would have the same sum of squared shares."""
        return 1.0 / float(self.shares.square().sum())


def check_single(mu: DiscreteMeasure, name: str = "mu") -> None:
    """Raise a `ValueError` unless ``mu`` is one measure."""
    if mu.batch_shape:
        raise ValueError(f"{name}: expected a single measure, got {mu}; take {name}[i]")


def merged(
    rows: Float[Tensor, "n m"], weights: Float[Tensor, "n T"]
) -> tuple[Float[Tensor, "k m"], Float[Tensor, "k T"], Int[Tensor, " k"]]:
    """Rows without repetition, their added weights, and the number of the first of each."""
    places, inverse = torch.unique(rows, dim=0, return_inverse=True)
    total = weights.new_zeros(len(places), weights.shape[1]).index_add(0, inverse, weights)
    number = torch.arange(len(rows))
    first = number.new_full((len(places),), len(rows)).scatter_reduce(0, inverse, number, "amin")
    return places, total, first


def discs(mu: DiscreteMeasure) -> Discs:
    """The discs of a single measure: atoms at the same place share one, atoms of mass zero none (measure consistency, T1)."""
    mu = mu.detach().to("cpu", torch.float64).normalized()
    live = mu.support().nonzero().squeeze(-1)
    places, shares, first = merged(mu.points[live], mu.weights[live, None])
    shares = shares[:, 0]
    order = shares.argsort(descending=True, stable=True)
    return Discs(places[order], shares[order], live[first[order]], mu.n)


def area_of(shown: Discs, ax: Any, wanted: float | None) -> float:
    """Area in square points that all discs share: if none is wanted, it grows with the panel and slowly with their number."""
    if wanted is not None:
        return wanted
    extent = ax.get_window_extent()
    # A picture on a line is as high as its density, which says nothing on the room for discs.
    pixels = extent.width if shown.places.shape[1] == 1 else min(extent.width, extent.height)
    side = pixels / ax.figure.dpi * 72
    return 260.0 * math.sqrt(shown.count) * float(side / 230.0) ** 2


def fitting_alpha(count: float, dim: int = 2) -> float:
    """Opacity at which ``count`` discs show where they lie on each other; in space the near ones hide the far ones."""
    return 0.95 if dim == 3 else 0.85 * min(1.0, (1000.0 / count) ** (1 / 3))


def largest_radius(shown: Discs, area: float) -> float:
    """Radius in points of the largest disc."""
    return 0.5 * math.sqrt(area * float(shown.shares[0]))


def live_points(measures: Iterable[DiscreteMeasure]) -> Float[Tensor, "n d"]:
    """All atoms that carry mass."""
    return torch.cat([mu.points[mu.support()].detach().to("cpu", torch.float64) for mu in measures])


def box(points: Float[Tensor, "n d"]) -> Float[Tensor, "d 2"]:
    """Lower and upper limits of points with room for their discs; in space a cube around a ball, which may turn."""
    low, high = points.amin(0), points.amax(0)
    if points.shape[1] == 3:
        center = (low + high) / 2
        radius = (points - center).norm(dim=1).amax()
        low, high = center - radius, center + radius
    room = 0.07 * (high - low).amax()
    if room == 0:  # a single place
        room = 0.5 * high.abs().amax().clamp_min(1.0)
    return torch.stack([low - room, high + room], -1)
