"""Energies on measures, with their first variations and Wasserstein gradients.

`Functional` is the base class: a new energy writes one ``forward`` and has everything. The squared distances of the
catalogue carry the factor one half.
"""

from ddeq import kernels
from ddeq.functionals.base import Functional, Scaled, Smoothness, Sum
from ddeq.functionals.discrepancy import Discrepancy
from ddeq.functionals.fixed_point import FixedPointDiscrepancy
from ddeq.functionals.interaction import InteractionEnergy
from ddeq.functionals.mmd import MMD
from ddeq.functionals.potential import PotentialEnergy

__all__ = [
    "MMD",
    "Discrepancy",
    "FixedPointDiscrepancy",
    "Functional",
    "InteractionEnergy",
    "PotentialEnergy",
    "Scaled",
    "Smoothness",
    "Sum",
    "kernels",
]
