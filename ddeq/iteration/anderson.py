"""Anderson's acceleration of fixed-point iterations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ddeq.integers import set_whole
from ddeq.iteration.equation import Equation
from ddeq.iteration.iterate import Iterate, Step
from ddeq.iteration.method import Solver
from ddeq.iteration.secant import History, check_secant_options, secant_start, secant_step

__all__ = ["Anderson"]


@dataclass(frozen=True)
class Anderson(Solver):
    r"""Anderson's acceleration in :math:`L^2(\mu)`, of type II or I, safeguarded.

    With residuals :math:`r_k = \Phi(z_k) - z_k` and the differences :math:`\Delta z_j, \Delta r_j` of the last ``memory``
    steps,

    .. math:: z_{k+1} = z_k + \beta r_k - \sum_j \gamma_j (\Delta z_j + \beta \Delta r_j), \qquad
              \beta = 1 - \text{damping}, \qquad
              \Big\langle q_i, r_k - \sum_j \gamma_j \Delta r_j\Big\rangle_{L^2(\mu)} = 0 ,

    where :math:`q_i = \Delta r_i` for type II, which is least squares, and :math:`q_i = \Delta z_i` for type I. The
    coefficients depend on inner products in :math:`L^2(\mu)` only, so the iterates commute with permuting and splitting atoms
    and with atoms of mass zero (equivariant acceleration, T9). Unknowns are scaled before the equations are solved, and
    ``ridge`` is added to the unit diagonal of their normal equations: the regularisation follows the scale of the residuals and
    vanishes with them.

    A difference of residuals that newer ones span, to rounding, is left out: among more differences than unknowns the old ones
    say nothing. On a linear equation in :math:`n` unknowns, with ``memory`` :math:`\ge n` and without damping, the residual
    vanishes after :math:`n + 2` evaluations (it is GMRES), and the steps before the last may be long.

    Three safeguards serve equations that are not linear. (1) A step to no smaller residual that leads farther than four times
    the size of the best iterate, or to a residual ``restart`` times the least, is tried first to a quarter of its length or less.
    If the residual there is that of an affine function, to a tenth of its change, the whole step counts; else the iteration goes
    on from the trial, or from the best iterate if the residual had exploded. (2) A sample whose image is not finite, or whose
    residual explodes again, goes back to its best iterate and takes half a plain step from there, then less and less. (3) Where
    ten evaluations, or ``memory + 2``, have not lowered the residual by a twentieth, twenty plain steps from the best iterate
    follow, and so on in turn.

    Parameters
    ----------
    memory
        Number of differences kept, at least one.
    damping
        Share of the plain step that is left out, ``0 <= damping < 1``.
    kind
        ``"II"`` or ``"I"``. Type I looks for a zero of the residual in the span of the steps; it needs fewer evaluations
        on some problems, but its equations may be singular where those of type II are not.
    ridge
        Relative regularisation; default: :math:`100\, \epsilon^{2/3}` in double and :math:`10\, \epsilon^{2/3}` in single
        precision, for the rounding unit :math:`\epsilon`. Smaller ones let rounding decide the coefficients where differences
        are nearly parallel.
    restart
        Growth of the residual over its least one that counts as an explosion.

    Raises
    ------
    ValueError
        If an option is outside its range.

    References
    ----------
    :cite:t:`anderson1965iterative`; :cite:t:`fang2009two`, the two types; :cite:t:`walker2011anderson`.
    """

    memory: int = 10
    damping: float = 0.0
    kind: Literal["II", "I"] = "II"
    ridge: float | None = None
    restart: float = 100.0

    recovers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        set_whole(self, 1, "memory")
        check_secant_options(self.damping, self.ridge, self.restart)
        if self.kind not in ("II", "I"):
            raise ValueError(f"kind: expected 'II' or 'I', got {self.kind!r}")

    def init(self, equation: Equation, at: Iterate) -> History:
        return secant_start(at)

    def step(self, equation: Equation, at: Iterate, state: History) -> Step:
        return secant_step(
            equation, at, state, self.kind, memory=self.memory, damping=self.damping, ridge=self.ridge, restart=self.restart
        )
