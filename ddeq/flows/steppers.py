"""How a flow moves in one step of time: what a stepper is, and the explicit ones of order one and two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from ddeq.flows.problem import Descent
from ddeq.flows.schedules import Schedule, check_schedule, over_atoms

__all__ = ["Euler", "Heun", "Step", "Stepper"]


class Step(NamedTuple):
    """What a step of a `Stepper` gives."""

    points: Tensor
    """Where the atoms are now, ``(*batch, n, d)``."""
    state: Any
    """What the stepper remembers: a pytree of tensors ``(*batch, ...)``, or None."""
    duration: float | Tensor
    """The time that the step took, one for all or one for each sample ``(*batch,)``."""
    energy: Tensor | None = None
    """The energy at ``points``, ``(*batch,)``, where the stepper knows it."""


@runtime_checkable
class Stepper(Protocol):
    """A frozen set of options with pure ``init`` and ``step``.

    A new stepper is such a class, and says with the three flags below what it goes together with.
    """

    descends: ClassVar[bool]
    """Whether it promises that no step raises the energy, whatever the step size."""
    explicit: ClassVar[bool]
    """Whether it follows the velocity that it is given."""
    has_momentum: ClassVar[bool]
    """Whether atoms keep moving when the velocity is zero."""

    def init(self, problem: Descent, points: Tensor) -> Any:
        """The state before the first step of ``problem`` from ``points``: a pytree of tensors ``(*batch, ...)``, or None."""
        ...

    def step(self, problem: Descent, points: Tensor, velocity: Tensor, state: Any, step: int) -> Step:
        r"""One step.

        Parameters
        ----------
        problem
            What is descended: it gives velocities and energies elsewhere, and the inner product of :math:`L^2(\mu)`.
        points
            Where the atoms are, ``(*batch, n, d)``.
        velocity
            The velocity there.
        state
            What the last step, or `init`, gave to remember.
        step
            Number of the step.
        """
        ...


@dataclass(frozen=True)
class _Explicit:
    """Steps of a given size along the velocity, without memory."""

    step_size: Schedule = 0.1

    descends: ClassVar[bool] = False
    explicit: ClassVar[bool] = True
    has_momentum: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_schedule("step_size", self.step_size)

    def init(self, problem: Descent, points: Tensor) -> None:
        return None


@dataclass(frozen=True)
class Euler(_Explicit):
    r"""Explicit Euler steps, :math:`x_i \leftarrow x_i - \tau \nabla_W F(\mu)(x_i)`, of order one.

    For an :math:`\ell`-smooth functional the energy falls for ``step_size`` :math:`\tau < 2/\ell` (T10).

    Parameters
    ----------
    step_size
        A positive number, one for each sample ``(*batch,)``, or a function from the number of the step to either.

    Raises
    ------
    ValueError
        If a step size is not positive and finite.

    References
    ----------
    :cite:t:`arbel2019maximum`, as descent of an energy on measures.
    """

    def step(self, problem: Descent, points: Tensor, velocity: Tensor, state: None, step: int) -> Step:
        tau = problem.number("step_size", self.step_size, step)
        return Step(points + over_atoms(tau) * velocity, state, tau)


@dataclass(frozen=True)
class Heun(_Explicit):
    r"""Heun's explicit steps, of order two at two velocities per step.

    .. math:: \tilde x = x + \tau v(x), \qquad x \leftarrow x + \tfrac\tau2 \big(v(x) + v(\tilde x)\big) .

    Parameters
    ----------
    step_size
        As in `Euler`.

    Raises
    ------
    ValueError
        If a step size is not positive and finite.

    References
    ----------
    :cite:t:`hairer1993solving`, section II.1.
    """

    def step(self, problem: Descent, points: Tensor, velocity: Tensor, state: None, step: int) -> Step:
        tau = problem.number("step_size", self.step_size, step)
        predicted = points + over_atoms(tau) * velocity
        return Step(points + 0.5 * over_atoms(tau) * (velocity + problem.velocity(predicted)), state, tau)
