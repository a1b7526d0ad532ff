"""Accelerated descent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ddeq.flows.problem import Descent
from ddeq.flows.schedules import Schedule, check_schedule, over_atoms
from ddeq.flows.steppers import Step

__all__ = ["Nesterov"]


class _State(NamedTuple):
    before: Tensor
    """Where the last step led, before momentum."""
    since: Tensor
    """Steps of each sample since it was last restarted, ``(*batch,)``."""


@dataclass(frozen=True)
class Nesterov:
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

    descends: ClassVar[bool] = False
    explicit: ClassVar[bool] = True
    has_momentum: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_schedule("step_size", self.step_size)

    def init(self, problem: Descent, points: Tensor) -> _State:
        return _State(points, points.new_zeros(points.shape[:-2]))

    def step(self, problem: Descent, points: Tensor, velocity: Tensor, state: _State, step: int) -> Step:
        tau = problem.number("step_size", self.step_size, step)
        reached = points + over_atoms(tau) * velocity
        moved = reached - state.before
        since = state.since
        if self.restart:
            since = torch.where(problem.inner(velocity.detach(), moved.detach()) < 0, 0.0, since)
        points = reached + over_atoms(since / (since + 3.0)) * moved
        return Step(points, _State(reached, since + 1.0), tau**0.5)
