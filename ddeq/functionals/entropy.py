"""Entropies and other internal energies by the blob method: densities are those of the measure smoothed by a kernel."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.functionals.base import Functional, Scaled, Smoothness, Sum
from ddeq.functionals.potential import PotentialEnergy
from ddeq.functionals.variations import places
from ddeq.kernels import Gaussian, Kernel
from ddeq.kernels.radial import Bandwidth
from ddeq.measures import DiscreteMeasure
from ddeq.reductions import integrate, log_integrate_kernel

__all__ = ["Entropy", "InternalEnergy", "KLDivergence"]

Shape = Callable[[Bandwidth], Kernel]


class _Blob(Functional):
    """A functional of the density of a measure smoothed by a kernel that is a density itself."""

    def __init__(self, bandwidth: Bandwidth, kernel: Shape) -> None:
        super().__init__()
        made = kernel(bandwidth) if callable(kernel) and not isinstance(kernel, Kernel) else None
        if not isinstance(made, Kernel):
            raise ValueError(f"kernel: expected a function from a bandwidth to a kernel, such as Gaussian, got {kernel!r}")
        self.kernel = made
        self.smoothness = Smoothness.SMOOTH if made.smooth_on_the_diagonal else Smoothness.OFF_DIAGONAL

    def log_density(self, mu: DiscreteMeasure, x: Float[Tensor, "*points m d"] | None = None) -> Float[Tensor, "*batch m"]:
        r"""Logarithm of the smoothed density :math:`\log (k_h * \mu)(x)`, finite however far ``x`` is from the atoms.

        Parameters
        ----------
        mu
            The measures.
        x
            Points ``(*batch, m, d)``; default: the atoms of ``mu``.

        Raises
        ------
        ValueError
            If the kernel is not a density in the dimension of ``mu``.
        """
        x = places(mu, x)
        constant = self.kernel.log_integral(mu.dim)
        if isinstance(constant, Tensor):
            constant = constant.to(mu.points)[..., None]
        return log_integrate_kernel(self.kernel, x, mu) - constant


class InternalEnergy(_Blob):
    r"""Internal energy of a measure, of its density smoothed by a kernel :math:`k_h`.

    .. math:: F(\mu) = \int \frac{U(\rho)}{\rho} \,\mathrm d\mu \approx \int U(\rho(x)) \,\mathrm dx, \quad \rho = k_h * \mu,
              \qquad \frac{\delta F}{\delta \mu} = u(\rho) + k_h * \big(u'(\rho)\,\mu\big), \quad u(\rho) = U(\rho)/\rho .

    Parameters
    ----------
    density
        Energy density :math:`U`, elementwise on densities :math:`\rho > 0` of shape ``(*batch, n)``; with :math:`U(0) = 0`.
        ``lambda r: r * r.log()`` gives `Entropy`, ``lambda r: r**m / (m - 1)`` porous media.
    bandwidth
        :math:`h`, as in `ddeq.kernels.Gaussian`; an ``nn.Parameter`` trains.
    kernel
        Function from the bandwidth to the kernel, whose multiple is a density: ``Gaussian`` (default), ``Laplace``, ``IMQ``
        with a large exponent, Matérn ...

    Raises
    ------
    ValueError
        If ``density`` returns another shape, ``kernel`` is no such function, or its kernel is not a density.

    Notes
    -----
    The smoothed density is at least the smallest normal number: :math:`U(\rho)/\rho` is not 0/0 at a far atom of mass zero.

    References
    ----------
    :cite:t:`carrillo2019blob`.

    Examples
    --------
    >>> mu = DiscreteMeasure(torch.tensor([[0.0]]))
    >>> InternalEnergy(lambda r: r**2, bandwidth=1.0)(mu)  # the density of N(0, 1) at 0
    tensor(0.3989)
    """

    def __init__(
        self, density: Callable[[Tensor], Tensor], bandwidth: Bandwidth, *, kernel: Callable[[Bandwidth], Kernel] = Gaussian
    ) -> None:
        super().__init__(bandwidth, kernel)
        if not callable(density):
            raise ValueError(f"density: expected a function of densities, got {type(density).__name__}")
        self.density = density

    def forward(self, mu: DiscreteMeasure) -> Float[Tensor, "*batch"]:
        smallest = math.log(torch.finfo(mu.dtype).tiny)
        rho = self.log_density(mu).clamp_min(smallest).exp()
        energies = self.density(rho)
        if energies.shape != rho.shape:
            raise ValueError(
                f"density: expected densities {tuple(rho.shape)} to go to as many energies, got {tuple(energies.shape)}"
            )
        return integrate(energies / rho, mu)


class Entropy(_Blob):
    r"""Negative entropy of a measure, of its density smoothed by a kernel :math:`k_h`.

    .. math:: F(\mu) = \int \log \rho \,\mathrm d\mu, \quad \rho = k_h * \mu, \qquad
              \frac{\delta F}{\delta \mu}(x) = \log \rho(x) + \int \frac{k_h(x - y)}{\rho(y)} \,\mathrm d\mu(y) .

    Parameters
    ----------
    bandwidth
        :math:`h`, as in `ddeq.kernels.Gaussian`; an ``nn.Parameter`` trains.
    kernel
        Function from the bandwidth to the kernel, whose multiple is a density: ``Gaussian`` by default.

    Raises
    ------
    ValueError
        If ``kernel`` is no such function, or its kernel is not a density.

    Notes
    -----
    The blob is biased: for a smooth density the value is :math:`\int\rho\log\rho - \frac{h^4}{8}\int(\Delta\rho)^2/\rho + O(h^6)`
    with the Gaussian kernel, and the best Gaussian for `KLDivergence` to :math:`N(0, I)` has variance :math:`1 - h^4 + O(h^6)`.
    Where :math:`h` is below the spacing of the atoms each sees only itself, and the entropy exerts no force (the catalogue, T3).

    References
    ----------
    :cite:t:`carrillo2019blob`.

    Examples
    --------
    >>> Entropy(bandwidth=1.0)(DiscreteMeasure(torch.tensor([[0.0]])))  # log of the density of N(0, 1) at 0
    tensor(-0.9189)
    """

    removable = True
    exact_variation = True

    def __init__(self, bandwidth: Bandwidth, *, kernel: Callable[[Bandwidth], Kernel] = Gaussian) -> None:
        super().__init__(bandwidth, kernel)

    def forward(self, mu: DiscreteMeasure) -> Float[Tensor, "*batch"]:
        return integrate(self.log_density(mu), mu)

    def evaluate_all(self, measures: Sequence[DiscreteMeasure]) -> list[Tensor]:
        return self._stacked(measures)

    def first_variation(self, mu: DiscreteMeasure, x: Float[Tensor, "*points m d"] | None = None) -> Float[Tensor, "*batch m"]:
        x = places(mu, x)
        at_atoms = log_integrate_kernel(self.kernel, mu.points, mu)  # without its constant, which the kernel below lacks too
        log_density = self.log_density(mu, x)
        return log_density + log_integrate_kernel(self.kernel, x, mu, -at_atoms).exp()


class KLDivergence(Sum):
    r"""Kullback-Leibler divergence from a density :math:`\pi`, up to the constant :math:`\log\int\pi` if it is not normalised.

    .. math:: F(\mu) = \int \log (k_h * \mu) \,\mathrm d\mu - \int \log \pi \,\mathrm d\mu ,

    `Entropy` plus `PotentialEnergy` of :math:`-\log\pi`, for probability measures.

    Parameters
    ----------
    log_density
        :math:`\log\pi`: points ``(*batch, n, d)`` to ``(*batch, n)``; an ``nn.Module`` trains.
    bandwidth
        :math:`h` of the blob, as in `Entropy`, with the same bias.
    kernel
        As in `Entropy`.

    Raises
    ------
    ValueError
        If ``log_density`` returns another shape, or the kernel is not a density.

    References
    ----------
    :cite:t:`carrillo2019blob`.
    """

    def __init__(
        self, log_density: Callable[[Tensor], Tensor], bandwidth: Bandwidth, *, kernel: Callable[[Bandwidth], Kernel] = Gaussian
    ) -> None:
        super().__init__(Entropy(bandwidth, kernel=kernel), -PotentialEnergy(log_density))
        self.exact_variation = False  # of probability measures: at other masses it is not even positive

    def __repr__(self) -> str:
        return f"KLDivergence(kernel={self.first.kernel!r})"


def entropy_share(functional: Functional) -> float | Tensor:
    r"""The ``c`` of a functional :math:`F = G + c \int\log\rho\,\mathrm d\mu`, by how it was put together."""
    if isinstance(functional, Entropy):
        return 1.0
    if isinstance(functional, Scaled):
        share = entropy_share(functional.functional)
        return share if not isinstance(share, Tensor) and share == 0.0 else functional.factor * share
    if isinstance(functional, Sum):
        return entropy_share(functional.first) + entropy_share(functional.second)
    return 0.0


def gradient_without_entropy(functional: Functional, mu: DiscreteMeasure) -> Tensor | None:
    """The Wasserstein gradient of the ``G`` of `entropy_share` at the atoms; None if there is no such part."""
    if isinstance(functional, Entropy):
        return None
    if isinstance(functional, Scaled):
        rest = gradient_without_entropy(functional.functional, mu)
        factor = functional.factor
        return None if rest is None else (factor[..., None, None] if isinstance(factor, Tensor) else factor) * rest
    if isinstance(functional, Sum):
        parts = [gradient_without_entropy(part, mu) for part in (functional.first, functional.second)]
        known = [part for part in parts if part is not None]
        return sum(known[1:], start=known[0]) if known else None
    gradient: Tensor = functional.wasserstein_gradient(mu)
    return gradient
