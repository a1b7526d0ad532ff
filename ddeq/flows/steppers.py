"""How a flow moves in one step of time: what a stepper is, and the explicit ones of order one and two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ddeq.flows.descent import FunctionalDescent
from ddeq.flows.schedules import Schedule, check_schedule, over_atoms
from ddeq.iteration import Iterate, Method, Step

__all__ = ["Euler", "Heun", "Stepper"]


class Stepper(Method[FunctionalDescent]):
    """How a flow moves in one step of time: a `Method` on the descent of a functional by moving points.

    To write one: a frozen dataclass with `init` and `step`. ``at.z`` are the points, ``at.residual`` is their velocity,
    ``equation.residual(z)`` that elsewhere, ``equation.moved(at.z, step)`` where a step leads; a step says by ``duration`` how
    much time it took. The class attributes say what it goes together with. `ddeq.testing.check_stepper` holds a stepper to what
    the library relies on.
    """

    descends: ClassVar[bool] = False
    """Whether it promises that no step raises the energy, whatever the step size."""
    explicit: ClassVar[bool] = True
    """Whether it follows the velocity that it is given."""
    has_momentum: ClassVar[bool] = False
    """Whether atoms keep moving when the velocity is zero."""

    needs_gradients: ClassVar[bool] = False
    """Whether the velocity must be minus the Wasserstein gradient, as it is in the geometry of Wasserstein alone."""
    needs_energy: ClassVar[bool] = False
    """Whether it is made for the descent of an energy and follows no other dynamics: it asks for energies, or its path is not
    that of the velocity in its time. All that promise descent do."""
    superlinear: ClassVar[bool] = False
    """Whether it converges so fast that Newton's method is not tried early in its place."""
    in_spaces: ClassVar[bool] = False
    """Whether all its steps are made by ``equation.moved(z, step)``, and fields at different iterates meet by
    ``equation.carried``:
    then it keeps atoms on a space."""
    draws: ClassVar[bool] = False
    """Whether its steps draw random numbers, from ``at.draw``."""
    adds_entropy: ClassVar[bool] = False
    """Whether they stand for a multiple of the entropy, in law."""

    @property
    def ends_when_still(self) -> bool:
        return not self.has_momentum

    def unrecorded(self) -> str:
        return (
            f"stepper: autograd cannot record the steps of {type(self).__name__}; flow under torch.no_grad() or take Euler, or "
            "differentiate a stationary measure by ddeq.flows.equilibrium"
        )


@dataclass(frozen=True)
class _Explicit(Stepper):
    """Steps of a given size along the velocity, without memory."""

    step_size: Schedule = 0.1

    in_spaces: ClassVar[bool] = True
    unwatched: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_schedule("step_size", self.step_size)

    def init(self, equation: FunctionalDescent, at: Iterate) -> None:
        return None


@dataclass(frozen=True)
class Euler(_Explicit):
    r"""Explicit Euler steps, :math:`x_i \leftarrow x_i - \tau \nabla_W F(\mu)(x_i)`, of order one.

    For an :math:`\ell`-smooth functional the energy falls for ``step_size`` :math:`\tau < 2/\ell` (dissipation, T10).

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

    def step(self, equation: FunctionalDescent, at: Iterate, state: None) -> Step:
        tau = equation.number("step_size", self.step_size, at.step)
        return Step(equation.moved(at.z, over_atoms(tau) * at.residual), None, duration=tau)


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

    def step(self, equation: FunctionalDescent, at: Iterate, state: None) -> Step:
        tau = equation.number("step_size", self.step_size, at.step)
        step = over_atoms(tau) * at.residual
        there = equation.moved(at.z, step)
        predicted = equation.returned(at.z, step, there, equation.residual(there))
        mean = 0.5 * over_atoms(tau) * (at.residual + predicted)
        return Step(equation.moved(at.z, mean), None, evaluations=1, duration=tau)
