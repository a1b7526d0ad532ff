"""Random forces: those that stand for an entropy, and those that help an energy out of places where it is flat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from ddeq.draws import normal, uniform
from ddeq.flows.problem import Descent
from ddeq.flows.schedules import Schedule, check_schedule, over_atoms

__all__ = ["Draws", "Langevin", "Noise", "NoiseInjection"]


class Draws:
    """Random fields for all samples of a batch, so that none depends on which others are left."""

    def __init__(self, generator: torch.Generator, like: Tensor) -> None:
        self.generator, self._like = generator, like

    def normal(self) -> Tensor:
        """Standard normal vectors at all atoms, ``(*batch, n, d)``."""
        return self._drawn(normal, tuple(self._like.shape))

    def uniform(self) -> Tensor:
        """Two numbers in [0, 1) for each atom, ``(*batch, n, 2)``."""
        return self._drawn(uniform, (*self._like.shape[:-1], 2))

    def _drawn(self, draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        return draw(shape, self._like, self.generator)


@runtime_checkable
class Noise(Protocol):
    """A frozen set of options that moves atoms at random."""

    stands_for_entropy: ClassVar[bool]
    """Whether it adds a multiple of the entropy to the functional, in law."""

    def displacement(self, problem: Descent, draw: Callable[[], Tensor], step: int) -> Tensor | None:
        """By how much the points are displaced at which the velocity of a step is taken, ``(*batch, n, d)``, or None.

        Parameters
        ----------
        problem
            The flow.
        draw
            Gives standard normal numbers ``(*batch, n, d)``, others at each call.
        step
            Number of the step.
        """
        ...

    def kick(self, problem: Descent, draw: Callable[[], Tensor], duration: float | Tensor, step: int) -> Tensor | None:
        """By how much the atoms move after a step that took the time ``duration``, ``(*batch, n, d)``, or None.

        ``problem``, ``draw`` and ``step`` as in `displacement`.
        """
        ...


@dataclass(frozen=True)
class Langevin:
    r"""Langevin noise: :math:`\sqrt{2 b \tau}\, \xi_i` after each step of length :math:`\tau`, standard normal :math:`\xi_i`.

    In law, as the number of atoms grows and the steps shrink, this is the flow of :math:`F` plus :math:`b` times the entropy
    (T17). So it must not be used together with that entropy. With `Euler` and a `PotentialEnergy` it is the unadjusted
    Langevin algorithm, whose bias is known (T14).

    Parameters
    ----------
    temperature
        :math:`b \ge 0`: a number, one for each sample, or a function of the number of the step.

    Raises
    ------
    ValueError
        If a temperature is negative or not finite.

    References
    ----------
    :cite:t:`roberts1996exponential`.
    """

    temperature: Schedule = 1.0

    stands_for_entropy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_schedule("temperature", self.temperature, zero=True)

    def displacement(self, problem: Descent, draw: Callable[[], Tensor], step: int) -> None:
        return None

    def kick(self, problem: Descent, draw: Callable[[], Tensor], duration: float | Tensor, step: int) -> Tensor:
        temperature = problem.number("temperature", self.temperature, step, zero=True)
        return over_atoms((2.0 * temperature * duration) ** 0.5) * draw()


@dataclass(frozen=True)
class NoiseInjection:
    r"""Velocities taken at randomly displaced points: :math:`v(x_i + \beta_k \xi_i)`, standard normal :math:`\xi_i`.

    The measure, and so the velocity field, stays as it is; only where each atom asks for its velocity is random. An atom that
    is out of reach of a bounded kernel so feels its target now and then: the cure for a plain flow of an `MMD` that is stuck.
    Let the schedule fall to zero.

    Parameters
    ----------
    schedule
        :math:`\beta_k \ge 0`: a number, one for each sample, or a function of the number of the step.

    Raises
    ------
    ValueError
        If a value is negative or not finite.

    References
    ----------
    :cite:t:`arbel2019maximum`, section 4.
    """

    schedule: Schedule = 1.0

    stands_for_entropy: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_schedule("schedule", self.schedule, zero=True)

    def displacement(self, problem: Descent, draw: Callable[[], Tensor], step: int) -> Tensor:
        return over_atoms(problem.number("schedule", self.schedule, step, zero=True)) * draw()

    def kick(self, problem: Descent, draw: Callable[[], Tensor], duration: float | Tensor, step: int) -> None:
        return None
