"""What a stepper sees of a flow: velocities, energies and an inner product at points whose masses are fixed."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ddeq.functionals.base import Functional
from ddeq.measures import DiscreteMeasure

__all__ = ["Descent"]


@dataclass(frozen=True)
class Descent:
    """Descent of a functional by moving the atoms of ``like``, whose weights and marks stay."""

    functional: Functional
    like: DiscreteMeasure

    def measure(self, points: Tensor) -> DiscreteMeasure:
        """The measure with its atoms at ``points``."""
        return self.like.with_points(points)

    def velocity(self, points: Tensor) -> Tensor:
        """Minus the Wasserstein gradient, ``(*batch, n, d)``."""
        return -self.functional.wasserstein_gradient(self.measure(points))

    def energy(self, points: Tensor) -> Tensor:
        """The functional, ``(*batch,)``."""
        return self.functional(self.measure(points))

    def inner(self, a: Tensor, b: Tensor) -> Tensor:
        r""":math:`\langle a, b\rangle_{L^2(\mu)} = \sum_i w_i\, a_i \cdot b_i`, ``(*batch,)``."""
        return (self.like.weights * (a * b).sum(-1)).sum(-1)
