"""What computed energies can tell: by how much they scatter when points change in their last digits."""

from __future__ import annotations

import torch
from torch import Tensor

from ddeq.flows.descent import FunctionalDescent
from ddeq.flows.symmetries import Place

__all__ = ["energy_resolution"]

SHAKES = 4
"""Energies by which the scatter is known."""


@torch.no_grad()
def energy_resolution(equation: FunctionalDescent, place: Place, energy: Tensor, force: Tensor) -> Tensor:
    """By how much energies at ``place`` scatter, ``(*batch,)``; a property of the measure alone (measure consistency, T1).

    The points are shaken in their last digits, ever more coarsely, because an energy may have far fewer digits than its size
    says: one that is a small difference of large terms changes by steps. What the gradient says of the shaking is left out.

    Parameters
    ----------
    equation
        The descent whose energy it is.
    place
        Where.
    energy, force
        The energy there, ``(*batch,)``, and minus its Wasserstein gradient, ``(*batch, n, d)``.
    """
    eps = torch.finfo(energy.dtype).eps
    scatter, unit = torch.zeros_like(energy), place.unit
    for k in range(SHAKES):
        sign = (37.0 * (k + 1) * unit + 11.0 * unit.sum(-1, keepdim=True) + k).sin().sign()
        shake = 2 * 4**k * eps * sign * place.points.abs()
        seen = equation.energy(place.points + shake) - energy + equation.inner(force, shake)
        scatter = torch.maximum(scatter, seen.abs())
    return 2 * scatter + (4 * eps + equation.functional.tolerance) * energy.abs()
