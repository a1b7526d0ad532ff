"""What every iterative method of the library shares.

`Stop` says when to stop and `Status` how it ended, for each sample of a batch; `iterate` is the one loop behind flows,
fixed points and adjoint equations; `implicit_function` is the one rule that differentiates a solution of an equation.
"""

from ddeq.iteration.derivatives import gradient
from ddeq.iteration.implicit import implicit_function
from ddeq.iteration.loop import Evaluation, Outcome, Process, Report, iterate
from ddeq.iteration.status import ConvergenceError, ConvergenceWarning, Status, Stop

__all__ = [
    "ConvergenceError",
    "ConvergenceWarning",
    "Evaluation",
    "Outcome",
    "Process",
    "Report",
    "Status",
    "Stop",
    "gradient",
    "implicit_function",
    "iterate",
]
