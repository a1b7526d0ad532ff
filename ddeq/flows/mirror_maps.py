"""Mirror maps: gradients of convex functions, which take the inside of a set to all of Euclidean space."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ddeq.autodiff import gradient
from ddeq.spaces.convex import as_vector, check_constant

__all__ = ["BoxEntropy", "ConvexFunction", "MirrorMap", "PositiveEntropy", "SimplexEntropy"]

ROUNDS = 100
"""Most steps of Newton's method for the inverse of a mirror map."""


class MirrorMap(ABC):
    r"""The gradient of a strictly convex :math:`\phi`, from the inside of a set onto :math:`\mathbb R^d`; frozen options.

    Points and vectors are rows of ``(*batch, n, d)`` tensors. To write one: a frozen dataclass with the six methods.
    """

    @abstractmethod
    def contains(self, x: Tensor) -> Tensor:
        r"""Which points lie inside, where :math:`\phi` is smooth, ``(*batch, n)``."""

    @abstractmethod
    def dual(self, x: Tensor) -> Tensor:
        r""":math:`\nabla\phi(x)`."""

    @abstractmethod
    def primal(self, y: Tensor, near: Tensor) -> Tensor:
        r"""The :math:`x` with :math:`\nabla\phi(x) = y`; ``near`` are points not far from it."""

    @abstractmethod
    def hessian(self, x: Tensor, v: Tensor) -> Tensor:
        r""":math:`\nabla^2\phi(x)\, v`."""

    @abstractmethod
    def solve(self, x: Tensor, f: Tensor) -> Tensor:
        r""":math:`\nabla^2\phi(x)^{-1} f`."""

    @abstractmethod
    def root(self, x: Tensor, xi: Tensor, *, inverse: bool) -> Tensor:
        r""":math:`A\, \xi` with :math:`A A^\top = \nabla^2\phi(x)`; if ``inverse``, its inverse. ``x`` and ``xi`` are points
        and vectors."""

    @abstractmethod
    def log_determinant(self, x: Tensor) -> Tensor:
        r""":math:`\log\det\nabla^2\phi(x)`, up to a constant, ``(*batch, n)``."""

    def kick(self, x: Tensor, move: Tensor, variance: float | Tensor) -> Tensor:
        r"""Where the diffusion :math:`\mathrm dY = \sqrt{2 \nabla^2\phi(X)}\,\mathrm dW` leads, by a normal number for each
        coordinate.

        Default: a straight step of the image. Near the boundary that is accurate only while it is short; maps whose metric has
        coordinates of its own override it.

        Parameters
        ----------
        x
            Points.
        move
            Normal numbers ``(*batch, n, d)``.
        variance
            Their variance, one number or ``(*batch, 1, 1)``.
        """
        return self.primal(self.dual(x) + self.root(x, move, inverse=False), x)

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        """Projection of vectors ``v`` at ``x`` to the plane of the set; default: it has inner points, and nothing is left out."""
        return v


class _Separable(MirrorMap):
    """A sum over coordinates; to write one: `contains`, `dual`, `primal` and `curvature`."""

    @abstractmethod
    def curvature(self, x: Tensor) -> Tensor:
        """The second derivatives in the coordinates."""

    def hessian(self, x: Tensor, v: Tensor) -> Tensor:
        return self.curvature(x) * v

    def solve(self, x: Tensor, f: Tensor) -> Tensor:
        return f / self.curvature(x)

    def root(self, x: Tensor, xi: Tensor, *, inverse: bool) -> Tensor:
        root = self.curvature(x).sqrt()
        return xi / root if inverse else root * xi

    def log_determinant(self, x: Tensor) -> Tensor:
        return self.curvature(x).log().sum(-1)


@dataclass(frozen=True)
class PositiveEntropy(_Separable):
    r"""Positive coordinates: :math:`\phi(x) = \sum_k x_k \log x_k - x_k`, :math:`\nabla\phi = \log`.

    Its diffusion is that of squared distances from the origin of a plane, :math:`x_k = |z_k|^2`.
    """

    def contains(self, x: Tensor) -> Tensor:
        return (x > 0).all(-1)

    def dual(self, x: Tensor) -> Tensor:
        return x.log()

    def primal(self, y: Tensor, near: Tensor) -> Tensor:
        return y.exp()

    def kick(self, x: Tensor, move: Tensor, variance: float | Tensor) -> Tensor:
        return (x.sqrt() + 0.5 * move).square() + 0.25 * variance

    def curvature(self, x: Tensor) -> Tensor:
        return 1.0 / x


@dataclass(frozen=True)
class BoxEntropy(_Separable):
    r"""The inside of a box: :math:`\phi(x) = \sum_k (x_k - l_k) \log(x_k - l_k) + (u_k - x_k) \log(u_k - x_k)`.

    Parameters
    ----------
    low, high
        Bounds :math:`l`, :math:`u`: a number for all coordinates, or one for each, ``(d,)``.

    Raises
    ------
    ValueError
        Unless they are finite and ``low < high``.
    """

    low: float | Tensor = 0.0
    high: float | Tensor = 1.0

    def __post_init__(self) -> None:
        low, high = check_constant("low", self.low), check_constant("high", self.high)
        if not bool((torch.isfinite(low) & torch.isfinite(high) & (low < high)).all()):
            raise ValueError(f"low, high: expected finite bounds with low < high, got {self.low}, {self.high}")

    def _gaps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x - as_vector(self.low, x), as_vector(self.high, x) - x

    def contains(self, x: Tensor) -> Tensor:
        below, above = self._gaps(x)
        return ((below > 0) & (above > 0)).all(-1)

    def dual(self, x: Tensor) -> Tensor:
        below, above = self._gaps(x)
        return below.log() - above.log()

    def primal(self, y: Tensor, near: Tensor) -> Tensor:
        low, high = as_vector(self.low, y), as_vector(self.high, y)
        return torch.where(y < 0, low + (high - low) * y.sigmoid(), high - (high - low) * (-y).sigmoid())

    def kick(self, x: Tensor, move: Tensor, variance: float | Tensor) -> Tensor:
        low, high = as_vector(self.low, x), as_vector(self.high, x)
        width = high - low
        below, above = self._gaps(x)
        height = (above - below) / width  # on the unit sphere
        square = (move.square() + variance) / width
        angle = square.sqrt()
        turned = angle.cos() * height - torch.sinc(angle / torch.pi) * (1.0 - height.square()).clamp_min(0.0).sqrt() * (
            move / width.sqrt()
        )
        return 0.5 * (low + high) - 0.5 * width * turned.clamp(-1.0, 1.0)

    def curvature(self, x: Tensor) -> Tensor:
        below, above = self._gaps(x)
        return 1.0 / below + 1.0 / above


@dataclass(frozen=True)
class SimplexEntropy(MirrorMap):
    r"""The inside of the simplex: :math:`\phi(x) = \sum_k x_k \log x_k`; :math:`x` is the softmax of :math:`y = \nabla\phi(x)`.

    Dual vectors are known up to a constant, which is such that their coordinates sum to zero. Densities are those with respect
    to the uniform law of the simplex. Its diffusion is that of :math:`x_k = |z_k|^2` on the unit sphere of
    :math:`\mathbb C^d`.
    """

    def contains(self, x: Tensor) -> Tensor:
        from ddeq.spaces.simplex import Simplex

        return Simplex().contains(x) & (x > 0).all(-1)

    def dual(self, x: Tensor) -> Tensor:
        return _centred(x.log())

    def primal(self, y: Tensor, near: Tensor) -> Tensor:
        return y.softmax(-1)

    def kick(self, x: Tensor, move: Tensor, variance: float | Tensor) -> Tensor:
        z = x.sqrt()
        real = 0.5 * (move - (z * move).sum(-1, keepdim=True) * z)
        square = real.square().sum(-1, keepdim=True) + 0.25 * x.shape[-1] * variance
        angle = square.sqrt()
        ratio = torch.sinc(angle / torch.pi)
        turned = (angle.cos() * z + ratio * real).square() + ratio.square() * 0.25 * variance
        return turned / turned.sum(-1, keepdim=True)

    def hessian(self, x: Tensor, v: Tensor) -> Tensor:
        return _centred(v / x)

    def solve(self, x: Tensor, f: Tensor) -> Tensor:
        return x * (f - (x * f).sum(-1, keepdim=True))

    def root(self, x: Tensor, xi: Tensor, *, inverse: bool) -> Tensor:
        root = x.sqrt()
        if inverse:
            return root * (xi - root * (root * xi).sum(-1, keepdim=True))
        return _centred(xi / root)

    def log_determinant(self, x: Tensor) -> Tensor:
        return -x.log().sum(-1)

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        return _centred(v)


@dataclass(frozen=True)
class ConvexFunction(MirrorMap):
    r"""The mirror map of a function: derivatives by autograd, the inverse by Newton's method, at :math:`O(d^3)` for each atom.

    Parameters
    ----------
    function
        A strictly convex :math:`\phi`, from points ``(..., d)`` to numbers ``(...,)``; infinite or NaN outside of its domain.
    """

    function: Callable[[Tensor], Tensor]

    def contains(self, x: Tensor) -> Tensor:
        return torch.isfinite(self.function(x)) & torch.isfinite(self.dual(x)).all(-1)

    def dual(self, x: Tensor) -> Tensor:
        return gradient(self.function, x)

    def matrix(self, x: Tensor) -> Tensor:
        """Hessians, ``(*batch, n, d, d)``."""
        return torch.stack([gradient(partial(self._slope, coordinate=i), x) for i in range(x.shape[-1])], -2)

    def _slope(self, x: Tensor, coordinate: int) -> Tensor:
        """One coordinate of the gradient, with a graph in ``x``."""
        (found,) = torch.autograd.grad(self.function(x).sum(), x, create_graph=True, materialize_grads=True)
        return found[..., coordinate]

    def hessian(self, x: Tensor, v: Tensor) -> Tensor:
        return (self.matrix(x) @ v.unsqueeze(-1)).squeeze(-1)

    def solve(self, x: Tensor, f: Tensor) -> Tensor:
        solved: Tensor = torch.linalg.solve(self.matrix(x), f.unsqueeze(-1)).squeeze(-1)
        return solved

    def root(self, x: Tensor, xi: Tensor, *, inverse: bool) -> Tensor:
        values, vectors = torch.linalg.eigh(self.matrix(x))
        root = values.rsqrt() if inverse else values.sqrt()
        product: Tensor = vectors @ (root.unsqueeze(-1) * (vectors.mT @ xi.unsqueeze(-1)))
        return product.squeeze(-1)

    def log_determinant(self, x: Tensor) -> Tensor:
        found: Tensor = torch.linalg.slogdet(self.matrix(x)).logabsdet
        return found

    @torch.no_grad()
    def _search(self, y: Tensor, near: Tensor) -> Tensor:
        x, tolerance = near.detach(), 100.0 * torch.finfo(y.dtype).eps
        value = self.function(x) - (x * y).sum(-1)
        for _ in range(ROUNDS):
            residual = y - self.dual(x)
            step = self.solve(x, residual)
            slope = (step * residual).sum(-1)
            if bool((slope <= tolerance**2 * (1.0 + y.square().sum(-1))).all()):
                return x
            share = torch.ones_like(slope)
            for _ in range(60):
                there = x + share.unsqueeze(-1) * step
                reached = self.function(there) - (there * y).sum(-1)
                lower = (reached <= value - 0.25 * share * slope) | (share * slope <= tolerance * (1.0 + value.abs()))
                lower &= torch.isfinite(reached)
                if bool(lower.all()):
                    break
                share = torch.where(lower, share, 0.5 * share)
            x, value = there, reached
        miss = (y - self.dual(x)).abs().amax(-1, keepdim=True)
        solved = miss <= torch.finfo(y.dtype).eps ** 0.5 * (1.0 + y.abs().amax(-1, keepdim=True))
        return torch.where(solved, x, torch.nan)  # which a flow calls DIVERGED

    def primal(self, y: Tensor, near: Tensor) -> Tensor:
        x = self._search(y.detach(), near)
        if not (torch.is_grad_enabled() and y.requires_grad):
            return x
        return x + self.solve(x, y - y.detach())  # first derivatives, by the inverse function theorem


def _centred(y: Tensor) -> Tensor:
    return y - y.mean(-1, keepdim=True)
