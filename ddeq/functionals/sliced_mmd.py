"""Riesz MMDs by slicing: means of one-dimensional ones, which sorting solves."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.functionals.base import Smoothness
from ddeq.functionals.directions import SlicedDiscrepancy, around, by_coordinate, lift, project
from ddeq.functionals.variations import places
from ddeq.kernels import Riesz
from ddeq.measures import DiscreteMeasure, unchecked
from ddeq.reductions import integrate_kernel, integrate_kernel_gradient
from ddeq.reductions.sorted import in_sum_precision, self_energy, sum_distances, sum_signs

__all__ = ["SlicedMMD"]


class SlicedMMD(SlicedDiscrepancy):
    r"""Half the squared MMD with a Riesz kernel from a target :math:`\nu`, as a mean over projections (slicing, T11).

    .. math:: F(\mu) = \frac{c_{d,r}}{L} \sum_{l=1}^L \tfrac12 \mathrm{MMD}_r^2(\theta_l \cdot \mu, \theta_l \cdot \nu)
              \;\approx\; \tfrac12 \mathrm{MMD}_r^2(\mu, \nu), \qquad
              c_{d,r} = \frac{\sqrt\pi\,\Gamma(\frac{d+r}2)}{\Gamma(\frac d2)\Gamma(\frac{r+1}2)} ,

    .. math:: \frac{\delta F}{\delta \mu}(x) = \frac{c_{d,r}}{L} \sum_l f_l(\theta_l \cdot x), \qquad
              \nabla_W F(\mu)(x) = \frac{c_{d,r}}{L} \sum_l f_l'(\theta_l \cdot x)\, \theta_l ,

    with the kernel :math:`-|x-y|^r` and :math:`f_l` the witness between the projections. For ``r = 1`` sorting takes
    :math:`O(L N \log N)` time and :math:`O(N)` memory; for other ``r`` each direction takes :math:`O(N^2)` time.

    Parameters
    ----------
    target
        Measure :math:`\nu`: one for all, or one for each measure of the batch.
    r
        Exponent of the Riesz kernel, :math:`0 < r < 2`.
    n_projections
        Number :math:`L` of directions, spread evenly over the sphere and always the same; on the line one suffices.
    directions
        Unit vectors ``(n_projections, d)`` to take instead; an ``nn.Parameter`` trains, and gradients reach a tensor.
    generator
        Draws independent uniform directions instead, which estimate the MMD without bias.

    resample
        Draw directions anew in each step of a flow, from the flow's generator, so that its gradient is right in the mean. With
        fixed ones a flow stops where the few projections agree, in high dimension far from the target (varying energies, T24).

    Raises
    ------
    ValueError
        If ``r`` is not strictly between 0 and 2, ``n_projections`` is not a positive whole number, or ``directions`` are
        not unit vectors of the target's dimension; or if measures and targets do not fit.

    Notes
    -----
    V-statistics as of `MMD`, to which this tends with many directions; projections that coincide have gradient 0 to each
    other. Sums are taken in double precision. In the plane and beyond the gradient for ``r = 1`` is constant in the
    points, between jumps where projections cross: its derivatives are zero almost everywhere and do not tend to those of
    `MMD`, which is the one to take where second derivatives matter.

    References
    ----------
    :cite:t:`hertrich2024generative`.

    Examples
    --------
    >>> mu, nu = (DiscreteMeasure(torch.tensor([[x]])) for x in (0.0, 3.0))
    >>> SlicedMMD(nu)(mu)  # on the line the energy distance itself, halved
    tensor(3.)
    """

    removable = True

    def __init__(
        self,
        target: DiscreteMeasure,
        r: float = 1.0,
        n_projections: int = 64,
        *,
        directions: Float[Tensor, "l d"] | None = None,
        generator: torch.Generator | None = None,
        resample: bool = False,
    ) -> None:
        super().__init__(target, n_projections, directions, generator, resample)
        self.kernel = Riesz(r)
        self.smoothness = Smoothness.OFF_DIAGONAL if target.dim == 1 else Smoothness.ALMOST_EVERYWHERE

    @property
    def r(self) -> float:
        """Exponent of the Riesz kernel."""
        return self.kernel.r

    def forward(self, mu: DiscreteMeasure) -> Float[Tensor, "*batch"]:
        z, b = _difference(mu, self._target_for(mu))

        def energy(directions: Tensor, z: Tensor, b: Tensor) -> Tensor:
            return self._energy(project(z, directions), b).sum(0)

        return self._scaled_mean(energy, z, b).to(mu.dtype)

    def first_variation(self, mu: DiscreteMeasure, x: Float[Tensor, "*points m d"] | None = None) -> Float[Tensor, "*batch m"]:
        z, b = _difference(mu, self._target_for(mu), x)
        m = mu.n if x is None else x.shape[-2]

        def witness(directions: Tensor, z: Tensor, b: Tensor) -> Tensor:
            return self._witness(project(z, directions), b, m).sum(0)

        return self._scaled_mean(witness, z, b).to(mu.dtype)

    def wasserstein_gradient(
        self, mu: DiscreteMeasure, x: Float[Tensor, "*points m d"] | None = None
    ) -> Float[Tensor, "*batch m d"]:
        z, b = _difference(mu, self._target_for(mu), x)
        m = mu.n if x is None else x.shape[-2]

        def force(directions: Tensor, z: Tensor, b: Tensor) -> Tensor:
            return lift(self._slope(project(z, directions), b, m), directions)

        return self._scaled_mean(force, z, b).to(mu.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, r={self.r}"

    def _scaled_mean(self, integrand: Callable[..., Tensor], z: Tensor, b: Tensor) -> Tensor:
        d, r = z.shape[-1], self.r
        log_constant = math.lgamma((d + r) / 2) - math.lgamma(d / 2) - math.lgamma((r + 1) / 2) + 0.5 * math.log(math.pi)
        return math.exp(log_constant) * self._mean(integrand, b.numel() * (1 if r == 1.0 else b.shape[-1]), z, b)

    def _energy(self, s: Tensor, b: Tensor) -> Tensor:
        """Half of the integrals of `_witness` against the masses ``b`` at ``s``."""
        if self.r == 1.0:
            return self_energy(s, b.expand(s.shape).unsqueeze(-2)).squeeze(-1)
        return 0.5 * (b * self._witness(s, b, b.shape[-1])).sum(-1)

    def _witness(self, s: Tensor, b: Tensor, m: int) -> Tensor:
        """Integrals of the kernel against masses ``b`` at ``s``, ``(l, *batch, n)``, at the first ``m`` of these places."""
        b = b.expand(s.shape)
        if self.r == 1.0:
            return sum_distances(s, b.unsqueeze(-2)).squeeze(-2)[..., :m]
        return integrate_kernel(self.kernel, s[..., :m].unsqueeze(-1), unchecked(s.unsqueeze(-1), b))

    def _slope(self, s: Tensor, b: Tensor, m: int) -> Tensor:
        """Derivatives of `_witness` in the places."""
        b = b.expand(s.shape)
        if self.r == 1.0:
            return -sum_signs(s, b.unsqueeze(-2), first=m).squeeze(-2)
        return integrate_kernel_gradient(self.kernel, s[..., :m].unsqueeze(-1), unchecked(s.unsqueeze(-1), b)).squeeze(-1)


def _difference(mu: DiscreteMeasure, nu: DiscreteMeasure, x: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Places and masses of ``mu - nu``, after places ``x`` of mass zero."""
    masses = [in_sum_precision(mu.weights), -in_sum_precision(nu.weights)]
    points = [around(nu, mu.points), around(nu, nu.points)]
    if x is not None:
        x = places(mu, x)
        points, masses = [around(nu, x), *points], [masses[0].new_zeros(x.shape[:-1]), *masses]
    return by_coordinate(torch.cat(points, -2)), torch.cat(masses, -1)
