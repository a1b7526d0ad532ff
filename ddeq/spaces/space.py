"""`Space`: what a set of points needs so that measures on it can flow."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ddeq.iteration.declared import Declared
from ddeq.measures import DiscreteMeasure

__all__ = ["Field", "Space"]

Field = Callable[[Tensor], Tensor]
"""A linear map of fields ``(*batch, n, d)``."""

FEW = 4
"""Atoms at which the order of a retraction is tested."""
APART = 1e-3
"""Relative difference from which two accelerations are not the same."""


class Space(Declared, ABC):
    r"""A set of points in :math:`\mathbb R^d`, closed and smooth but for its boundary, with a metric; frozen options.

    Points are rows of ``(*batch, n, d)`` tensors, vectors have the coordinates of the surrounding space. To write one: a frozen
    dataclass with `contains`, `project`, `tangent` and `retract`. The defaults are those of a surface without boundary that
    has the metric of the surrounding space (spaces, T22); another metric overrides `velocity`, `inner` and `frame` too, a space
    with curvature `transport`, one with a boundary `frame`, `kick` and `travelled`. `ddeq.testing.check_space` holds a space
    to what the library relies on.
    """

    has_boundary: ClassVar[bool] = False
    """Whether it has a boundary, where velocities are projected and noise is reflected."""
    is_flat: ClassVar[bool] = False
    """Whether vectors at different points can be added, so that `transport` is the identity."""
    is_periodic: ClassVar[bool] = False
    """Whether different rows of numbers are the same point, so that not every function of them is one of the point."""

    @abstractmethod
    def contains(self, x: Float[Tensor, "*batch n d"]) -> Bool[Tensor, "*batch n"]:
        """Which points lie in the space, to the root of the rounding of their dtype."""

    @abstractmethod
    def project(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n d"]:
        """The nearest points of the space, or near ones where the nearest have no closed form."""

    @abstractmethod
    def tangent(self, x: Float[Tensor, "*batch n d"], v: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n d"]:
        """Orthogonal projection of vectors ``v`` at ``x`` to the tangent space; on a boundary, to the cone of those into the
        space."""

    @abstractmethod
    def retract(self, x: Float[Tensor, "*batch n d"], v: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n d"]:
        """Where the tangent vector ``v`` leads from ``x``: the exponential map, or a retraction, ``x + v + O(|v|^2)``."""

    def velocity(self, x: Float[Tensor, "*batch n d"], force: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n d"]:
        r"""Steepest descent at ``x`` in the metric of the space, for the ``force``, minus a Euclidean gradient.

        By default its `tangent` part. Without boundary it is linear in the force: :math:`M_x f` for the inverse :math:`M_x` of
        the metric.
        """
        return self.tangent(x, force)

    def inner(
        self, x: Float[Tensor, "*batch n d"], a: Float[Tensor, "*batch n d"], b: Float[Tensor, "*batch n d"]
    ) -> Float[Tensor, "*batch n"]:
        """Inner product of tangent vectors ``a`` and ``b`` at ``x`` in the metric of the space."""
        return (a * b).sum(-1)

    def transport(
        self, x: Float[Tensor, "*batch n d"], v: Float[Tensor, "*batch n d"], *fields: Float[Tensor, "... n d"]
    ) -> tuple[Float[Tensor, "... n d"], ...]:
        """Vectors ``fields`` at ``x`` carried along ``v`` to ``retract(x, v)``; default: their tangent parts there."""
        if self.is_flat:
            return fields
        y = self.retract(x, v)
        return tuple(self.tangent(y, field) for field in fields)

    def travelled(
        self, x: Float[Tensor, "*batch n d"], v: Float[Tensor, "*batch n d"], y: Float[Tensor, "*batch n d"]
    ) -> Float[Tensor, "*batch n d"]:
        """The step from ``x`` to ``y = retract(x, v)`` as a vector at ``y``; default: ``v`` carried there."""
        return self.transport(x, v, v)[0]

    def frame(self, x: Float[Tensor, "*batch n d"], force: Float[Tensor, "*batch n d"]) -> Field:
        r"""A map of fields :math:`E_x` at ``x`` with :math:`E_x E_x^\top = M_x`, the inverse metric; default: the `tangent` part.

        It takes standard normal vectors to tangent ones that are standard normal in the metric. Where the ``force``, minus a
        Euclidean gradient, holds a point on a face of the boundary, of that face.
        """
        return lambda b: self.tangent(x, b)

    def moving(self, x: Float[Tensor, "*batch n d"], force: Float[Tensor, "*batch n d"]) -> Field:
        """The orthogonal projection of vectors to those that the `frame` at ``x``, for the ``force``, does not take to zero."""
        if self.induced_at(x):
            return self.frame(x, force)
        matrix = matrix_of(self.frame(x, force), x)
        projector = torch.linalg.pinv(matrix) @ matrix
        return lambda b: (projector @ b.unsqueeze(-1)).squeeze(-1)

    def chart(self, x: Float[Tensor, "*batch n d"], v: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n d"]:
        """A retraction from ``x`` that is smooth at ``v = 0``, with derivatives by autograd; default: `retract`."""
        return self.retract(x, v)

    def noise(self, x: Float[Tensor, "*batch n d"], xi: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n d"]:
        """Tangent vectors at ``x``, standard normal in the metric of the space where ``xi`` is so in the surrounding one."""
        return self.frame(x, torch.zeros_like(x))(xi)

    def kick(
        self, x: Float[Tensor, "*batch n d"], move: Float[Tensor, "*batch n d"], variance: float | Tensor
    ) -> Float[Tensor, "*batch n d"]:
        """Where random moves lead from ``x``, with a reflection at a boundary.

        Parameters
        ----------
        x
            Points.
        move
            Isotropic in the surrounding space; `noise` makes it tangent.
        variance
            Of each coordinate of ``move``, one number or ``(*batch, 1, 1)``, for a drift that the noise needs.
        """
        return self.retract(x, self.noise(x, move))

    def distance(self, x: Float[Tensor, "*batch n d"], y: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n"]:
        """Geodesic distances of corresponding points ``x`` and ``y``.

        Raises
        ------
        ValueError
            If the space knows none.
        """
        raise ValueError(f"space: {type(self).__name__} knows no distance in closed form")

    def induced_at(self, x: Float[Tensor, "*batch n d"]) -> bool:
        """Whether the metric at ``x`` is that of the surrounding space."""
        return True

    def second_order_at(self, x: Float[Tensor, "*batch n d"]) -> bool:
        r"""Whether `retract` follows geodesics to second order at ``x``, as noise needs it; tested at some of the points.

        The acceleration of a geodesic :math:`\dot x = M_x p` is
        :math:`(D M_x[\dot x])\, p - M_x \nabla_x \frac12 \langle p, M_x p\rangle`, compared with a second difference.
        """
        if self.is_flat:
            return True
        with torch.enable_grad():
            at = x.detach().double().reshape(-1, x.shape[-1])[:FEW]
            generator = torch.Generator().manual_seed(5170)
            p = torch.randn(at.shape, generator=generator, dtype=at.dtype).to(at.device)
            z = at.requires_grad_()
            v = self.velocity(z, p)
            (pull,) = torch.autograd.grad(0.5 * (p * v).sum(), z, create_graph=True, materialize_grads=True)
            direction = v.detach()
            u = torch.zeros_like(v, requires_grad=True)
            (product,) = torch.autograd.grad(v, z, u, create_graph=True, materialize_grads=True)
            (along,) = torch.autograd.grad((product * direction).sum(), u, materialize_grads=True)
        with torch.no_grad():
            wanted = along - self.velocity(at, pull)
            # In units of the metric: short where the space is steep.
            speed = self.inner(at, direction, direction).clamp_min(torch.finfo(at.dtype).tiny).sqrt()
            t = 1e-3 / speed.unsqueeze(-1)
            there, back = self.retract(at, t * direction), self.retract(at, -t * direction)
            found = (there - 2.0 * at + back) / t.square()
            scale = length(direction) / t.squeeze(-1) * 1e-3 + length(wanted)
            return bool((length(found - wanted) <= APART * scale).all())

    def around(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n d"]:
        """Other numbers for the same points, where the space `is_periodic`."""
        return x

    def near(self, x: Float[Tensor, "*batch n d"], y: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n d"]:
        """The points ``y``, by those of their numbers that are nearest to ``x`` where the space `is_periodic`."""
        return y

    def admitted(self, mu: DiscreteMeasure, name: str = "mu0") -> DiscreteMeasure:
        """``mu``, called ``name`` in messages, with atoms of mass zero that lie elsewhere put to others.

        Raises
        ------
        ValueError
            If an atom of positive mass lies elsewhere, or the dimension is not that of the space.
        """
        x, live = mu.points.detach(), mu.support()
        self.check_dimension(mu.dim, name)
        inside = self.contains(x)
        outside = live & ~inside
        if bool(outside.any()):
            seen = [round(c, 6) for c in x[outside][0].tolist()[:8]]
            raise ValueError(
                f"{name}: expected atoms of positive mass in {self!r}, got {int(outside.sum())} elsewhere, the first at {seen}; "
                f"put them there with {name}.with_points(space.project({name}.points))"
            )
        if bool(inside.all()):
            return mu
        first = mu.weights.argmax(-1, keepdim=True).unsqueeze(-1).expand(*x.shape[:-2], 1, x.shape[-1])
        return mu.with_points(torch.where(inside.unsqueeze(-1), mu.points, mu.points.gather(-2, first)))

    def check_dimension(self, d: int, name: str) -> None:
        """Raise a `ValueError` that names ``name`` where points of dimension ``d`` cannot lie in the space."""


def matrix_of(map: Field, x: Tensor) -> Tensor:
    """The matrices ``(*batch, n, d, d)`` of a linear map of fields that acts at each point of ``x`` by itself."""
    basis = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    return torch.stack([map(e.expand_as(x)) for e in basis], -1)


def root_of(matrix: Tensor) -> Field:
    """The map of fields by the positive semidefinite roots of symmetric positive semidefinite matrices."""
    values, vectors = torch.linalg.eigh(0.5 * (matrix + matrix.mT))
    least = 10.0 * values.shape[-1] * torch.finfo(values.dtype).eps * values.amax(-1, keepdim=True)
    root = (vectors * torch.where(values > least, values, 0.0).sqrt().unsqueeze(-2)) @ vectors.mT  # the root of rounding is large
    return lambda b: (root @ b.unsqueeze(-1)).squeeze(-1)


def length(v: Tensor, keepdim: bool = False) -> Tensor:
    """Euclidean lengths of vectors, ``(*batch, n)``."""
    found: Tensor = torch.linalg.vector_norm(v, dim=-1, keepdim=keepdim)
    return found


def rounding(x: Tensor) -> float:
    """By how much points may be off the space, relative to their size."""
    return 0.1 * math.sqrt(torch.finfo(x.dtype).eps)
