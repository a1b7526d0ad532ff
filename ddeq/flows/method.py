"""A flow as one method: transport by the stepper, then noise, then reaction."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ddeq.draws import Draws
from ddeq.flows.descent import FunctionalDescent
from ddeq.flows.noise import Noise
from ddeq.flows.reaction import Reaction, jump
from ddeq.flows.steppers import Stepper
from ddeq.iteration import Iterate, Method, Step
from ddeq.measures import DiscreteMeasure

__all__ = ["FlowMethod"]

MOST_TRIALS = 60
"""Durations of a reaction that are tried under a stepper that promises descent."""


@dataclass(frozen=True)
class FlowMethod(Method[FunctionalDescent]):
    """Steps of a flow; the state is that of the stepper.

    Parameters
    ----------
    stepper, noise, reaction
        As in `ddeq.flow`.
    draws, varies
        Whether the functional draws random numbers, and whether it is another one in each step.
    """

    stepper: Stepper
    noise: Noise | None = None
    reaction: Reaction | None = None
    draws: bool = False
    varies: bool = False

    @property
    def is_random(self) -> bool:
        """Whether steps draw random numbers."""
        return self.draws or self.stepper.draws or self.noise is not None or (self.reaction is not None and self.reaction.jumps)

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        return self.stepper.differentiable

    @property
    def removable(self) -> bool:  # type: ignore[override]
        return self.stepper.removable

    @property
    def unwatched(self) -> bool:  # type: ignore[override]
        return self.stepper.unwatched and self.reaction is None and not self.varies

    def unrecorded(self) -> str:
        return self.stepper.unrecorded()

    @property
    def ends_when_still(self) -> bool:
        return not (self.is_random or self.varies) and self.stepper.ends_when_still

    def perturbed(self, equation: FunctionalDescent, z: Tensor, step: int, draw: Draws | None) -> FunctionalDescent:
        equation = equation.at_step(step)
        if self.noise is None or draw is None:
            return equation
        displacement = self.noise.displacement(equation, draw.normal, step)
        return equation if displacement is None else equation.displaced(displacement)

    def init(self, equation: FunctionalDescent, at: Iterate) -> Any:
        return self.stepper.init(*equation.at(at))

    def step(self, equation: FunctionalDescent, at: Iterate, state: Any) -> Step:
        points, here = equation.at(replace(at, energy=None) if self.varies else at)  # that known is of another functional
        taken = self.stepper.step(points, here, state)
        if self.noise is None and self.reaction is None:
            return taken
        duration = 0.0 if taken.duration is None else taken.duration
        z, energy = points.inner.bounded(taken.z, here.z), taken.energy
        if self.noise is not None and at.draw is not None:
            kick = self.noise.kick(points, at.draw.normal, duration, at.step)
            if kick is not None:
                variance = self.noise.variance(points, duration, at.step) if points.has_metric else 0.0
                z, energy = points.kicked(z, kick, variance), None
        moved = points.measure(z)
        if self.reaction is not None:
            moved, energy = self._react(points, moved, duration, energy, at)
        return Step(equation.pack(moved), taken.state, evaluations=taken.evaluations, duration=duration, energy=energy)

    def _react(
        self, points: FunctionalDescent, mu: DiscreteMeasure, duration: float | Tensor, energy: Tensor | None, at: Iterate
    ) -> tuple[DiscreteMeasure, Tensor | None]:
        """The measure after the reaction, and its energy where it is known."""
        reaction, step = self.reaction, at.step
        assert reaction is not None
        if reaction.jumps:
            assert at.draw is not None
            return jump(mu, reaction.react(points, mu, duration, step), at.draw.uniform), None
        if not self.stepper.descends:
            return mu.with_weights(reaction.react(points, mu, duration, step)), None
        functional, own = reaction.energy(points), reaction.functional is not None
        with torch.no_grad():
            start = functional(mu) if energy is None or own else energy
            time = torch.as_tensor(duration, dtype=mu.dtype, device=mu.device).expand(mu.batch_shape)
            time = points.inner.per_sample(time)
            for _ in range(MOST_TRIALS):
                reached = functional(mu.with_weights(reaction.react(points, mu, time, step)))
                rises = ~(reached <= start)
                if not bool(rises.any()):
                    break
                time = torch.where(rises, 0.5 * time, time)
            else:
                time = torch.where(rises, 0.0, time)
                reached = torch.where(rises, start, reached)
        return mu.with_weights(reaction.react(points, mu, time, step)), None if own else reached
