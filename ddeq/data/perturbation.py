"""Random changes of single atoms: noise, and leaving some out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ddeq.draws import normal, uniform
from ddeq.measures import DiscreteMeasure, unchecked

__all__ = ["Jitter", "RandomSubsample"]


@dataclass(frozen=True)
class Jitter:
    """Adds independent Gaussian noise to each atom.

    The noise is drawn per atom: it is equivariant under permutation in law, and the copies of an atom that was split part.
    This is the one kind of map in the library that is no function of the measure alone.

    Parameters
    ----------
    sigma
        Standard deviation of each coordinate.
    clip
        Noise beyond minus and plus this is set to it; None for no bound.

    Raises
    ------
    ValueError
        If ``sigma`` or ``clip`` is negative.

    References
    ----------
    :cite:t:`qi2017pointnet`.
    """

    sigma: float = 0.01
    clip: float | None = 0.05

    def __post_init__(self) -> None:
        for name, value in (("sigma", self.sigma), ("clip", 0.0 if self.clip is None else self.clip)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}: expected a finite number >= 0, got {value}")

    def __call__(self, mu: DiscreteMeasure, generator: torch.Generator | None = None) -> DiscreteMeasure:
        """Draw noise for each atom of ``mu`` and add it."""
        noise = normal(mu.points.shape, mu.points, generator) * self.sigma
        if self.clip is not None:
            noise = noise.clamp(-self.clip, self.clip)
        return mu.push_forward(lambda x: x + noise)


@dataclass(frozen=True)
class RandomSubsample:
    r"""Keeps ``n`` atoms of each measure, drawn without replacement, each set of ``n`` atoms with the same chance.

    Only atoms with mass take part. A measure with ``n`` of them or fewer stays as it is, filled up with atoms of mass zero
    where others have more. The masses of the atoms kept, :math:`S`, are scaled so that the mass of the measure stays:

    .. math:: \mu = \sum_i w_i \delta_{x_i} \;\mapsto\;
              \frac{\sum_i w_i}{\sum_{i \in S} w_i} \sum_{i \in S} w_i \delta_{x_i} .

    Atoms are drawn, not mass: an atom that was split counts twice. (`DiscreteMeasure.resample` draws in proportion to mass.)

    Parameters
    ----------
    n
        How many atoms to keep.

    Raises
    ------
    ValueError
        If ``n`` is less than one.
    """

    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n: expected a number of atoms >= 1, got {self.n}")

    def __call__(self, mu: DiscreteMeasure, generator: torch.Generator | None = None) -> DiscreteMeasure:
        """Draw atoms of each measure of ``mu``; the result has ``min(n, mu.n)`` atoms in each, in their old order."""
        if self.n >= mu.n:
            return mu
        # In float64 whatever the measure's type: half precision would draw the same number for many atoms. Atoms come first, so
        # that padding leaves the draws of the others as they are.
        place = uniform((mu.n, *mu.batch_shape), mu.points, generator, torch.float64).movedim(0, -1)
        place = torch.where(mu.support(), place, 2.0)  # behind all others
        kept = torch.zeros_like(place, dtype=torch.bool).scatter(-1, place.argsort(-1)[..., : self.n], True)
        chosen = mu.permute_atoms((~kept).to(torch.uint8).argsort(dim=-1, stable=True))
        marks = None if chosen.marks is None else chosen.marks[..., : self.n, :]
        weights = chosen.weights[..., : self.n]
        share = weights.sum(-1, keepdim=True) / mu.mass().unsqueeze(-1)
        return unchecked(chosen.points[..., : self.n, :], weights / torch.where(share > 0, share, 1.0), marks)
