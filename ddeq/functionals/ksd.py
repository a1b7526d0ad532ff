"""Kernel Stein discrepancies: distances from a density that is known by its score only."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.functionals.base import Functional, Smoothness, places
from ddeq.functionals.stein import SteinKernel
from ddeq.kernels import Kernel
from ddeq.measures import DiscreteMeasure
from ddeq.reductions import integrate, integrate_kernel

__all__ = ["KSD"]


class KSD(Functional):
    r"""Half the squared kernel Stein discrepancy from a density :math:`\pi` with the score :math:`\nabla\log\pi`.

    .. math:: F(\mu) = \tfrac12 \mathrm{KSD}^2(\mu, \pi) = \tfrac12 \iint k_\pi \,\mathrm d\mu\,\mathrm d\mu, \qquad
              \frac{\delta F}{\delta\mu} = \int k_\pi(\cdot, y) \,\mathrm d\mu(y),

    with the Stein kernel :math:`k_\pi` of `SteinKernel`, which integrates to zero against :math:`\pi`. The normalising constant
    of :math:`\pi` is not needed, nor are samples.

    Parameters
    ----------
    score
        Function :math:`\nabla\log\pi`, points ``(*batch, n, d)`` to scores ``(*batch, n, d)``; an ``nn.Module`` trains.
    kernel
        Radial kernel, twice differentiable at :math:`x = y`: ``Gaussian``, ``IMQ``, ``Matern`` from 3/2 on, their sums and
        multiples, with bandwidths that may train.

    Raises
    ------
    ValueError
        If ``kernel`` depends on more than the distance, or has a kink at :math:`x = y`, such as ``Laplace`` and ``Riesz``; or if
        ``score`` returns another shape, in which case the message shows both.

    Notes
    -----
    A V-statistic, the diagonal included (measure consistency, T1). It is as smooth as the score; with ``Matern(1.5, h)`` the
    Stein kernel has a kink at :math:`x = y`. Gradient descent on it may stop at points far from :math:`\pi` where mass would
    have to cross a region of small density: the score does not see how mass is shared between modes that are well apart.

    References
    ----------
    :cite:t:`liu2016kernelized`; :cite:t:`gorham2017measuring`, the IMQ kernel; :cite:t:`korba2021kernel`, the flow.

    Examples
    --------
    >>> from ddeq.kernels import Gaussian
    >>> F = KSD(lambda x: -x, Gaussian(1.0))  # from the standard normal distribution
    >>> F(DiscreteMeasure(torch.tensor([[0.0], [2.0]])))
    tensor(0.5132)
    """

    smoothness = Smoothness.AS_POTENTIAL
    exact_variation = True

    def __init__(self, score: Callable[[Tensor], Tensor], kernel: Kernel) -> None:
        super().__init__()
        if not callable(score):
            raise ValueError(f"score: expected a function of points, got {type(score).__name__}")
        SteinKernel(kernel, 1)  # raises what is wrong with it
        self.score, self.kernel = score, kernel

    def forward(self, mu: DiscreteMeasure) -> Float[Tensor, "*batch"]:
        return 0.5 * integrate(self.first_variation(mu), mu)

    def first_variation(self, mu: DiscreteMeasure, x: Float[Tensor, "*points m d"] | None = None) -> Float[Tensor, "*batch m"]:
        scored = mu.with_marks(None).push_forward(self._scored)
        points = scored.points if x is None else self._scored(places(mu, x))
        return integrate_kernel(SteinKernel(self.kernel, mu.dim), points, scored)

    def _scored(self, x: Tensor) -> Tensor:
        """Points with their scores."""
        score = self.score(x)
        if not isinstance(score, Tensor) or score.shape != x.shape:
            seen = tuple(score.shape) if isinstance(score, Tensor) else type(score).__name__
            raise ValueError(f"score: expected points {tuple(x.shape)} to go to scores {tuple(x.shape)}, got {seen}")
        return torch.cat([x, score], -1)
