"""Energies on measures, with their first variations and Wasserstein gradients.

`Functional` is the base class: a new energy writes one ``forward`` and has everything. The squared distances of the
catalogue carry the factor one half (`DrMMD` keeps its published one).
"""

from ddeq import kernels
from ddeq.functionals.base import Functional, Scaled, Smoothness, Sum
from ddeq.functionals.chamfer import Chamfer
from ddeq.functionals.discrepancy import Discrepancy
from ddeq.functionals.drmmd import DrMMD
from ddeq.functionals.dynamics import Dynamics
from ddeq.functionals.entropy import Entropy, InternalEnergy, KLDivergence
from ddeq.functionals.fixed_point import FixedPointDiscrepancy
from ddeq.functionals.interaction import InteractionEnergy
from ddeq.functionals.kale import KALE
from ddeq.functionals.ksd import KSD
from ddeq.functionals.mmd import MMD
from ddeq.functionals.potential import PotentialEnergy
from ddeq.functionals.sinkhorn import SinkhornDivergence
from ddeq.functionals.sliced_mmd import SlicedMMD
from ddeq.functionals.sliced_wasserstein import SlicedWasserstein
from ddeq.functionals.wasserstein import Wasserstein
from ddeq.memory import Cached

__all__ = [
    "KALE",
    "KSD",
    "MMD",
    "Cached",
    "Chamfer",
    "Discrepancy",
    "DrMMD",
    "Dynamics",
    "Entropy",
    "FixedPointDiscrepancy",
    "Functional",
    "InteractionEnergy",
    "InternalEnergy",
    "KLDivergence",
    "PotentialEnergy",
    "Scaled",
    "SinkhornDivergence",
    "SlicedMMD",
    "SlicedWasserstein",
    "Smoothness",
    "Sum",
    "Wasserstein",
    "kernels",
]
