"""Preconditioned descent: a symmetric positive definite matrix multiplies the gradient at each atom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.flows.geometries import Geometry
from ddeq.functionals.base import Functional
from ddeq.iteration import InnerProduct
from ddeq.measures import DiscreteMeasure
from ddeq.spaces.space import Field, Space, root_of

__all__ = ["Preconditioned"]

Matrix = Tensor | Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Preconditioning(Space):
    r"""Euclidean space with the metric :math:`\langle a, b\rangle_x = a \cdot C(x)^{-1} b`."""

    matrix: Matrix

    is_flat: ClassVar[bool] = True

    def at(self, x: Tensor) -> Tensor:
        """The matrices at ``x``, ``(*batch, n, d, d)`` or ``(d, d)``, or their diagonals without the last dimension."""
        found = self.matrix(x) if callable(self.matrix) else self.matrix.to(x)
        d = x.shape[-1]
        if found.shape[-1:] != (d,) or (callable(self.matrix) and found.shape[: x.ndim] != x.shape):
            raise ValueError(
                f"matrix: expected matrices of shape {(*x.shape, d)} or diagonals {tuple(x.shape)} at points "
                f"{tuple(x.shape)}, got "
                f"{tuple(found.shape)}"
            )
        return found

    def _is_diagonal(self, matrix: Tensor, x: Tensor) -> bool:
        return matrix.ndim == (x.ndim if callable(self.matrix) else 1)

    def contains(self, x: Tensor) -> Tensor:
        return torch.isfinite(x).all(-1)

    def project(self, x: Tensor) -> Tensor:
        return x

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        return v

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        return x + v

    def velocity(self, x: Tensor, force: Tensor) -> Tensor:
        return self._times(self.at(x), x, force)

    def _times(self, matrix: Tensor, x: Tensor, v: Tensor) -> Tensor:
        return matrix * v if self._is_diagonal(matrix, x) else (matrix @ v.unsqueeze(-1)).squeeze(-1)

    def inner(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        matrix = self.at(x)
        solved = b / matrix if self._is_diagonal(matrix, x) else torch.linalg.solve(matrix, b.unsqueeze(-1)).squeeze(-1)
        return (a * solved).sum(-1)

    def frame(self, x: Tensor, force: Tensor) -> Field:
        matrix = self.at(x)
        if not self._is_diagonal(matrix, x):
            return root_of(matrix)
        root = matrix.sqrt()
        return lambda b: root * b

    def kick(self, x: Tensor, move: Tensor, variance: float | Tensor) -> Tensor:
        moved = x + self.noise(x, move)
        return moved + 0.5 * variance * self.divergence(x) if callable(self.matrix) else moved

    def second_order_at(self, x: Tensor) -> bool:
        return True  # its kicks have the drift of the diffusion instead

    def induced_at(self, x: Tensor) -> bool:
        return False

    def divergence(self, x: Tensor) -> Tensor:
        r""":math:`(\operatorname{div} C)_i = \sum_j \partial_j C_{ij}`, ``(*batch, n, d)``."""
        with torch.enable_grad():
            z = x.detach().requires_grad_()
            matrix = self.at(z)
            if not matrix.requires_grad:
                return torch.zeros_like(x)
            diagonal = self._is_diagonal(matrix, x)
            total = torch.zeros_like(x)
            for j in range(x.shape[-1]):
                column = matrix[..., j : j + 1] if diagonal else matrix[..., j]
                u = torch.zeros_like(column, requires_grad=True)
                (pulled,) = torch.autograd.grad(column, z, u, create_graph=True, materialize_grads=True)
                slope = pulled[..., j]
                if not slope.requires_grad:
                    continue
                (derivative,) = torch.autograd.grad(slope.sum(), u, retain_graph=True, materialize_grads=True)
                if diagonal:
                    total[..., j] += derivative.squeeze(-1)
                else:
                    total += derivative
        return total.detach()


@dataclass(frozen=True)
class Preconditioned(Geometry):
    r"""Preconditioned gradients: velocity :math:`-C(x)\, \nabla_W F(\mu)(x)`, :math:`C` symmetric and positive definite.

    The metric at :math:`x` is :math:`\langle a, C(x)^{-1} b\rangle`, in which steppers measure and Newton's method works. The
    energy falls at the rate :math:`\int \langle\nabla_W F, C\,\nabla_W F\rangle \,\mathrm d\mu` (dissipation, T10). With
    `Langevin` noise the diffusion is

    .. math:: \mathrm dX = \big({-C\,\nabla_W F} + b \operatorname{div} C\big)\,\mathrm dt + \sqrt{2 b\, C}\,\mathrm dW ,

    whose invariant density is that without :math:`C`, :math:`\propto e^{-V/b}` for a potential :math:`V` (spaces, T22).

    Parameters
    ----------
    matrix
        :math:`C`: a matrix ``(d, d)``, a diagonal ``(d,)``, or a function (or module) from points ``(*batch, n, d)`` to matrices
        ``(*batch, n, d, d)`` or diagonals ``(*batch, n, d)``.

    Raises
    ------
    ValueError
        If a constant matrix is not symmetric and positive definite.

    References
    ----------
    :cite:t:`girolami2011riemann`; :cite:t:`ma2015complete`, the drift.
    """

    matrix: Matrix

    is_pointwise: ClassVar[bool] = True
    is_wasserstein: ClassVar[bool] = False

    def __post_init__(self) -> None:
        c = self.matrix
        if callable(c) and not isinstance(c, Tensor):
            return
        if not isinstance(c, Tensor) or c.ndim not in (1, 2) or c.shape[0] != c.shape[-1]:
            raise ValueError(f"matrix: expected a tensor (d, d) or (d,), or a function of points, got {c!r}")
        symmetric = c.ndim == 1 or torch.allclose(c, c.mT, rtol=1e-5, atol=1e-7 * float(c.detach().abs().amax()))
        values = c.detach() if c.ndim == 1 else torch.linalg.eigvalsh(c.detach())
        if not symmetric or not bool((values > 0).all()):
            raise ValueError(f"matrix: expected a symmetric positive definite one, got eigenvalues {values.tolist()} of {c!r}")

    @cached_property
    def space(self) -> Space:
        return _Preconditioning(self.matrix)

    def mobility(self, mu: DiscreteMeasure) -> Callable[[Tensor], Tensor]:
        return lambda force: self.space.velocity(mu.points, force)

    def velocity(
        self, functional: Functional, mu: DiscreteMeasure, x: Float[Tensor, "*batch m d"] | None = None
    ) -> Float[Tensor, "*batch m d"]:
        return self.space.velocity(mu.points if x is None else x, -functional.wasserstein_gradient(mu, x))

    def slope(
        self, functional: Functional, mu: DiscreteMeasure, velocity: Float[Tensor, "*batch n d"]
    ) -> Float[Tensor, "*batch"]:
        return InnerProduct.of(mu.points, mu.weights).of_products(self.space.inner(mu.points, velocity, velocity))
