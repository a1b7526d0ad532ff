"""Gradient flows of functionals on measures.

A flow is a functional, a geometry, a stepper, optionally noise and optionally a reaction; `flow` puts them together
and returns a `Trajectory`. `equilibrium` flows to a stationary measure and differentiates it.
"""

from ddeq.flows.adaptive import AdaptiveEuler
from ddeq.flows.descent import FunctionalDescent
from ddeq.flows.equilibrium import equilibrium
from ddeq.flows.flow import flow
from ddeq.flows.geometries import Geometry, Wasserstein
from ddeq.flows.lbfgs import LBFGS
from ddeq.flows.mirror import Mirror
from ddeq.flows.mirror_maps import BoxEntropy, ConvexFunction, MirrorMap, PositiveEntropy, SimplexEntropy
from ddeq.flows.nesterov import Nesterov
from ddeq.flows.noise import Langevin, Noise, NoiseInjection
from ddeq.flows.optimizer import Optimizer
from ddeq.flows.preconditioned import Preconditioned
from ddeq.flows.proximal import Proximal
from ddeq.flows.reaction import FisherRao, Reaction
from ddeq.flows.stein import Stein
from ddeq.flows.steppers import Euler, Heun, Stepper
from ddeq.flows.trajectory import Trajectory
from ddeq.flows.underdamped import Underdamped
from ddeq.flows.varying import Varying
from ddeq.flows.velocity_field import VelocityField
from ddeq.iteration import Step
from ddeq.messages import renamed

__all__ = [
    "LBFGS",
    "AdaptiveEuler",
    "BoxEntropy",
    "ConvexFunction",
    "Euler",
    "FisherRao",
    "FunctionalDescent",
    "Geometry",
    "Heun",
    "Langevin",
    "Mirror",
    "MirrorMap",
    "Nesterov",
    "Noise",
    "NoiseInjection",
    "Optimizer",
    "PositiveEntropy",
    "Preconditioned",
    "Proximal",
    "Reaction",
    "SimplexEntropy",
    "Stein",
    "Step",
    "Stepper",
    "Trajectory",
    "Underdamped",
    "Varying",
    "VelocityField",
    "Wasserstein",
    "equilibrium",
    "flow",
]

__getattr__ = renamed(__name__, {"Descent": ("ddeq.flows.FunctionalDescent", "0.2")})
