"""A flow as the one loop sees it: transport by the stepper, then noise, then reaction."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddeq.flows.geometries import Wasserstein
from ddeq.flows.noise import Draws, Noise
from ddeq.flows.problem import Descent
from ddeq.flows.reaction import FisherRao, jump
from ddeq.flows.steppers import Stepper
from ddeq.iteration import Evaluation, Process, Stop
from ddeq.iteration.massless import farthest, held_back
from ddeq.measures import DiscreteMeasure
from ddeq.ranks import beside

__all__ = ["FlowProcess", "Memory"]

MOST_TRIALS = 60
"""Durations of a reaction that are tried under a stepper that promises descent."""


class Memory(NamedTuple):
    """What a flow remembers from step to step, for each sample."""

    stepper: Any
    energy: Tensor | None
    """The energy where the flow is, ``(*batch,)``, if somebody has computed it."""
    energy_before: Tensor | None
    """The energy at the last evaluation, where the stop asks for it."""


class _Found(NamedTuple):
    velocity: Tensor
    displacement: Tensor | None


@dataclass
class _Shared:
    """What all selections of the samples of a flow share, for the whole batch."""

    durations: list[Tensor] = field(default_factory=list)
    """The time of each step, () or ``(*batch,)``."""
    scale: Tensor | None = None
    """To what residuals are relative, ``(*batch,)``."""
    speed: Tensor | None = None
    """Norms of the last velocities, ``(*batch,)``."""
    generator_state: Tensor | None = None
    """State of the generator before the last evaluation."""


class FlowProcess(Process):
    """Steps of a flow on points, or on points and weights side by side where a reaction moves the weights."""

    def __init__(
        self,
        problem: Descent,
        stepper: Stepper,
        *,
        noise: Noise | None = None,
        reaction: FisherRao | None = None,
        stop: Stop | None = None,
        draws: Draws | None = None,
        first: int = 0,
    ) -> None:
        self.problem, self.stepper, self.noise, self.reaction = problem, stepper, noise, reaction
        self._stop, self._draws, self._step = stop, draws, first
        self.shared = _Shared()
        self._limit = farthest(problem.like.points, problem.like.weights, always=self.moves_weights)

    @property
    def moves_weights(self) -> bool:
        """Whether the weights are part of what the loop iterates on."""
        return self.reaction is not None and not self.reaction.birth_death

    def pack(self, mu: DiscreteMeasure) -> Tensor:
        """What the loop iterates on, from a measure."""
        return torch.cat([mu.points, mu.weights.unsqueeze(-1)], -1) if self.moves_weights else mu.points

    def measure(self, value: Tensor) -> DiscreteMeasure:
        """The measure, from what the loop iterates on."""
        if not self.moves_weights:
            return self.problem.like.with_points(value)
        return self.problem.like.with_points(value[..., :-1]).with_weights(value[..., -1])

    def evaluate(self, value: Tensor, memory: Memory) -> tuple[Evaluation, Memory]:
        mu = self.measure(value)
        problem = replace(self.problem, like=mu)
        if self._draws is not None:
            self.shared.generator_state = self._draws.generator.get_state()
        displacement = None
        if self.noise is not None:
            displacement = self.noise.displacement(problem, self._normal, self._step)
        velocity = replace(problem, displacement=displacement).velocity(mu.points)
        velocity = held_back(velocity, 0.0, mu.weights, self._limit)
        norm = problem.inner(velocity.detach(), velocity.detach()).sqrt()
        self._note_speed(norm)
        absolute, relative = norm, norm / torch.ones_like(norm)
        if self._stop is not None:
            absolute, relative, memory = self._residual(problem, mu, norm, memory)
        # A flow may grow as it likes; only a velocity that is not finite ends it.
        nothing = 0.0 * norm
        return Evaluation(relative, absolute, nothing, nothing, _Found(velocity, displacement)), memory

    def advance(self, value: Tensor, memory: Memory, found: _Found, step: int) -> tuple[Tensor, Memory]:
        step, self._step = self._step, self._step + 1
        mu = self.measure(value)
        problem = replace(self.problem, like=mu, displacement=found.displacement, known_energy=memory.energy)
        points, state, duration, energy = self.stepper.step(problem, mu.points, found.velocity, memory.stepper, step)
        points = held_back(points, mu.points, mu.weights, self._limit)
        self._note_duration(duration)
        moved = mu.with_points(points)
        if self.noise is not None:
            kick = self.noise.kick(problem, self._normal, duration, step)
            if kick is not None:
                moved, energy = mu.with_points(points + kick), None
        if self.reaction is not None:
            moved, energy = self._react(problem, moved, duration, energy, step)
        return self.pack(moved), memory._replace(stepper=state, energy=None if energy is None else energy.detach())

    def dissipation(self, mu: DiscreteMeasure) -> Tensor:
        """Rate at which geometry and reaction lower the energy of the whole batch ``mu``, which was evaluated last."""
        problem = replace(self.problem, like=mu)
        with torch.no_grad():
            speed = self.shared.speed
            if (
                type(problem.geometry) is Wasserstein
                and self.noise is None
                and speed is not None
                and bool(speed.isfinite().all())
            ):
                rate = speed.square()
            else:
                rate = problem.geometry.dissipation(problem.functional, mu)
            if self.reaction is not None:
                rate = rate + self.reaction.dissipation(problem, mu, self._step)
        return rate

    def select(self, keep: Tensor) -> FlowProcess:
        whole, left = self._samples
        before = self.problem.like.batch_shape
        like, functional = self.problem.like[keep], self.problem.functional.select(keep, before)
        chosen = FlowProcess(
            replace(self.problem, functional=functional, like=like, samples=(whole, left[keep])),
            self.stepper,
            noise=self.noise,
            reaction=self.reaction if self.reaction is None else self.reaction.select(keep, before),
            stop=self._stop,
            draws=self._draws,
            first=self._step,
        )
        chosen.shared = self.shared
        return chosen

    @property
    def _samples(self) -> tuple[tuple[int, ...], Tensor]:
        """Batch shape of the whole flow and the entries of its first dimension that are left."""
        if self.problem.samples is not None:
            return self.problem.samples
        whole = self.problem.like.batch_shape
        return whole, torch.arange(whole[0] if whole else 1, device=self.problem.like.device)

    def _mine(self, whole: Tensor) -> Tensor:
        """Of something for the whole batch, that of the samples that are left."""
        return whole if self.problem.samples is None else whole[self.problem.samples[1]]

    def _for_all(self, mine: Tensor, whole: Tensor | None) -> Tensor:
        """Something for the samples that are left put among all, ``whole`` for the others."""
        if self.problem.samples is None:
            return mine
        shape, left = self.problem.samples
        return (mine.new_zeros(shape) if whole is None else whole).index_copy(0, left, mine)

    def _normal(self) -> Tensor:
        assert self._draws is not None
        return self._mine(self._draws.normal())

    def _uniform(self) -> Tensor:
        assert self._draws is not None
        return self._mine(self._draws.uniform())

    def _note_speed(self, norm: Tensor) -> None:
        self.shared.speed = self._for_all(norm, self.shared.speed)

    def _note_duration(self, duration: float | Tensor) -> None:
        like = self.problem.like.weights
        time = torch.as_tensor(duration, dtype=like.dtype, device=like.device).detach()
        self.shared.durations.append(self._for_all(time, None) if time.ndim else time)

    def _residual(self, problem: Descent, mu: DiscreteMeasure, norm: Tensor, memory: Memory) -> tuple[Tensor, Tensor, Memory]:
        """The absolute and the relative residual, ``(*batch,)``, as the stop measures it."""
        assert self._stop is not None
        floor = self._stop.atol / self._stop.rtol
        if self._stop.metric == "energy":
            with torch.no_grad():
                energy = problem.energy(mu.points) if memory.energy is None else memory.energy
            before = torch.full_like(energy, torch.inf) if memory.energy_before is None else memory.energy_before
            change = torch.where(torch.isfinite(norm), (before - energy).abs(), torch.nan)
            return change, change / (energy.abs() + floor), memory._replace(energy=energy, energy_before=energy)
        if self.reaction is not None:
            with torch.no_grad():
                norm = (norm.square() + self.reaction.dissipation(problem, mu, self._step)).sqrt()
        if self.shared.scale is None:
            self.shared.scale = norm + floor
        return norm, norm / self._mine(self.shared.scale), memory

    def _react(
        self, problem: Descent, mu: DiscreteMeasure, duration: float | Tensor, energy: Tensor | None, step: int
    ) -> tuple[DiscreteMeasure, Tensor | None]:
        """The measure after the reaction, and its energy where it is known."""
        assert self.reaction is not None
        if self.reaction.birth_death:
            return jump(mu, self.reaction.react(problem, mu, duration, step), self._uniform), None
        if not self.stepper.descends:
            return mu.with_weights(self.reaction.react(problem, mu, duration, step)), None
        functional = self.reaction.functional or problem.functional
        with torch.no_grad():
            start = functional(mu) if energy is None or self.reaction.functional is not None else energy
            time = torch.as_tensor(duration, dtype=mu.dtype, device=mu.device).expand(mu.batch_shape)
            time = beside(time, mu.points)
            for _ in range(MOST_TRIALS):
                reached = functional(mu.with_weights(self.reaction.react(problem, mu, time, step)))
                rises = ~(reached <= start)
                if not bool(rises.any()):
                    break
                time = torch.where(rises, 0.5 * time, time)
            else:
                time = torch.where(rises, 0.0, time)
                reached = torch.where(rises, start, reached)
        return mu.with_weights(
            self.reaction.react(problem, mu, time, step)
        ), reached if self.reaction.functional is None else None
