"""Atoms of mass zero in an iteration: they move as an atom of small mass would, and never end what others do (T1)."""

from __future__ import annotations

import torch
from torch import Tensor

from ddeq.iteration.loop import DIVERGENCE, agreed
from ddeq.ranks import beside, whole

__all__ = ["farthest", "held_back"]


def farthest(points: Tensor, weights: Tensor, *, always: bool = False) -> Tensor | None:
    """How far the coordinates of atoms of mass zero may go from the origin, ``(*batch, 1, 1)``.

    As many times as far as the others start as a whole iterate may grow before it counts as diverged. None where there are no
    such atoms, unless it is wanted ``always``, for those to come.
    """
    live = (weights > 0).unsqueeze(-1)
    if not always and bool(whole(live).all()):
        return None
    size = whole(torch.where(live, points.detach().abs(), 0.0).amax((-2, -1), keepdim=True))
    return beside(DIVERGENCE * size.clamp_min(1.0), points)


def held_back(field: Tensor, otherwise: Tensor | float, weights: Tensor, limit: Tensor | None) -> Tensor:
    """A ``field`` on the atoms ``(*batch, n, d)``; ``otherwise`` at those of mass zero where it is NaN or beyond the limit."""
    if limit is None:
        return field
    fine = (field.detach().abs() <= limit).all(-1, keepdim=True) | (weights > 0).unsqueeze(-1)
    return field if agreed(fine) else torch.where(fine, field, otherwise)
