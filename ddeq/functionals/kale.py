"""KALE: the Kullback-Leibler divergence, relaxed so that it is finite between measures of disjoint support."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.functionals.regularized import RegularizedDivergence
from ddeq.measures import DiscreteMeasure

__all__ = ["KALE"]


class KALE(RegularizedDivergence):
    r"""KL approximate lower-bound estimator from a target :math:`\nu`.

    .. math:: F(\mu) = (1 + \lambda) \max_{h \in H} \Big\{ 1 + \int h \,\mathrm d\mu - \int e^h \,\mathrm d\nu
              - \frac\lambda2 |h|_H^2 \Big\}, \qquad \frac{\delta F}{\delta\mu} = (1 + \lambda)\, h^* .

    Equally the smallest :math:`\mathrm{KL}(\rho\nu \,|\, \nu) + \mathrm{MMD}_k^2(\mu, \rho\nu)/(2\lambda)` over densities
    :math:`\rho`, times :math:`1 + \lambda`. As :math:`\lambda` falls it tends to :math:`\mathrm{KL}(\mu \,|\, \nu)` for
    characteristic kernels, as it grows to :math:`\tfrac12 \mathrm{MMD}_k^2(\mu, \nu)`, if both have mass one.

    Parameters
    ----------
    target
        Measure :math:`\nu`: one for all, or one for each measure of the batch.
    kernel
        Positive definite kernel :math:`k` of :math:`H`.
    regularization
        :math:`\lambda > 0`: a number, or a tensor of shape ``()`` or ``(*batch,)``; an ``nn.Parameter`` trains.

    Raises
    ------
    ValueError
        If ``regularization`` is not positive and finite, or ``kernel`` not positive definite, such as ``Riesz``.

    Warns
    -----
    InnerProblemWarning
        If the maximum was not found to rounding; the message gives the residual.

    Notes
    -----
    A few Newton steps, each of the cost of a Cholesky factorisation of the order of the target's atoms; where their kernel
    matrix exceeds `ddeq.reductions.block_size`, by conjugate gradients that store no matrix. Rounding is amplified by
    :math:`1/\lambda`: in single precision take at least 1e-3.

    In a flow Newton's method starts from the last step's solution, and the kernel matrix of the target is computed once, unless
    target, kernel or regularization require grad.

    References
    ----------
    :cite:t:`glaser2021kale`.

    Examples
    --------
    >>> from ddeq.kernels import Gaussian
    >>> mu, nu = (DiscreteMeasure(torch.tensor([[x]])) for x in (0.0, 3.0))
    >>> KALE(nu, Gaussian(1.0), regularization=1e3)(mu), 1 - torch.tensor(-4.5).exp()  # half of the squared MMD
    (tensor(0.9894), tensor(0.9889))
    """

    removable = True
    shardable = False

    def density(self, u: Float[Tensor, "*batch m"]) -> Float[Tensor, "*batch m"]:
        return _bounded(u).exp()

    def slope(self, u: Float[Tensor, "*batch m"]) -> Float[Tensor, "*batch m"]:
        return _bounded(u).exp()

    def penalty(self, u: Float[Tensor, "*batch m"]) -> Float[Tensor, "*batch m"]:
        bounded = _bounded(u)  # rho log(rho) - rho + 1, without cancellation where rho is about 1
        return bounded * bounded.exp() - torch.expm1(bounded)

    def forward(self, mu: DiscreteMeasure) -> Float[Tensor, "*batch"]:
        # The penalty integrates rho log(rho) - rho + 1, but what is added is 1, whatever the mass of the target.
        return super().forward(mu) + (1 + self._regularization_for(mu)) * (1 - self.target.mass())


def _bounded(u: Tensor) -> Tensor:
    """At atoms of mass zero ``h`` may be anything: zero times infinity is not zero."""
    return u.clamp(max=0.45 * math.log(torch.finfo(u.dtype).max))
