"""Weights of measures between which mass is transported: as probabilities, and how much there is."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.autodiff import under_transforms
from ddeq.measures import DiscreteMeasure, check_mass, values_are_known
from ddeq.reductions.sorted import in_sum_precision

__all__ = ["changes", "mass_ratio", "probabilities"]

MASSES_AGREE = 1e-3
"""Relative difference of two masses that rounding in single precision may explain, for a million atoms too."""


def probabilities(mu: DiscreteMeasure, nu: DiscreteMeasure) -> tuple[Float[Tensor, "*batch n"], Float[Tensor, "*batch m"]]:
    """The weights of both divided by their masses, in the precision of sums.

    Raises
    ------
    ValueError
        If a mass is not positive, or the two differ by more than rounding, where their values are known.
    """
    check_mass("mu", mu)
    check_mass("target", nu)
    w, v = in_sum_precision(mu.weights), in_sum_precision(nu.weights)
    masses = w.sum(-1, keepdim=True), v.sum(-1, keepdim=True)
    if values_are_known(masses[0]) and values_are_known(masses[1]):
        a, b = (mass.detach() for mass in masses)
        apart = (a - b).abs() > MASSES_AGREE * a.maximum(b)
        if bool(apart.any()):
            raise ValueError(
                f"mu: expected the mass of the target, {b[apart][0].item():.6g}, got {a[apart][0].item():.6g}; "
                "transport needs equal masses: use mu.normalized() and a normalized target"
            )
    return w / masses[0], v / masses[1]


def mass_ratio(mu: DiscreteMeasure, nu: DiscreteMeasure) -> Float[Tensor, "*batch"]:
    r"""Mass of ``nu`` over that of ``mu``, in the precision of sums: one but for rounding, where mass is transported.

    The derivative of a value :math:`M_\nu f(w / M_\mu)` in the weights of ``mu`` is this times that of :math:`f`.
    """
    return in_sum_precision(nu.mass()) / in_sum_precision(mu.mass())


def changes(masses: Tensor) -> Tensor | None:
    """Zeros whose derivatives are those of ``masses``, or None where no derivative is taken.

    A value plus these times potentials is the value, has the potentials as its derivatives in the masses, and is right in
    its mixed derivatives, though the coupling behind it is held constant.
    """
    if under_transforms() or (torch.is_grad_enabled() and masses.requires_grad):
        return masses - masses.detach()
    return None
