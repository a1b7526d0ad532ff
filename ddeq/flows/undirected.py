"""Steps for geometries of which it is not known whether their velocities lead downhill."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ddeq.flows.adaptive import AdaptiveEuler
from ddeq.flows.descent import FunctionalDescent
from ddeq.flows.downhill import leads_downhill
from ddeq.flows.schedules import over_atoms
from ddeq.flows.steppers import Stepper
from ddeq.iteration import Iterate, Step
from ddeq.iteration.samples import choose

__all__ = ["EulerOrHeun"]

SHARE = 0.5
"""Length of a step of Heun's, in units of the inverse Lipschitz constant of the velocity that was seen. What rotates fastest
grows by less than a hundredth in it."""
PROBE = 1e-3
"""Displacement by which the constant is seen at the start, relative to the points."""


class _State(NamedTuple):
    descent: Any
    """The state of the steps where the energy falls."""
    uphill: Tensor
    """Whether the velocity is not that of a descent, ``(*batch,)``."""
    lipschitz: Tensor
    """Largest ratio of a change of the velocity to that of the points so far, ``(*batch,)``."""


@dataclass(frozen=True)
class EulerOrHeun(Stepper):
    r"""``AdaptiveEuler`` where the geometry is that of a descent, and Heun's steps where it is not, as in a game.

    The velocity of a game raises some energies, so that these cannot say how long a step may be. Steps of Heun's method have the
    length :math:`\tau = 1/(2\ell)`, with the largest :math:`\ell = |v(x) - v(y)| / |x - y|` that was seen. Where the derivative
    of :math:`-v` has eigenvalues of size up to :math:`\ell`, with real parts above :math:`\ell/64`, they converge.

    Parameters
    ----------
    descent
        The stepper of samples whose velocity is that of a descent at the start.
    """

    descent: Stepper = field(default_factory=AdaptiveEuler)

    in_spaces: ClassVar[bool] = True

    def init(self, equation: FunctionalDescent, at: Iterate) -> _State:
        with torch.no_grad():
            z, v = at.z.detach(), at.residual.detach()
            if equation.dynamics.has_energy:
                uphill = ~leads_downhill(equation, z, equation.force(z))
            else:
                uphill = torch.ones_like(at.norm, dtype=torch.bool)
            size, speed = equation.inner.norms(z, v)
            length = PROBE * torch.where(size > 0, size, 1.0)
            moved = over_atoms(length / torch.where(speed > 0, speed, 1.0)) * v
            there = equation.moved(z, moved)
            lipschitz = _ratio(equation, equation.returned(z, moved, there, equation.residual(there)) - v, moved)
        return _State(None if bool(uphill.all()) else self.descent.init(equation, at), uphill, lipschitz)

    def step(self, equation: FunctionalDescent, at: Iterate, state: _State) -> Step:
        some, every = bool(state.uphill.any()), bool(state.uphill.all())
        if not every:
            down = self.descent.step(equation, at, state.descent)
            state = state._replace(descent=down.state)
            if not some:
                return Step(down.z, state, down.evaluations, down.duration, down.energy, down.status)
        z, tau, lipschitz = self._heun(equation, at, state)
        state = state._replace(lipschitz=lipschitz)
        if every:
            return Step(z, state, evaluations=1, duration=tau)
        duration = torch.as_tensor(down.duration, dtype=tau.dtype, device=tau.device)
        energy = None if down.energy is None else torch.where(state.uphill, equation.energy(z), down.energy)
        return Step(
            choose(state.uphill, z, down.z),
            state,
            evaluations=down.evaluations + 1,
            duration=torch.where(state.uphill, tau, duration),
            energy=energy,
            status=down.status,
        )

    @staticmethod
    def _heun(equation: FunctionalDescent, at: Iterate, state: _State) -> tuple[Tensor, Tensor, Tensor]:
        """The points, the length of the step, and the largest ratio of changes that is known then."""
        known = state.lipschitz
        tau = torch.where(known > 0, SHARE / torch.where(known > 0, known, 1.0), 1.0)
        first = over_atoms(tau) * at.residual
        there = equation.moved(at.z, first)
        predicted = equation.returned(at.z, first, there, equation.residual(there))
        with torch.no_grad():
            seen = _ratio(equation, predicted - at.residual, first)
            lipschitz = torch.maximum(known, torch.where(torch.isfinite(seen), seen, 10.0 * known))
            # Where the velocity changes faster than was known the step is shorter.
            share = torch.where(lipschitz > 0, known / torch.where(lipschitz > 0, lipschitz, 1.0), 1.0)
        tau = share * tau
        mean = at.residual + 0.5 * over_atoms(share) * (predicted - at.residual)
        finite = torch.isfinite(mean).all(-1, keepdim=True)
        return equation.moved(at.z, over_atoms(tau) * torch.where(finite, mean, at.residual)), tau, lipschitz


def _ratio(equation: FunctionalDescent, change: Tensor, moved: Tensor) -> Tensor:
    """Norm of a change of the velocity relative to that of the points, ``(*batch,)``."""
    after, before = equation.inner.norms(change, moved)
    return torch.where(before > 0, after / torch.where(before > 0, before, 1.0), 0.0)
