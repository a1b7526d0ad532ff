"""A functional on a space, and in coordinates around points of it."""

from __future__ import annotations

import torch
from torch import Tensor

from ddeq.autodiff import alias
from ddeq.functionals.base import Functional
from ddeq.measures import DiscreteMeasure
from ddeq.spaces.space import Field, Space

__all__ = ["InChart", "OnSpace"]


class OnSpace(Functional):
    """The same functional, whose gradient is that on a space: tangent, and in its metric."""

    def __init__(self, functional: Functional, space: Space) -> None:
        super().__init__()
        self.functional, self._space = functional, space
        self.smoothness, self.reads_marks, self.tolerance = functional.smoothness, functional.reads_marks, functional.tolerance

    def forward(self, mu: DiscreteMeasure) -> Tensor:
        value: Tensor = self.functional(mu)
        return value

    def wasserstein_gradient(self, mu: DiscreteMeasure, x: Tensor | None = None) -> Tensor:
        return -self._space.velocity(mu.points if x is None else x, -self.functional.wasserstein_gradient(mu, x))


class InChart(Functional):
    r"""A functional of coordinates :math:`z` around points :math:`x` of a space: :math:`F` at :math:`R_x(E_x (z - x))`.

    With a chart :math:`R` and a frame :math:`E` of the space (spaces, T22). Its gradient in Euclidean coordinates vanishes where
    that of the functional on the space does, and its Hessian there is the Riemannian one.

    Parameters
    ----------
    functional
        The functional.
    space
        The space.
    centre
        The points :math:`x`, ``(*batch, n, d)``.
    force
        Minus the Euclidean gradient there: what it holds on a face of the boundary stays on this face.
    """

    def __init__(self, functional: Functional, space: Space, centre: Tensor, force: Tensor) -> None:
        super().__init__()
        self.functional, self._space, self._centre, self._force = functional, space, centre.detach(), force.detach()
        self._frame = space.frame(self._centre, self._force)
        self.smoothness, self.reads_marks, self.tolerance = functional.smoothness, functional.reads_marks, functional.tolerance
        self.removable = functional.removable

    def points(self, z: Tensor) -> Tensor:
        """The points with coordinates ``z``."""
        return self._space.chart(self._centre, self._frame(z - self._centre))

    @property
    def moving(self) -> Field:
        """The orthogonal projection of coordinates to those that move points."""
        return self._space.moving(self._centre, self._force)

    def forward(self, mu: DiscreteMeasure) -> Tensor:
        value: Tensor = self.functional(mu.with_points(self.points(mu.points)))
        return value

    def wasserstein_gradient(self, mu: DiscreteMeasure, x: Tensor | None = None) -> Tensor:
        if x is not None:
            raise ValueError("x: expected None; coordinates are known at the atoms alone")
        record = torch.is_grad_enabled()
        with torch.enable_grad():
            z = alias(mu.points, record)
            points = self.points(z)
            gradient = self.functional.wasserstein_gradient(mu.with_points(points if record else points.detach()))
            (pulled,) = torch.autograd.grad(points, z, gradient, create_graph=record, materialize_grads=True)
        return pulled

    def keys(self, mu: DiscreteMeasure) -> Tensor | None:
        return self.functional.keys(mu)

    def rows(self, keep: Tensor, batch_shape: tuple[int, ...]) -> InChart:
        functional = self.functional.rows(keep, batch_shape)
        return InChart(functional, self._space, self._centre[keep], self._force[keep])
