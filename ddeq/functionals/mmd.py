"""Maximum mean discrepancies: distances between kernel mean embeddings."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from ddeq.functionals.base import Smoothness
from ddeq.functionals.discrepancy import Discrepancy
from ddeq.functionals.variations import places
from ddeq.kernels import Kernel, Riesz
from ddeq.measures import DiscreteMeasure
from ddeq.reductions import integrate_kernel, integrate_kernel_gradient
from ddeq.reductions.integrals import energy_of_difference, gradient_of_difference

__all__ = ["MMD"]


class MMD(Discrepancy):
    r"""Half the squared maximum mean discrepancy from a target :math:`\nu`.

    .. math:: F(\mu) = \tfrac12 \mathrm{MMD}_k^2(\mu, \nu) = \tfrac12 \iint k \,\mathrm d(\mu - \nu)\,\mathrm d(\mu - \nu),
              \qquad \frac{\delta F}{\delta \mu} = \int k(\cdot, y) \,\mathrm d(\mu - \nu)(y) .

    The first variation is the witness function, the Wasserstein gradient its gradient.

    Parameters
    ----------
    target
        Measure :math:`\nu`: one for all, or one for each measure of the batch.
    kernel
        Kernel :math:`k`; default ``Riesz(1.0)``, which makes :math:`2F` the energy distance.

    Raises
    ------
    ValueError
        If measures and targets differ in dimension, dtype or device, or their batch shapes do not fit.

    Notes
    -----
    V-statistics, the diagonal included (measure consistency, T1). The factor one half makes :math:`F` the energy whose flow is
    :math:`\dot x = -\nabla f(x)` for the witness :math:`f`. Between Gaussians it is known in closed form (Gaussians, T13).

    References
    ----------
    :cite:t:`gretton2012kernel`; :cite:t:`arbel2019maximum`, the flow.

    Examples
    --------
    >>> import torch
    >>> mu, nu = (DiscreteMeasure(torch.tensor([[x]])) for x in (0.0, 3.0))
    >>> MMD(nu)(mu)  # half of the energy distance 2 |0 - 3|
    tensor(3.)
    """

    removable = True

    def __init__(self, target: DiscreteMeasure, kernel: Kernel | None = None) -> None:
        super().__init__(target)
        if not isinstance(kernel, Kernel | None):
            raise ValueError(f"kernel: expected a kernel such as Gaussian(1.0), got {kernel!r}")
        self.kernel = Riesz(1.0) if kernel is None else kernel
        # A conditionally positive definite kernel compares equal masses only: without bound below at others.
        self.exact_variation = self.kernel.positive_definite
        self.smoothness = Smoothness.SMOOTH if self.kernel.smooth_on_the_diagonal else Smoothness.OFF_DIAGONAL

    def forward(self, mu: DiscreteMeasure) -> Float[Tensor, "*batch"]:
        self._target_for(mu)  # checks that they fit
        return energy_of_difference(self.kernel, mu, self.target)

    def first_variation(self, mu: DiscreteMeasure, x: Float[Tensor, "*points m d"] | None = None) -> Float[Tensor, "*batch m"]:
        x = places(mu, x)
        nu = self._target_for(mu)
        return integrate_kernel(self.kernel, x, mu) - integrate_kernel(self.kernel, x, nu)

    def wasserstein_gradient(
        self, mu: DiscreteMeasure, x: Float[Tensor, "*points m d"] | None = None
    ) -> Float[Tensor, "*batch m d"]:
        nu = self._target_for(mu)
        if x is None:
            return gradient_of_difference(self.kernel, mu, nu)
        x = places(mu, x)
        return integrate_kernel_gradient(self.kernel, x, mu) - integrate_kernel_gradient(self.kernel, x, nu)
