"""Fixed points of maps on measures.

`fixed_point` puts a map, a solver and an adjoint together, none of which knows the others, and returns a `Solution`.
Solvers see points and the inner product of L2(mu); adjoints say how gradients flow; diagnostics tell what a map is like.
"""

from ddeq.iteration import Solution, Status, Stop
from ddeq.solvers.adjoints import Adjoint, AdjointReport, Implicit, OneStep, Phantom, Unrolled
from ddeq.solvers.anderson import Anderson
from ddeq.solvers.auto import Auto
from ddeq.solvers.broyden import Broyden
from ddeq.solvers.diagnostics import effective_support, jacobian_penalty, spectral_radius
from ddeq.solvers.fixed_point import fixed_point
from ddeq.solvers.newton_krylov import NewtonKrylov
from ddeq.solvers.particle_flow import ParticleFlow
from ddeq.solvers.picard import Picard
from ddeq.solvers.problem import FixedPoint, Solver

__all__ = [
    "Adjoint",
    "AdjointReport",
    "Anderson",
    "Auto",
    "Broyden",
    "FixedPoint",
    "Implicit",
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
