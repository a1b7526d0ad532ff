"""Accelerated descent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ddeq.flows.descent import FunctionalDescent
from ddeq.flows.schedules import Schedule, check_schedule, over_atoms
from ddeq.flows.steppers import Stepper
from ddeq.iteration import Iterate, Step

__all__ = ["Nesterov"]


class _State(NamedTuple):
    momentum: Tensor
    """The part of the last step that was momentum, as a field at the points."""
    since: Tensor
    """Steps of each sample since it was last restarted, ``(*batch,)``."""


@dataclass(frozen=True)
class Nesterov(Stepper):
    r"""Nesterov's accelerated steps, with restarts.

    .. math:: z_{k+1} = x_k + \tau v(x_k), \qquad x_{k+1} = z_{k+1} + \tfrac{j}{j + 3} (z_{k+1} - z_k),

    :math:`j` the number of steps since the last restart. A sample is restarted, :math:`j = 0`, when it has moved uphill:
    :math:`\langle v(x_k), z_{k+1} - z_k\rangle_{L^2(\mu)} < 0`. The iterates are the :math:`x_k`, one velocity per step;
    the energy may rise in between.

    Parameters
    ----------
    step_size
        :math:`\tau`, as in `Euler`; at most :math:`1/\ell` for an :math:`\ell`-smooth functional.
    restart
        Whether to restart; without, energies of strongly convex problems oscillate.

    Raises
    ------
    ValueError
        If a step size is not positive and finite.

    Notes
    -----
    The steps follow :math:`\ddot x + \tfrac3t \dot x = -\nabla_W F(\mu)(x)` in the time :math:`t = k\sqrt\tau`; a step
    therefore takes the time :math:`\sqrt\tau`.

    References
    ----------
    :cite:t:`nesterov1983method`; :cite:t:`odonoghue2015adaptive`, the restarts; :cite:t:`su2016differential`, the
    differential equation.
    """

    step_size: Schedule = 0.1
    restart: bool = True

    has_momentum: ClassVar[bool] = True
    needs_energy: ClassVar[bool] = True
    in_spaces: ClassVar[bool] = True
    unwatched: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_schedule("step_size", self.step_size)

    def init(self, equation: FunctionalDescent, at: Iterate) -> _State:
        return _State(torch.zeros_like(at.z), torch.zeros_like(at.norm))

    def step(self, equation: FunctionalDescent, at: Iterate, state: _State) -> Step:
        tau = equation.number("step_size", self.step_size, at.step)
        z, step = at.z, over_atoms(tau) * at.residual
        since = state.since
        if self.restart:
            uphill = equation.product(z, at.residual.detach(), (state.momentum + step).detach()) < 0
            since = torch.where(uphill, 0.0, since)
        reached = equation.moved(z, step)
        (momentum,) = equation.carried(z, step, state.momentum)
        push = over_atoms(since / (since + 3.0)) * (momentum + equation.travelled(z, step, reached))
        points = equation.moved(reached, push)
        return Step(points, _State(equation.travelled(reached, push, points), since + 1.0), duration=tau**0.5)
