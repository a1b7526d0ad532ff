"""Maximum mean discrepancies: distances between kernel mean embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.functionals.base import Smoothness
from ddeq.functionals.discrepancy import Discrepancy
from ddeq.functionals.variations import places
from ddeq.kernels import Kernel, Riesz
from ddeq.measures import DiscreteMeasure, unchecked
from ddeq.ranks import is_sharded
from ddeq.reductions import integrate, integrate_kernel, integrate_kernel_gradient
from ddeq.reductions.choice import MANY_COORDINATES
from ddeq.reductions.integrals import energy_of_difference, gradient_of_difference

__all__ = ["MMD"]

Integral = Callable[[Kernel, Tensor, DiscreteMeasure], Tensor]


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
        nu = self._target_for(mu)
        energy = energy_of_difference(self.kernel, mu, nu) if mu.dim == 1 else None
        if energy is not None:
            return energy
        own = self.target
        of_target = integrate(integrate_kernel(self.kernel, own.points, own), own)
        # Of mu and - 2 nu: what is left of the integrals against (mu - nu) twice.
        rest = self._sum(integrate_kernel, mu.points, mu, nu, 2.0)
        return 0.5 * (integrate(rest, mu) + of_target)

    def evaluate_all(self, measures: Sequence[DiscreteMeasure]) -> list[Tensor]:
        return self._stacked(measures)

    def first_variation(self, mu: DiscreteMeasure, x: Float[Tensor, "*points m d"] | None = None) -> Float[Tensor, "*batch m"]:
        return self._sum(integrate_kernel, places(mu, x), mu, self._target_for(mu))

    def wasserstein_gradient(
        self, mu: DiscreteMeasure, x: Float[Tensor, "*points m d"] | None = None
    ) -> Float[Tensor, "*batch m d"]:
        nu = self._target_for(mu)
        gradient = gradient_of_difference(self.kernel, mu, nu) if mu.dim == 1 and x is None else None
        return self._sum(integrate_kernel_gradient, places(mu, x), mu, nu) if gradient is None else gradient

    def _sum(self, integral: Integral, x: Tensor, mu: DiscreteMeasure, nu: DiscreteMeasure, factor: float = 1.0) -> Tensor:
        """The ``integral`` against ``mu - factor * nu`` at ``x``: in one sum where it is not differentiated.

        In many dimensions in two: matrix products save half of the pairs of one measure with itself.
        """
        parts = (mu.points, mu.weights, nu.points, nu.weights)
        if (
            x.shape[-1] >= MANY_COORDINATES
            or is_sharded(*parts)
            or (torch.is_grad_enabled() and any(t.requires_grad for t in (x, *parts)))
        ):
            return integral(self.kernel, x, mu) - factor * integral(self.kernel, x, nu)
        weights = torch.cat([mu.weights, nu.weights.neg() if factor == 1.0 else -factor * nu.weights], -1)
        return integral(self.kernel, x, unchecked(torch.cat([mu.points, nu.points], -2), weights))
