"""In which geometry a functional is descended: what the velocity of the atoms is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.functionals.base import Functional
from ddeq.measures import DiscreteMeasure
from ddeq.ranks import settled

__all__ = ["Geometry", "Wasserstein", "inner"]


@runtime_checkable
class Geometry(Protocol):
    """A metric on measures. It turns the Wasserstein gradient into a velocity; a frozen set of options.

    A new geometry is a class with these methods.
    """

    def velocity(
        self, functional: Functional, mu: DiscreteMeasure, x: Float[Tensor, "*batch m d"] | None = None
    ) -> Float[Tensor, "*batch m d"]:
        """Velocity of steepest descent of ``functional`` at ``mu``, at the points ``x`` (default: the atoms)."""
        ...

    def mobility(self, mu: DiscreteMeasure) -> Callable[[Tensor], Tensor]:
        r"""What takes minus a Wasserstein gradient at the atoms of ``mu`` to the velocity; self-adjoint in :math:`L^2(\mu)`."""
        ...

    def dissipation(self, functional: Functional, mu: DiscreteMeasure) -> Float[Tensor, "*batch"]:
        """Rate at which ``functional`` falls along its flow at ``mu``: the squared norm of the velocity in this geometry."""
        ...


@dataclass(frozen=True)
class Wasserstein:
    r"""The geometry of optimal transport: velocity :math:`-\nabla_W F(\mu)`.

    The energy falls at the rate :math:`|\nabla_W F(\mu)|^2_{L^2(\mu)}` (T10).

    References
    ----------
    :cite:t:`jordan1998variational`; :cite:t:`ambrosio2008gradient`.
    """

    def velocity(
        self, functional: Functional, mu: DiscreteMeasure, x: Float[Tensor, "*batch m d"] | None = None
    ) -> Float[Tensor, "*batch m d"]:
        return -functional.wasserstein_gradient(mu, x)

    def mobility(self, mu: DiscreteMeasure) -> Callable[[Tensor], Tensor]:
        return lambda force: force

    def dissipation(self, functional: Functional, mu: DiscreteMeasure) -> Float[Tensor, "*batch"]:
        velocity = self.velocity(functional, mu)
        return inner(mu, velocity, velocity)


def inner(mu: DiscreteMeasure, a: Float[Tensor, "*batch n d"], b: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch"]:
    r""":math:`\langle a, b\rangle_{L^2(\mu)} = \sum_i w_i\, a_i \cdot b_i`, whatever the fields are at atoms of mass zero."""
    return settled((mu.weights * torch.where(mu.support(), (a * b).sum(-1), 0.0)).sum(-1))
