"""Fixed points of maps on measures.

`fixed_point` states the equation of a map, runs a solver on it as an adjoint wants, and returns a `Solution`. Solvers see
iterates, residuals and the inner product of L2(mu); adjoints say how gradients flow; diagnostics tell how a map behaves
near a measure. Solvers and adjoints are those of `ddeq.iteration`; `ParticleFlow`, which needs functionals, is here.
"""

from ddeq.iteration import (
    Adjoint,
    AdjointReport,
    Anderson,
    AttachedAdjoint,
    Auto,
    Broyden,
    Implicit,
    NewtonKrylov,
    OneStep,
    Phantom,
    Picard,
    Solution,
    Solver,
    Status,
    Stop,
    Unrolled,
)
from ddeq.messages import renamed
from ddeq.solvers.diagnostics import effective_support, jacobian_penalty, spectral_radius
from ddeq.solvers.fixed_point import fixed_point
from ddeq.solvers.map_equation import MapEquation
from ddeq.solvers.particle_flow import ParticleFlow

__all__ = [
    "Adjoint",
    "AdjointReport",
    "Anderson",
    "AttachedAdjoint",
    "Auto",
    "Broyden",
    "Implicit",
    "MapEquation",
    "NewtonKrylov",
    "OneStep",
    "ParticleFlow",
    "Phantom",
    "Picard",
    "Solution",
    "Solver",
    "Status",
    "Stop",
    "Unrolled",
    "effective_support",
    "fixed_point",
    "jacobian_penalty",
    "spectral_radius",
]

__getattr__ = renamed(__name__, {"FixedPoint": ("ddeq.solvers.MapEquation", "0.2")})
