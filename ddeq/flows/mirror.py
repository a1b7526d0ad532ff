"""Mirror descent: atoms move in the image of a set under the gradient of a convex function, and stay inside of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.autodiff import gradient
from ddeq.flows.geometries import Geometry
from ddeq.flows.mirror_maps import ConvexFunction, MirrorMap
from ddeq.flows.schedules import over_atoms
from ddeq.flows.stein import Stein, repulsion
from ddeq.functionals.base import Functional
from ddeq.functionals.entropy import entropy_share, gradient_without_entropy
from ddeq.iteration import InnerProduct
from ddeq.kernels import Kernel
from ddeq.kernels.radial import Bandwidth
from ddeq.measures import DiscreteMeasure
from ddeq.reductions import integrate_kernel
from ddeq.spaces.space import Field, Space

__all__ = ["Mirror"]


@dataclass(frozen=True)
class _Mirrored(Space):
    r"""The inside of a set with the metric :math:`\nabla^2\phi`; steps are straight lines of :math:`\nabla\phi(x)`."""

    map: MirrorMap

    def contains(self, x: Tensor) -> Tensor:
        return self.map.contains(x)

    def project(self, x: Tensor) -> Tensor:
        raise ValueError("space: the inside of the set of a mirror map has no nearest points; take points inside of it")

    def admitted(self, mu: DiscreteMeasure, name: str = "mu0") -> DiscreteMeasure:
        inside = self.contains(mu.points.detach()) | ~mu.support()
        if not bool(inside.all()):
            seen = mu.points.detach()[~inside][0].tolist()[:8]
            raise ValueError(f"{name}: expected atoms inside of the set of {self.map!r}, where it is smooth, got one at {seen}")
        return super().admitted(mu, name)

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        return self.map.tangent(x, v)

    def velocity(self, x: Tensor, force: Tensor) -> Tensor:
        return self.map.solve(x, force)

    def inner(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return (a * self.map.hessian(x, b)).sum(-1)

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        return self.map.primal(self.map.dual(x) + self.map.hessian(x, v), x)

    def transport(self, x: Tensor, v: Tensor, *fields: Tensor) -> tuple[Tensor, ...]:
        y = self.retract(x, v)
        return tuple(self.map.solve(y, self.map.hessian(x, field)) for field in fields)

    def frame(self, x: Tensor, force: Tensor) -> Field:
        return lambda b: self.map.root(x, b, inverse=True)

    def kick(self, x: Tensor, move: Tensor, variance: float | Tensor) -> Tensor:
        return self.map.kick(x, move, variance)

    def second_order_at(self, x: Tensor) -> bool:
        return True  # its kicks are those of the diffusion: in the image it has no drift of its own

    def induced_at(self, x: Tensor) -> bool:
        return False


@dataclass(frozen=True)
class Mirror(Geometry):
    r"""Mirror descent for a strictly convex :math:`\phi`:
    :math:`\frac{\mathrm d}{\mathrm dt} \nabla\phi(x_i) = -\nabla_W F(\mu)(x_i)`.

    Atoms stay inside of the set where :math:`\phi` is smooth, without projections. The velocity is
    :math:`-\nabla^2\phi(x)^{-1} \nabla_W F(\mu)(x)`, the metric :math:`\nabla^2\phi`, and steps are straight in the image
    :math:`y = \nabla\phi(x)`. With `Langevin` noise this is the mirror-Langevin diffusion,
    :math:`\mathrm dY = -\nabla_W F \,\mathrm dt + \sqrt{2 b\, \nabla^2\phi(X)}\,\mathrm dW`, whose invariant density is
    :math:`\propto e^{-V/b}` for a potential :math:`V` (spaces, T22).

    Parameters
    ----------
    potential
        A `MirrorMap <ddeq.flows.MirrorMap>`: `SimplexEntropy`, `BoxEntropy`, `PositiveEntropy`; or a convex function, from points
        ``(..., d)`` to ``(...,)``, whose inverse gradient is found by Newton's method.
    kernel
        With a kernel, or a function from a bandwidth to one: mirrored Stein variational gradient descent. Velocities in the
        image are smoothed by the kernel there, and an entropy in the functional is integrated by parts, as `Stein` does it.

    Raises
    ------
    ValueError
        If the potential is neither, or the kernel is none.

    References
    ----------
    :cite:t:`nemirovsky1983problem`; :cite:t:`zhang2020wasserstein`, mirror-Langevin; :cite:t:`shi2022sampling`, mirrored SVGD.
    """

    potential: MirrorMap | Callable[[Tensor], Tensor]
    kernel: Kernel | Callable[[Bandwidth], Kernel] | None = None

    is_wasserstein: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.potential, MirrorMap) and not callable(self.potential):
            raise ValueError(f"potential: expected a MirrorMap such as SimplexEntropy(), or a function, got {self.potential!r}")
        if self.kernel is not None:
            Stein(self.kernel)  # which checks it

    @property
    def is_pointwise(self) -> bool:  # type: ignore[override]
        """Whether there is no kernel."""
        return self.kernel is None

    @property
    def replaces_entropy(self) -> bool:  # type: ignore[override]
        """Whether there is a kernel."""
        return self.kernel is not None

    @property
    def map(self) -> MirrorMap:
        """The mirror map."""
        return self.potential if isinstance(self.potential, MirrorMap) else ConvexFunction(self.potential)

    @property
    def space(self) -> Space:
        return _Mirrored(self.map)

    def mobility(self, mu: DiscreteMeasure) -> Callable[[Tensor], Tensor]:
        map, x = self.map, mu.points
        if self.kernel is None:
            return lambda force: map.solve(x, force)
        image = self._image(mu)
        kernel = Stein(self.kernel).kernel_for(image)
        return lambda force: map.solve(x, integrate_kernel(kernel, image.points, image, map.solve(x, force)))

    def velocity(
        self, functional: Functional, mu: DiscreteMeasure, x: Float[Tensor, "*batch m d"] | None = None
    ) -> Float[Tensor, "*batch m d"]:
        map, at = self.map, mu.points if x is None else x
        if self.kernel is None:
            return map.solve(at, -functional.wasserstein_gradient(mu, x))
        image, places = self._image(mu), map.dual(at)
        kernel = Stein(self.kernel).kernel_for(image)
        rest, share = gradient_without_entropy(functional, mu), entropy_share(functional)
        smoothed = torch.zeros_like(at)
        force = torch.zeros_like(mu.points) if rest is None else -rest
        if isinstance(share, Tensor) or share != 0.0:
            # The density of the image has the determinant of the mirror map in it.
            force = force - over_atoms(share) * gradient(map.log_determinant, mu.points)
            smoothed = over_atoms(share) * repulsion(kernel, places, image)
        return map.solve(at, smoothed + integrate_kernel(kernel, places, image, map.solve(mu.points, force)))

    def _image(self, mu: DiscreteMeasure) -> DiscreteMeasure:
        return mu.with_points(self.map.dual(mu.points)).with_marks(None)

    def slope(
        self, functional: Functional, mu: DiscreteMeasure, velocity: Float[Tensor, "*batch n d"]
    ) -> Float[Tensor, "*batch"]:
        if self.kernel is not None:
            return super().slope(functional, mu, velocity)
        return InnerProduct.of(mu.points, mu.weights).of_products(self.space.inner(mu.points, velocity, velocity))
