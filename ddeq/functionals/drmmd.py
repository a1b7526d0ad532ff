"""DrMMD: a maximum mean discrepancy from which part of the kernel's smoothing is taken away."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.functionals.regularized import RegularizedDivergence

__all__ = ["DrMMD"]


class DrMMD(RegularizedDivergence):
    r"""De-regularised maximum mean discrepancy from a target :math:`\nu`.

    .. math:: F(\mu) = (1 + \lambda) \big|(\Sigma_\nu + \lambda)^{-1/2} (m_\mu - m_\nu)\big|_H^2, \qquad
              \frac{\delta F}{\delta\mu} = 2 (1 + \lambda)\, h, \quad h = (\Sigma_\nu + \lambda)^{-1} (m_\mu - m_\nu),

    with the mean embeddings :math:`m_\mu = \int k(\cdot, x) \,\mathrm d\mu(x)` and
    :math:`\Sigma_\nu = \int k(\cdot, y) \otimes k(\cdot, y) \,\mathrm d\nu(y)`. Equally the smallest
    :math:`\chi^2(\rho\nu \,|\, \nu) + \mathrm{MMD}_k^2(\mu, \rho\nu)/\lambda` over signed densities :math:`\rho`, times
    :math:`1 + \lambda`. As :math:`\lambda` falls it tends to :math:`\chi^2(\mu \,|\, \nu)` for characteristic kernels, as it
    grows to :math:`\mathrm{MMD}_k^2(\mu, \nu)`. It keeps its published factor: the limit is not half of the squared distance.

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
        If the system was not solved to rounding; the message gives the residual.

    Notes
    -----
    One or two Cholesky factorisations of the order of the target's atoms; where their kernel matrix exceeds
    `ddeq.reductions.block_size`, conjugate gradients that store no matrix. Rounding is amplified by :math:`1/\lambda`: in
    single precision take at least 1e-3.

    In a flow the factorisation is computed once, unless target, kernel or regularization require grad.

    References
    ----------
    :cite:t:`chen2024deregularized`.

    Examples
    --------
    >>> from ddeq import DiscreteMeasure
    >>> from ddeq.kernels import Gaussian
    >>> mu, nu = (DiscreteMeasure(torch.tensor([[x]])) for x in (0.0, 3.0))
    >>> DrMMD(nu, Gaussian(1.0), regularization=1e4)(mu), 2 - 2 * torch.tensor(-4.5).exp()  # the squared MMD
    (tensor(1.9779), tensor(1.9778))
    """

    removable = True
    shardable = False

    factor = 2.0
    linear = True

    def density(self, u: Float[Tensor, "*batch m"]) -> Float[Tensor, "*batch m"]:
        return 1.0 + u

    def slope(self, u: Float[Tensor, "*batch m"]) -> Float[Tensor, "*batch m"]:
        return torch.ones_like(u)

    def penalty(self, u: Float[Tensor, "*batch m"]) -> Float[Tensor, "*batch m"]:
        return 0.5 * u.square()
