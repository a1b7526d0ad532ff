"""Gradient flows of functionals on measures.

A flow is a functional, a geometry, a stepper, optionally noise and optionally a reaction; `flow` puts them together
and returns a `Trajectory`.
"""

from ddeq.flows.flow import flow
from ddeq.flows.geometries import Wasserstein
from ddeq.flows.problem import Descent
from ddeq.flows.steppers import Euler, Stepper
from ddeq.flows.trajectory import Trajectory

__all__ = ["Descent", "Euler", "Stepper", "Trajectory", "Wasserstein", "flow"]
