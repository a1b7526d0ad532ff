"""What a stepper sees of a flow: velocities, energies and an inner product at points whose masses are fixed."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ddeq.flows.geometries import Geometry, Wasserstein, inner
from ddeq.flows.schedules import Schedule, number_at
from ddeq.functionals.base import Functional
from ddeq.measures import DiscreteMeasure
from ddeq.ranks import beside

__all__ = ["Descent"]


@dataclass(frozen=True)
class Descent:
    """Descent of a functional by moving the atoms of ``like``, whose weights and marks stay."""

    functional: Functional
    """The energy that falls."""
    like: DiscreteMeasure
    geometry: Geometry = Wasserstein()
    """What turns the gradient of the energy into a velocity."""
    displacement: Tensor | None = None
    """Velocities are those at so displaced points ``(*batch, n, d)``, as injected noise wants it."""
    known_energy: Tensor | None = None
    """The energy ``(*batch,)`` where the step starts, if somebody has computed it."""
    samples: tuple[tuple[int, ...], Tensor] | None = None
    """Batch shape of the whole flow, and which entries of its first dimension are left; None: it is whole."""

    def measure(self, points: Tensor) -> DiscreteMeasure:
        """The measure with its atoms at ``points``."""
        return self.like.with_points(points)

    def velocity(self, points: Tensor) -> Tensor:
        """Velocity of steepest descent with the atoms at ``points``, ``(*batch, n, d)``."""
        x = None if self.displacement is None else points + self.displacement
        return self.geometry.velocity(self.functional, self.measure(points), x)

    def energy(self, points: Tensor) -> Tensor:
        """The energy with the atoms at ``points``, ``(*batch,)``."""
        return self.functional(self.measure(points))

    def slope(self, points: Tensor, velocity: Tensor) -> Tensor:
        """Rate at which the energy falls at ``points`` along the ``velocity`` there, ``(*batch,)``."""
        if isinstance(self.geometry, Wasserstein):
            return self.inner(velocity, velocity)
        return self.geometry.dissipation(self.functional, self.measure(points))

    def inner(self, a: Tensor, b: Tensor) -> Tensor:
        r""":math:`\langle a, b\rangle_{L^2(\mu)} = \sum_i w_i\, a_i \cdot b_i`, ``(*batch,)``."""
        return inner(self.like, a, b)

    def number(self, name: str, schedule: Schedule, step: int, *, zero: bool = False) -> float | Tensor:
        """A number of a stepper, a noise or a reaction at a step, for the samples that are left.

        Parameters
        ----------
        name
            What it is called in messages.
        schedule
            A number, one for each sample of the whole flow, or a function from the number of the step to either.
        step
            Number of the step.
        zero
            Whether it may be zero.

        Raises
        ------
        ValueError
            If it is not positive (non-negative, with ``zero``) and finite, or not one for each sample.
        """
        whole, left = self.samples or (self.like.batch_shape, None)
        number = number_at(name, schedule, step, batch_shape=whole, zero=zero)
        if not isinstance(number, Tensor):
            return number
        number = number.to(self.like.device, self.like.dtype)
        number = number if left is None or number.ndim == 0 else number[left]
        return beside(number, self.like.points)
