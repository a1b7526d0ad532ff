"""Broyden's method with a limited memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ddeq.integers import set_whole
from ddeq.iteration.equation import Equation
from ddeq.iteration.iterate import Iterate, Step
from ddeq.iteration.method import Solver
from ddeq.iteration.secant import History, check_secant_options, secant_start, secant_step

__all__ = ["Broyden"]


@dataclass(frozen=True)
class Broyden(Solver):
    r"""Broyden's good method for :math:`g(z) = \Phi(z) - z = 0` in :math:`L^2(\mu)`, safeguarded, at constant memory.

    .. math:: z_{k+1} = z_k - B_k^{-1} g(z_k), \qquad
              B_{j+1} = B_j + \frac{(\Delta g_j - B_j \Delta z_j)\, \Delta z_j^*}{|\Delta z_j|^2}, \qquad
              B_0 = -\tfrac1\beta I, \quad \beta = 1 - \text{damping},

    where :math:`s^* a = \langle s, a\rangle_{L^2(\mu)}`, so that the iterates depend on the measure alone (equivariant
    acceleration, T9). The last ``memory`` updates are applied in their compact form (equivariant acceleration, T9):
    :math:`z_{k+1} = z_k + \beta r_k - \sum_j \gamma_j (\Delta z_j + \beta \Delta r_j)` as in `Anderson`, with :math:`(\Delta
    z_i^* \Delta r_j + \tfrac1\beta [i > j]\, \Delta z_i^* \Delta z_j)\, \gamma = \Delta z_i^* r_k`. Dropping the oldest update
    gives Broyden's matrix of those that are left. On a linear equation in :math:`n` unknowns, with ``memory`` :math:`\ge 2 n` and
    without damping, the residual vanishes after at most :math:`2 n + 1` evaluations (Gay), and the steps before the last may be
    long: the safeguards of `Anderson` try them first.

    Parameters
    ----------
    memory
        Number of updates kept, at least one.
    damping
        Share of the plain step that is left out, ``0 <= damping < 1``.
    restart
        Growth of the residual over its least one that counts as an explosion, as in `Anderson`.

    Raises
    ------
    ValueError
        If an option is outside its range.

    References
    ----------
    :cite:t:`broyden1965class`; :cite:t:`byrd1994representations`, the compact form;
    :cite:t:`gay1979convergence`, linear equations.
    """

    memory: int = 20
    damping: float = 0.0
    restart: float = 100.0

    recovers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        set_whole(self, 1, "memory")
        check_secant_options(self.damping, None, self.restart)

    def init(self, equation: Equation, at: Iterate) -> History:
        return secant_start(at)

    def step(self, equation: Equation, at: Iterate, state: History) -> Step:
        return secant_step(
            equation, at, state, "Broyden", memory=self.memory, damping=self.damping, ridge=None, restart=self.restart
        )
