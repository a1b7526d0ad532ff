"""Manifolds of geoopt."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddeq.measures import DiscreteMeasure
from ddeq.spaces.space import Field, Space, length, matrix_of, root_of, rounding

__all__ = ["Manifold"]


@dataclass(frozen=True)
class Manifold(Space):
    """Any manifold of geoopt: Poincare ball, symmetric positive definite matrices, Stiefel, hyperboloid, ...

    Steps follow geoopt's exponential map. A manifold whose exponential map does not start along its vector is refused, as
    ``CanonicalStiefel`` of geoopt 0.5 (take ``EuclideanStiefel``).

    Parameters
    ----------
    manifold
        A ``geoopt.Manifold``.
    shape
        Shape of a point of a manifold of matrices, such as ``(3, 3)``; the points of a measure are flattened row by row.

    Raises
    ------
    ImportError
        If geoopt is missing.
    ValueError
        If ``manifold`` is none of geoopt's, or a manifold of matrices comes without their ``shape``.

    References
    ----------
    :cite:t:`kochurov2020geoopt`.
    """

    manifold: Any
    shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        try:
            from geoopt.manifolds.base import Manifold as Base
        except ImportError:
            raise ImportError("spaces.Manifold needs geoopt: pip install 'ddeq[manifolds]'") from None
        if not isinstance(self.manifold, Base):
            raise ValueError(f"manifold: expected one of geoopt, such as geoopt.PoincareBall(), got {self.manifold!r}")
        if any(t.requires_grad for t in self.manifold.parameters()):
            raise ValueError("manifold: its curvature requires grad, but no gradient reaches a space; take learnable=False")
        if self.shape is not None:
            object.__setattr__(self, "shape", tuple(self.shape))
        if self.manifold.ndim > 1 and (self.shape is None or len(self.shape) != self.manifold.ndim):
            raise ValueError(
                f"shape: expected that of one point of {self.manifold}, {self.manifold.ndim} numbers such as (3, 3), "
                f"got {self.shape}"
            )

    def admitted(self, mu: DiscreteMeasure, name: str = "mu0") -> DiscreteMeasure:
        mu = super().admitted(mu, name)
        with torch.no_grad():
            x = mu.points.detach().double().flatten(0, -2)[:1]
            v = self.velocity(x, torch.cos(1.0 + torch.arange(x.numel(), device=x.device).double()).reshape(x.shape))
            t = 1e-4 / self.inner(x, v, v).clamp_min(torch.finfo(x.dtype).tiny).sqrt().unsqueeze(-1)
            seen = (self.retract(x, t * v) - self.retract(x, -t * v)) / (2.0 * t)
            if not bool((seen - v).norm() <= 1e-3 * v.norm()):
                raise ValueError(
                    f"space: the exponential map of {self.manifold} in geoopt does not start along the vector that it "
                    f"is given; take "
                    "another metric of the manifold, such as geoopt.EuclideanStiefel()"
                )
        return mu

    def check_dimension(self, d: int, name: str) -> None:
        if self.shape is not None and d != math.prod(self.shape):
            raise ValueError(
                f"{name}: expected points of dimension {math.prod(self.shape)}, those of shape {self.shape} flattened, got {d}"
            )

    def _like(self, x: Tensor) -> Any:
        """The manifold with its curvature in the dtype and on the device of ``x``, which geoopt does not convert."""
        own = [*self.manifold.parameters(), *self.manifold.buffers()]
        if all(t.dtype == x.dtype and t.device == x.device for t in own):
            return self.manifold
        return copy.deepcopy(self.manifold).to(x.device, x.dtype)

    def _open(self, t: Tensor) -> Tensor:
        return t if self.shape is None else t.unflatten(-1, self.shape)

    @staticmethod
    def _flat(t: Tensor, like: Tensor) -> Tensor:
        return t.reshape(like.shape)

    def contains(self, x: Tensor) -> Tensor:
        tolerance, points = rounding(x), self._open(x)
        near = length(self.project(x) - x) <= tolerance * (1.0 + length(x))
        if bool(near.all()) and not self._check(points, tolerance):
            return torch.stack([torch.as_tensor(self._check(p, tolerance)) for p in points.flatten(0, x.ndim - 2)]).reshape(
                near.shape
            )
        return near

    def _check(self, points: Tensor, tolerance: float) -> bool:
        return bool(self._like(points).check_point_on_manifold(points, atol=tolerance, rtol=tolerance))

    def project(self, x: Tensor) -> Tensor:
        found: Tensor = self._flat(self._like(x).projx(self._open(x)), x)
        return found

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        once = self._flat(self._like(x).proju(self._open(x), self._open(v)), v)
        twice = self._flat(self._like(x).proju(self._open(x), self._open(once)), v)
        if torch.allclose(once, twice, rtol=1e-5, atol=1e-6 * float(v.detach().abs().amax() if v.numel() else 0.0)):
            return once
        # geoopt's map is no projection; that onto the image of the inverse metric is.
        matrix = matrix_of(lambda g: self.velocity(x, g), x)
        projector: Tensor = matrix @ torch.linalg.pinv(matrix, hermitian=True)
        return (projector @ v.unsqueeze(-1)).squeeze(-1)

    def velocity(self, x: Tensor, force: Tensor) -> Tensor:
        return self._flat(self._like(x).egrad2rgrad(self._open(x), self._open(force.clone())), x)  # some write into it

    def inner(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        a, b, x = torch.broadcast_tensors(a, b, x)
        found: Tensor = self._like(x).inner(self._open(x), self._open(a), self._open(b), keepdim=True)  # else some mix atoms
        return found.reshape(x.shape[:-1])

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        y = self._flat(self._like(x).expmap(self._open(x), self._open(v)), x)
        return y + (self.project(y.detach()) - y.detach())  # what rounding adds up to in many steps

    def chart(self, x: Tensor, v: Tensor) -> Tensor:
        # geoopt's exponential maps divide by the length of the vector, and a retraction writes into what autograd needs.
        if "_retracts" not in self.__dict__:
            self.__dict__["_retracts"] = self._is_smooth("retr", x)
        name = "retr" if self.__dict__["_retracts"] else "expmap"
        return self._flat(getattr(self._like(x), name)(self._open(x), self._open(v)), x)

    def _is_smooth(self, name: str, x: Tensor) -> bool:
        """Whether autograd differentiates a map of geoopt twice at the vector zero."""
        with torch.enable_grad():
            v = torch.zeros_like(x, requires_grad=True)
            try:
                y = getattr(self._like(x), name)(self._open(x.detach()), self._open(v))
                (slope,) = torch.autograd.grad(y.square().sum(), v, create_graph=True)
                if not slope.requires_grad:
                    return bool(torch.isfinite(slope).all())
                (curvature,) = torch.autograd.grad(slope.square().sum(), v)
            except RuntimeError:
                return False
            return bool(torch.isfinite(slope).all() & torch.isfinite(curvature).all())

    def transport(self, x: Tensor, v: Tensor, *fields: Tensor) -> tuple[Tensor, ...]:
        points, along = self._open(x), self._open(v)
        try:
            return tuple(
                self._like(x).transp_follow_expmap(points, along, self._open(field)).reshape(field.shape) for field in fields
            )
        except NotImplementedError:
            y = self.retract(x, v)
            return tuple(self.tangent(y, field) for field in fields)

    def frame(self, x: Tensor, force: Tensor) -> Field:
        if self.induced_at(x):
            return lambda b: self.velocity(x, b)
        return root_of(matrix_of(lambda g: self.velocity(x, g), x))

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        try:
            found: Tensor = self._like(x).dist(self._open(x), self._open(y))
        except NotImplementedError:
            return super().distance(x, y)
        return found.reshape(x.shape[:-1])

    def induced_at(self, x: Tensor) -> bool:
        probe = torch.sin(1.0 + torch.arange(x.numel(), dtype=x.dtype, device=x.device)).reshape(x.shape)
        with torch.no_grad():
            v = self.velocity(x, probe)
            return torch.allclose(self.velocity(x, v), v, rtol=1e-4, atol=1e-4)
