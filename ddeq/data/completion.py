"""Completion tasks: random maps that part a measure into what is known of it and what is missing.

Both parts have the atoms of the measure and complementary weights, so that nothing is lost: their sum is the measure. What is
cut off is a function of the measure and of the draws (measure consistency, T1): permuting, splitting and padding atoms change
nothing of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ddeq.draws import normal, uniform
from ddeq.measures import DiscreteMeasure

__all__ = ["Removal", "RemoveDiscs", "RemoveHalfSpace"]

ROUNDING = 1e-9
"""Share of the mass by which sums of masses may miss a bound: they are added up in another order when atoms are permuted."""


@runtime_checkable
class Removal(Protocol):
    """A random map from a measure to its known and its missing part, drawn for each measure of a batch."""

    def __call__(self, mu: DiscreteMeasure, generator: torch.Generator | None = None) -> tuple[DiscreteMeasure, DiscreteMeasure]:
        """Part each measure of ``mu``; the generator is PyTorch's own where none is given."""


@dataclass(frozen=True)
class RemoveDiscs:
    r"""Removes the atoms in balls :math:`|x - c| \le \text{radius}` around atoms :math:`c` that are drawn in proportion to mass.

    The centres are independent: balls may overlap. A ball that would leave less than a share ``keep`` of the mass shrinks until
    it does not, so that something always stays. Where even its centre weighs too much, it removes nothing; only then can
    the missing part be of mass zero.

    Parameters
    ----------
    count
        Number of balls, one after the other.
    radius
        Their radius; shapes of the data room lie in the unit ball.
    keep
        Share of the mass that stays.

    Raises
    ------
    ValueError
        If ``count`` is less than one, ``radius`` is negative, or ``keep`` is not between 0 and 1.

    Examples
    --------
    >>> mu = DiscreteMeasure(torch.rand(8, 100, 2))
    >>> known, missing = RemoveDiscs(radius=0.2)(mu, torch.Generator().manual_seed(0))
    >>> torch.equal(known.weights + missing.weights, mu.weights), bool((missing.mass() > 0).all())
    (True, True)
    """

    count: int = 2
    radius: float = 0.6
    keep: float = field(default=0.1, kw_only=True)

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count: expected a number of balls >= 1, got {self.count}")
        if not 0 <= self.radius < math.inf:
            raise ValueError(f"radius: expected a finite number >= 0, got {self.radius}")
        if not 0 < self.keep < 1:
            raise ValueError(f"keep: expected a share between 0 and 1, got {self.keep}")

    @torch.no_grad()
    def __call__(self, mu: DiscreteMeasure, generator: torch.Generator | None = None) -> tuple[DiscreteMeasure, DiscreteMeasure]:
        """Draw balls for each measure of ``mu``, and part it."""
        places = _uniform(mu, generator, self.count)
        removed = torch.zeros_like(mu.weights, dtype=torch.bool)
        for place in places.unbind(-1):
            squares = _added_up((mu.points - _drawn_atom(mu, place).unsqueeze(-2)).square())
            left = mu.weights.masked_fill(removed, 0.0)
            spare = left.double().sum(-1) - self.keep * mu.weights.double().sum(-1)
            removed = removed | ((squares <= self.radius**2) & _lowest(squares, left, spare))
        return _parted(mu, removed)


@dataclass(frozen=True)
class RemoveHalfSpace:
    r"""Removes the atoms beyond a hyperplane :math:`\langle x, u\rangle \ge t` whose normal :math:`u` is uniform on the sphere.

    The hyperplane lies where it cuts off as much as it can without exceeding a share of the mass that is uniform in ``share``:
    that share itself, but for the mass of at most one atom.

    Parameters
    ----------
    share
        Least and largest share of the mass to cut off.

    Raises
    ------
    ValueError
        If not ``0 < least <= largest < 1``.
    """

    share: Sequence[float] = (0.25, 0.5)

    def __post_init__(self) -> None:
        if len(self.share) != 2 or not 0 < self.share[0] <= self.share[1] < 1:
            raise ValueError(f"share: expected two numbers, 0 < least <= largest < 1, got {self.share}")
        object.__setattr__(self, "share", tuple(self.share))

    @torch.no_grad()
    def __call__(self, mu: DiscreteMeasure, generator: torch.Generator | None = None) -> tuple[DiscreteMeasure, DiscreteMeasure]:
        """Draw a normal and a share for each measure of ``mu``, and part it."""
        least, largest = self.share
        share = least + (largest - least) * _uniform(mu, generator)
        drawn = normal((*mu.batch_shape, 1, mu.dim), mu.points, generator, torch.float64)
        heights = _added_up(mu.points * torch.nn.functional.normalize(drawn, dim=-1).to(mu.points))
        return _parted(mu, _lowest(-heights, mu.weights, share * mu.weights.double().sum(-1)))


def _uniform(mu: DiscreteMeasure, generator: torch.Generator | None, *shape: int) -> Tensor:
    """Uniform numbers in [0, 1), ``(*batch, *shape)``, in double precision whatever the measure's type."""
    return uniform((*mu.batch_shape, *shape), mu.points, generator, torch.float64)


def _drawn_atom(mu: DiscreteMeasure, place: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch d"]:
    """The atom up to which there is a share ``place`` of the mass, in the order of their coordinates, which is the measure's own.

    Atoms of mass zero have no part in it, and the copies of one that was split lie side by side.
    """
    order = torch.arange(mu.n, device=mu.device).expand(mu.weights.shape)
    for key in mu.points.unbind(-1)[::-1]:
        order = order.gather(-1, key.gather(-1, order).argsort(dim=-1, stable=True))
    below = mu.weights.double().gather(-1, order).cumsum(-1)
    mass = below[..., -1:]
    first = ((below > place.unsqueeze(-1) * mass) | (below == mass)).to(torch.uint8).argmax(-1, keepdim=True)
    atom = order.gather(-1, first).unsqueeze(-1)
    return mu.points.gather(-2, atom.expand(*atom.shape[:-1], mu.dim)).squeeze(-2)


def _lowest(
    values: Float[Tensor, "*batch n"], weights: Float[Tensor, "*batch n"], bound: Float[Tensor, "*batch"]
) -> Bool[Tensor, "*batch n"]:
    """The atoms up to a level of the ``values``, the highest level below which there is a mass of at most ``bound``."""
    ascending, order = values.sort(dim=-1, stable=True)
    below = weights.double().gather(-1, order).cumsum(-1)
    last = torch.searchsorted(ascending.contiguous(), values.contiguous(), right=True) - 1  # atoms of one level go together
    return below.gather(-1, last) <= (bound + ROUNDING * below[..., -1]).unsqueeze(-1)


def _added_up(terms: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n"]:
    """Sum over coordinates, one after the other: a sum at once may round equal rows differently, and part coincident atoms."""
    total, *others = terms.unbind(-1)
    for term in others:
        total = total + term
    return total


def _parted(mu: DiscreteMeasure, removed: Bool[Tensor, "*batch n"]) -> tuple[DiscreteMeasure, DiscreteMeasure]:
    with torch.enable_grad():
        known, missing = mu.weights.masked_fill(removed, 0.0), mu.weights.masked_fill(~removed, 0.0)
    return mu.with_weights(known), mu.with_weights(missing)
