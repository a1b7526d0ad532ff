"""Underdamped Langevin dynamics: noise that acts on momenta."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ddeq.flows.descent import FunctionalDescent
from ddeq.flows.schedules import Schedule, check_schedule, over_atoms
from ddeq.flows.steppers import Stepper
from ddeq.iteration import Iterate, Step

__all__ = ["Underdamped"]


class _State(NamedTuple):
    momentum: Tensor
    """A tangent vector at each atom, ``(*batch, n, d)``."""


@dataclass(frozen=True)
class Underdamped(Stepper):
    r"""Underdamped (kinetic) Langevin dynamics, with friction :math:`\gamma` and temperature :math:`b`:

    .. math:: \mathrm dx = p \,\mathrm dt, \qquad
              \mathrm dp = -\nabla_W F(\mu)(x) \,\mathrm dt - \gamma\, p \,\mathrm dt + \sqrt{2 \gamma b}\,\mathrm dW .

    A step of BAOAB: half a kick of the momenta by the velocity, half a drift, the exact solution of friction and noise, half a
    drift, half a kick; one velocity per step. In law it adds :math:`b` times the entropy, as `Langevin` noise does, and the
    invariant density of the positions is :math:`\propto e^{-V/b}` for a potential :math:`V`, up to an error of second order
    in the step that vanishes for quadratic :math:`V`. Momenta start at zero, are transported along the steps, and are saved.
    With temperature zero it is a damped Hamiltonian descent.

    Parameters
    ----------
    step_size
        As in `Euler`; below :math:`2/\sqrt\ell` for an :math:`\ell`-smooth functional.
    friction
        :math:`\gamma \ge 0`: a number, one for each sample, or a function of the number of the step.
    temperature
        :math:`b \ge 0`, likewise.

    Raises
    ------
    ValueError
        If a step size is not positive and finite, or a friction or temperature is negative.

    References
    ----------
    :cite:t:`leimkuhler2013rational`; :cite:t:`leimkuhler2016efficient`, on manifolds.
    """

    step_size: Schedule = 0.1
    friction: Schedule = 1.0
    temperature: Schedule = 1.0

    has_momentum: ClassVar[bool] = True
    needs_energy: ClassVar[bool] = True
    in_spaces: ClassVar[bool] = True
    unwatched: ClassVar[bool] = True
    draws: ClassVar[bool] = True
    adds_entropy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_schedule("step_size", self.step_size)
        check_schedule("friction", self.friction, zero=True)
        check_schedule("temperature", self.temperature, zero=True)

    def init(self, equation: FunctionalDescent, at: Iterate) -> _State:
        # Half a kick back, so that the whole one of the first step is the half that it should be.
        tau = equation.number("step_size", self.step_size, at.step)
        return _State(-0.5 * over_atoms(tau) * at.residual)

    def step(self, equation: FunctionalDescent, at: Iterate, state: Any) -> Step:
        assert at.draw is not None
        tau = equation.number("step_size", self.step_size, at.step)
        friction = equation.number("friction", self.friction, at.step, zero=True)
        temperature = equation.number("temperature", self.temperature, at.step, zero=True)
        time = over_atoms(tau)
        p = state.momentum + time * at.residual
        half = 0.5 * time * p
        middle = equation.moved(at.z, half)
        (p,) = equation.carried(at.z, half, p)
        kept = torch.exp(-torch.as_tensor(friction * tau, dtype=p.dtype, device=p.device))
        spread = (temperature * -torch.expm1(2.0 * kept.log())) ** 0.5
        p = over_atoms(kept) * p + over_atoms(spread) * equation.tangent_noise(middle, at.draw.normal())
        half = 0.5 * time * p
        z = equation.moved(middle, half)
        (p,) = equation.carried(middle, half, p)
        return Step(z, _State(p), duration=tau)
