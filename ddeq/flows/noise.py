"""Random forces: those that stand for an entropy, and those that help an energy out of places where it is flat."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ddeq.flows.descent import FunctionalDescent
from ddeq.flows.schedules import Schedule, check_schedule, over_atoms
from ddeq.iteration.declared import Declared

__all__ = ["Langevin", "Noise", "NoiseInjection"]


class Noise(Declared, ABC):  # one of two methods, not a given one, must be defined
    """A frozen set of options that moves atoms at random.

    To write one: a frozen dataclass with one of the two methods, or both. Numbers are drawn by ``draw`` alone, so that a flow
    with a generator can be repeated. `ddeq.testing.check_noise` holds a noise to what the library relies on.
    """

    stands_for_entropy: ClassVar[bool] = False
    """Whether it adds a multiple of the entropy to the functional, in law."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.displacement is Noise.displacement and cls.kick is Noise.kick:
            raise TypeError(f"{cls.__name__}: expected a noise to define displacement or kick")

    def displacement(self, equation: FunctionalDescent, draw: Callable[[], Tensor], step: int) -> Tensor | None:
        """By how much the points are displaced at which the velocity of a step is taken, ``(*batch, n, d)``; None: not at all.

        Parameters
        ----------
        equation
            The flow.
        draw
            Gives standard normal numbers ``(*batch, n, d)``, others at each call.
        step
            Number of the step.
        """
        return None

    def kick(self, equation: FunctionalDescent, draw: Callable[[], Tensor], duration: float | Tensor, step: int) -> Tensor | None:
        """By how much the atoms move after a step that took the time ``duration``, ``(*batch, n, d)``; None: not at all.

        ``equation``, ``draw`` and ``step`` as in `displacement`. On a space the move is made tangent there.
        """
        return None

    def variance(self, equation: FunctionalDescent, duration: float | Tensor, step: int) -> float | Tensor:
        """The variance of each coordinate of the `kick`, ``()`` or ``(*batch,)``: what a metric that varies makes a drift of.

        ``equation``, ``duration`` and ``step`` as in `kick`.
        """
        return 0.0


@dataclass(frozen=True)
class Langevin(Noise):
    r"""Langevin noise: :math:`\sqrt{2 b \tau}\, \xi_i` after each step of length :math:`\tau`, standard normal :math:`\xi_i`.

    In law, as the number of atoms grows and the steps shrink, this is the flow of :math:`F` plus :math:`b` times the entropy
    (noise, weights, other geometries, T17). So it must not be used together with that entropy. With `Euler` and a
    `PotentialEnergy` it is the unadjusted Langevin algorithm, whose bias is known (known flows, T14).

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

    def kick(self, equation: FunctionalDescent, draw: Callable[[], Tensor], duration: float | Tensor, step: int) -> Tensor:
        return over_atoms(self.variance(equation, duration, step) ** 0.5) * draw()

    def variance(self, equation: FunctionalDescent, duration: float | Tensor, step: int) -> float | Tensor:
        return 2.0 * equation.number("temperature", self.temperature, step, zero=True) * duration


@dataclass(frozen=True)
class NoiseInjection(Noise):
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

    def __post_init__(self) -> None:
        check_schedule("schedule", self.schedule, zero=True)

    def displacement(self, equation: FunctionalDescent, draw: Callable[[], Tensor], step: int) -> Tensor:
        return over_atoms(equation.number("schedule", self.schedule, step, zero=True)) * draw()
