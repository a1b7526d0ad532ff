"""In which geometry a functional is descended: what the velocity of the atoms is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from ddeq.functionals.base import Functional
from ddeq.iteration import InnerProduct
from ddeq.iteration.declared import Declared
from ddeq.measures import DiscreteMeasure
from ddeq.spaces.space import Space

__all__ = ["Geometry", "Wasserstein"]


class Geometry(Declared, ABC):
    r"""A metric on measures, which turns the Wasserstein gradient into a velocity; a frozen set of options.

    To write one: a frozen dataclass with `mobility`, the self-adjoint positive semidefinite operator :math:`C_\mu` on
    :math:`L^2(\mu)` in :math:`v = -C_\mu \nabla_W F(\mu)`. `velocity` and `dissipation` follow; override `velocity` where it is
    known at other points than the atoms too, and `at` where something that depends on the measure alone is costly.
    `ddeq.testing.check_geometry` holds a geometry to these laws.
    """

    is_wasserstein: ClassVar[bool] = False
    """Whether velocities are minus Wasserstein gradients, so that the mobility is the identity. A subclass that changes
    one of the methods and does not declare it anew is taken not to be."""
    is_pointwise: ClassVar[bool] = False
    """Whether velocities are steepest descents in the metric of its own `space`, at each atom by itself."""
    replaces_entropy: ClassVar[bool] = False
    """Whether the entropy in a functional is descended without an estimate of the density, and so to another measure than the
    one at which its Wasserstein gradient vanishes."""

    @property
    def space(self) -> Space | None:
        """The space that the geometry brings: how points move in its metric; None: as they do without it."""
        return None

    @property
    def is_gradient(self) -> bool:
        """Whether velocities are gradients, in the metric of Wasserstein or in that of its own space."""
        return self.is_wasserstein or self.is_pointwise

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        changed = {"at", "velocity", "mobility", "dissipation", "slope"} & cls.__dict__.keys()
        if changed and "is_wasserstein" not in cls.__dict__:
            cls.is_wasserstein = False

    def at(self, mu: DiscreteMeasure) -> Geometry:
        """A geometry that is the same at ``mu``, with what depends on ``mu`` alone found once; default: this one.

        For several of the methods below at one measure; at others it may be another geometry.
        """
        return self

    @abstractmethod
    def mobility(self, mu: DiscreteMeasure) -> Callable[[Tensor], Tensor]:
        r"""The operator :math:`C_\mu` at the atoms of ``mu``: takes minus a Wasserstein gradient to the velocity.

        Self-adjoint and positive semidefinite in :math:`L^2(\mu)`.
        """

    def velocity(
        self, functional: Functional, mu: DiscreteMeasure, x: Float[Tensor, "*batch m d"] | None = None
    ) -> Float[Tensor, "*batch m d"]:
        """Velocity of steepest descent of ``functional`` at ``mu``, at the points ``x`` (default: the atoms).

        Raises
        ------
        ValueError
            If ``x`` is given and the geometry does not define velocities elsewhere than at the atoms.
        """
        if x is not None:
            raise ValueError(
                f"x: {type(self).__name__} knows velocities at the atoms alone, by its `mobility`; for NoiseInjection it must "
                "define `velocity(functional, mu, x)`"
            )
        return self.mobility(mu)(-functional.wasserstein_gradient(mu))

    def dissipation(self, functional: Functional, mu: DiscreteMeasure) -> Float[Tensor, "*batch"]:
        """Rate at which ``functional`` falls along its flow at ``mu``: the squared norm of the velocity in this geometry."""
        return -InnerProduct.of(mu.points, mu.weights)(functional.wasserstein_gradient(mu), self.velocity(functional, mu))

    def slope(
        self, functional: Functional, mu: DiscreteMeasure, velocity: Float[Tensor, "*batch n d"]
    ) -> Float[Tensor, "*batch"]:
        """The `dissipation` of ``functional`` at ``mu`` where the ``velocity`` at the atoms is known, and is not found again."""
        if self.replaces_entropy:
            return self.dissipation(functional, mu)
        return -InnerProduct.of(mu.points, mu.weights)(functional.wasserstein_gradient(mu), velocity)


@dataclass(frozen=True)
class Wasserstein(Geometry):
    r"""The geometry of optimal transport: velocity :math:`-\nabla_W F(\mu)`.

    The energy falls at the rate :math:`|\nabla_W F(\mu)|^2_{L^2(\mu)}` (dissipation, T10).

    References
    ----------
    :cite:t:`jordan1998variational`; :cite:t:`ambrosio2008gradient`.
    """

    is_wasserstein: ClassVar[bool] = True

    def velocity(
        self, functional: Functional, mu: DiscreteMeasure, x: Float[Tensor, "*batch m d"] | None = None
    ) -> Float[Tensor, "*batch m d"]:
        gradient: Tensor = functional.wasserstein_gradient(mu, x)
        return -gradient

    def mobility(self, mu: DiscreteMeasure) -> Callable[[Tensor], Tensor]:
        return lambda force: force

    def dissipation(self, functional: Functional, mu: DiscreteMeasure) -> Float[Tensor, "*batch"]:
        velocity = self.velocity(functional, mu)
        return InnerProduct.of(mu.points, mu.weights)(velocity, velocity)
