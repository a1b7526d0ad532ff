"""Equations and what solves them.

An `Equation` says what is to be zero, a `Method` how to step, a `Stop` when to stop, and an `Adjoint` how gradients flow; none
of them knows the others. `iterate` is the one driver, behind fixed points, flows, stationary measures, inner problems and
adjoint equations; `Status` and `Solution` say what was found. The solvers that see iterates and residuals alone are here:
`Picard`, `Anderson`, `Broyden`, `NewtonKrylov` and `Auto`. `conjugate_gradients`, `minimal_residual` and `gmres` solve linear
equations.
"""

from ddeq.autodiff import gradient
from ddeq.iteration.adjoint import Adjoint, AttachedAdjoint, OneStep, Phantom, Run, Unrolled
from ddeq.iteration.anderson import Anderson
from ddeq.iteration.auto import Auto
from ddeq.iteration.broyden import Broyden
from ddeq.iteration.driver import Outcome, Report, iterate
from ddeq.iteration.equation import Descent, Equation, Linear, LinearAnswer, LinearSolver, Sizes
from ddeq.iteration.failures import (
    AdjointWarning,
    ConvergenceError,
    ConvergenceWarning,
    DivergedWarning,
    InnerProblemWarning,
    NoDescentWarning,
    SingularAdjointWarning,
    SymmetryWarning,
    UnconvergedWarning,
    UnmatchedAtomsWarning,
    UntrustedDerivativeWarning,
)
from ddeq.iteration.gmres import gmres
from ddeq.iteration.implicit import AdjointReport, Implicit
from ddeq.iteration.inner import InnerProduct
from ddeq.iteration.iterate import Iterate, Step
from ddeq.iteration.krylov import LeastSquares, LinearSolution, conjugate_gradients, minimal_residual
from ddeq.iteration.method import Method, Solver
from ddeq.iteration.newton_krylov import NewtonKrylov
from ddeq.iteration.picard import Picard
from ddeq.iteration.samples import Measured
from ddeq.iteration.solution import Solution
from ddeq.iteration.status import Status, Stop
from ddeq.messages import renamed

__all__ = [
    "Adjoint",
    "AdjointReport",
    "AdjointWarning",
    "Anderson",
    "AttachedAdjoint",
    "Auto",
    "Broyden",
    "ConvergenceError",
    "ConvergenceWarning",
    "Descent",
    "DivergedWarning",
    "Equation",
    "Implicit",
    "InnerProblemWarning",
    "InnerProduct",
    "Iterate",
    "LeastSquares",
    "Linear",
    "LinearAnswer",
    "LinearSolution",
    "LinearSolver",
    "Measured",
    "Method",
    "NewtonKrylov",
    "NoDescentWarning",
    "OneStep",
    "Outcome",
    "Phantom",
    "Picard",
    "Report",
    "Run",
    "SingularAdjointWarning",
    "Sizes",
    "Solution",
    "Solver",
    "Status",
    "Step",
    "Stop",
    "SymmetryWarning",
    "UnconvergedWarning",
    "UnmatchedAtomsWarning",
    "Unrolled",
    "UntrustedDerivativeWarning",
    "conjugate_gradients",
    "gmres",
    "gradient",
    "iterate",
    "minimal_residual",
]

__getattr__ = renamed(
    __name__,
    {
        "Evaluation": ("ddeq.iteration.Iterate", "0.2"),
        "Process": ("ddeq.iteration.Method", "0.2"),
        "implicit_function": ("ddeq.iteration.Implicit", "0.2"),
    },
)
