"""What every iterative method of the library shares.

`Stop` says when to stop, `Status` how it ended for each sample of a batch, and `Solution` what was found; `iterate` is the
one loop behind flows, fixed points and adjoint equations; `conjugate_gradients`, `minimal_residual` and `gmres` solve linear
ones; `implicit_function` is the one rule that differentiates a solution of an equation.
"""

from ddeq.autodiff import gradient
from ddeq.iteration.gmres import gmres
from ddeq.iteration.implicit import implicit_function
from ddeq.iteration.krylov import LeastSquares, LinearSolution, conjugate_gradients, minimal_residual
from ddeq.iteration.loop import Evaluation, Outcome, Process, Report, iterate
from ddeq.iteration.solution import Solution
from ddeq.iteration.status import ConvergenceError, ConvergenceWarning, Status, Stop

__all__ = [
    "ConvergenceError",
    "ConvergenceWarning",
    "Evaluation",
    "LeastSquares",
    "LinearSolution",
    "Outcome",
    "Process",
    "Report",
    "Solution",
    "Status",
    "Stop",
    "conjugate_gradients",
    "gmres",
    "gradient",
    "implicit_function",
    "iterate",
    "minimal_residual",
]
