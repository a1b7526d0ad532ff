"""The Stein geometry: velocities smoothed by a kernel, as in Stein variational gradient descent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.autodiff import gradient
from ddeq.flows.geometries import Geometry
from ddeq.flows.schedules import over_atoms
from ddeq.functionals.base import Functional
from ddeq.functionals.entropy import entropy_share, gradient_without_entropy
from ddeq.functionals.stein import SteinKernel
from ddeq.iteration import InnerProduct
from ddeq.kernels import Gaussian, Kernel, median_bandwidth
from ddeq.kernels.radial import Bandwidth
from ddeq.measures import DiscreteMeasure
from ddeq.reductions import integrate, integrate_kernel, integrate_kernel_gradient
from ddeq.reductions.one_pass import integrate_kernel_with_gradient

__all__ = ["Stein", "repulsion"]


@dataclass(frozen=True)
class Stein(Geometry):
    r"""The geometry of Stein variational gradient descent: the velocity lies in the Hilbert space of a kernel.

    .. math:: v(x) = -\int k(x, y)\, \nabla_W F(\mu)(y) \,\mathrm d\mu(y) .

    The energy falls at the rate of the squared norm of :math:`v` in that space (noise, weights, other geometries, T17). Where
    :math:`F` has `Entropy` as a part, as `KLDivergence` has, that part is integrated by parts and no density is estimated:

    .. math:: F = G + c \int \log\mu \,\mathrm d\mu: \qquad
              v(x) = \int \big({-k(x, y)}\, \nabla_W G(\mu)(y) + c\, \nabla_y k(x, y)\big) \,\mathrm d\mu(y) .

    Parameters
    ----------
    kernel
        Kernel :math:`k`, or a function from a bandwidth to a kernel such as ``Gaussian`` (default): then the bandwidth of
        each measure is its `median_bandwidth`, found once for every measure at which a velocity is wanted (`at`).

    Raises
    ------
    ValueError
        If ``kernel`` is neither.

    Notes
    -----
    The median heuristic of the literature divides by the logarithm of the number of atoms, which is not a property of the
    measure (measure consistency, T1); here it is left out. A flow of a KL divergence by parts descends the divergence itself:
    the energies of its trajectory are those of the blob, which differ from it by a bias (the catalogue, T3) and are not zero at
    the target. `AdaptiveEuler` and `Proximal` go by these energies, and so end where the blob cannot be lowered, before the
    divergence has: take `Euler`, `Heun` or `Nesterov` there.

    References
    ----------
    :cite:t:`liu2016stein`; :cite:t:`liu2017stein`.
    """

    kernel: Kernel | Callable[[Bandwidth], Kernel] = Gaussian

    replaces_entropy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.kernel, Kernel) and not (callable(self.kernel) and isinstance(self.kernel(1.0), Kernel)):
            raise ValueError(f"kernel: expected a kernel, or a function from a bandwidth to one, got {self.kernel!r}")

    def at(self, mu: DiscreteMeasure) -> Stein:
        """The geometry of the kernel that is the one at ``mu``: the given one, or that of the median bandwidth of ``mu``."""
        return self if isinstance(self.kernel, Kernel) else replace(self, kernel=self.kernel_for(mu))

    def velocity(
        self, functional: Functional, mu: DiscreteMeasure, x: Float[Tensor, "*batch m d"] | None = None
    ) -> Float[Tensor, "*batch m d"]:
        kernel, x = self.kernel_for(mu), mu.points if x is None else x
        force, share = gradient_without_entropy(functional, mu), entropy_share(functional)
        if force is None:
            return over_atoms(share) * repulsion(kernel, x, mu)
        if _is_zero(share):
            return -integrate_kernel(kernel, x, mu, force)
        if kernel.is_radial:
            sums, gradients = integrate_kernel_with_gradient(kernel, x, mu, force)
            return -sums - over_atoms(share) * gradients
        return over_atoms(share) * repulsion(kernel, x, mu) - integrate_kernel(kernel, x, mu, force)

    def mobility(self, mu: DiscreteMeasure) -> Callable[[Tensor], Tensor]:
        kernel = self.kernel_for(mu)
        return lambda force: integrate_kernel(kernel, mu.points, mu, force)

    def dissipation(self, functional: Functional, mu: DiscreteMeasure) -> Float[Tensor, "*batch"]:
        here = self.at(mu)
        kernel = here.kernel_for(mu)
        share = entropy_share(functional)
        if _is_zero(share) or not (kernel.is_radial and kernel.smooth_on_the_diagonal):
            return super(Stein, here).dissipation(functional, mu)
        # The squared norm is that of the Stein kernel whose score is -grad G / c: it needs no density.
        rest = gradient_without_entropy(functional, mu)
        force = torch.zeros_like(mu.points) if rest is None else rest
        scored = mu.with_marks(None).with_points(torch.cat([mu.points, -force / over_atoms(share)], -1))
        return share**2 * integrate(integrate_kernel(SteinKernel(kernel, mu.dim), scored.points, scored), scored)

    def slope(
        self, functional: Functional, mu: DiscreteMeasure, velocity: Float[Tensor, "*batch n d"]
    ) -> Float[Tensor, "*batch"]:
        if not _is_zero(entropy_share(functional)):
            return self.dissipation(functional, mu)
        return -InnerProduct.of(mu.points, mu.weights)(functional.wasserstein_gradient(mu), velocity)

    def kernel_for(self, mu: DiscreteMeasure) -> Kernel:
        """The kernel at ``mu``: the given one, or the one whose bandwidth is the median of the distances."""
        return self.kernel if isinstance(self.kernel, Kernel) else self.kernel(median_bandwidth(mu, coincident=1.0))


def _is_zero(share: float | Tensor) -> bool:
    return not isinstance(share, Tensor) and share == 0.0


def repulsion(kernel: Kernel, x: Tensor, mu: DiscreteMeasure) -> Tensor:
    r""":math:`\int \nabla_2 k(x, y) \,\mathrm d\mu(y)`, ``(*batch, m, d)``."""
    if kernel.is_radial:
        return -integrate_kernel_gradient(kernel, x, mu)
    # The derivative of n numbers in one shift of all atoms: of a linear function of u, in u, one coordinate at a time.
    shift, u = x.new_zeros(*x.shape[:-2], 1, x.shape[-1]), x.new_zeros(x.shape[:-1])

    def slope(u: Tensor, coordinate: int) -> Tensor:
        return gradient(lambda e: u * integrate_kernel(kernel, x, mu.with_points(mu.points + e)), shift)[..., coordinate]

    return torch.stack([gradient(partial(slope, coordinate=c), u) for c in range(x.shape[-1])], -1)
