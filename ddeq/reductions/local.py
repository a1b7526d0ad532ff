"""Local features of a measure around a point: averages against the measure times a Gaussian kernel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.autodiff import under_transforms, without_autocast
from ddeq.kernels import Gaussian
from ddeq.measures import DiscreteMeasure
from ddeq.reductions.integrals import against, integrate_kernel
from ddeq.reductions.placement import by_rows

__all__ = ["local_moments", "local_operators"]


def local_moments(
    x: Float[Tensor, "*batch n d"], mu: DiscreteMeasure, bandwidths: Sequence[float]
) -> Float[Tensor, "*batch n features"]:
    r"""Logarithm of the density, mean shift and covariance of a measure around each point, at each bandwidth.

    With the kernel :math:`k_h(x) = e^{-|x|^2 / 2 h^2}` and the localised probability
    :math:`\mu_{x,h} \propto k_h(x - \cdot)\, \mu`, the features are

    .. math:: \log \frac{(k_h * \mu)(x)}{\mu(\mathbb R^d)} , \qquad \frac{\mathbb E_{\mu_{x,h}}[y] - x}{h} , \qquad
              \frac{\operatorname{Cov}_{\mu_{x,h}}[y]}{h^2} ,

    :math:`1 + d + d (d + 1) / 2` numbers for each bandwidth. They are the jet of the smoothed log-density,
    :math:`h \nabla \log (k_h * \mu)` and :math:`I + h^2 \nabla^2 \log (k_h * \mu)` (local geometry, T19). They are functions of
    the measure, unlike features of the :math:`k` nearest neighbours, and invariant under translations.

    Parameters
    ----------
    x
        Points ``(*batch, n, d)``.
    mu
        Measure of positive mass.
    bandwidths
        The bandwidths :math:`h`.

    Raises
    ------
    ValueError
        If there is no bandwidth, one is not positive, or ``x`` and ``mu`` do not fit.

    Notes
    -----
    At more than nine bandwidths from every atom the kernel underflows in single precision: shift and covariance are zero there.

    References
    ----------
    :cite:t:`comaniciu2002mean`, the mean shift; :cite:t:`chazal2011geometric`.
    """
    _check("bandwidths", bandwidths)
    return by_rows(lambda x, mu: _moments(x, mu, bandwidths), x, mu)


def _moments(x: Tensor, mu: DiscreteMeasure, bandwidths: Sequence[float]) -> Tensor:
    mu = against(x, mu).normalized()
    centre = mu.mean().unsqueeze(-2)  # second moments about a far origin would cancel
    x, y = x - centre, mu.points - centre
    nu = mu.with_points(y)
    first, second = torch.triu_indices(mu.dim, mu.dim, device=x.device)
    values = torch.cat([torch.ones_like(y[..., :1]), y, y[..., first] * y[..., second]], -1)
    features = []
    for h in bandwidths:
        with without_autocast(x.device):  # the covariance is a difference of squares
            total = integrate_kernel(Gaussian(h), x, nu, values)
        mass, mean, square = total.split([1, mu.dim, len(first)], -1)
        smallest = _smallest(mass.dtype)
        empty = mass <= smallest
        divisor = torch.where(empty, 1.0, mass)
        mean, square = torch.where(empty, x, mean / divisor), square / divisor
        covariance = torch.where(empty, 0.0, square - mean[..., first] * mean[..., second])
        features += [mass.clamp_min(smallest).log(), (mean - x) / h, covariance / h**2]
    return torch.cat(features, -1)


def local_operators(
    x: Float[Tensor, "*batch n d"], mu: DiscreteMeasure, bandwidth: float, *, order: int = 2
) -> Float[Tensor, "*batch n terms m"]:
    r"""Matrices that average features of the atoms around each point, plain and times monomials of the displacement.

    .. math:: (P_\alpha)_{ij} = \frac{w_j\, k_h(x_i - y_j)}{\sum_l w_l\, k_h(x_i - y_l)} \Big(\frac{y_j - x_i}{h}\Big)^\alpha ,
              \qquad |\alpha| \le \text{order} .

    Applied to features :math:`f` they give, up to linear combinations, the derivatives up to that order of the smoothed field
    :math:`k_h * (f \mu)` over the smoothed density (local geometry, T19). They are stored, so that several layers can use them:
    ``terms`` times ``n * m`` numbers for each sample, in the precision of autocast if that is on.

    Parameters
    ----------
    x
        Points ``(*batch, n, d)``.
    mu
        Measure of positive mass with ``m`` atoms.
    bandwidth
        The bandwidth :math:`h` of the Gaussian kernel.
    order
        Highest degree: 0, 1 or 2, which make :math:`1`, :math:`1 + d` and :math:`1 + d + d (d + 1) / 2` terms.

    Raises
    ------
    ValueError
        If ``bandwidth`` is not positive, ``order`` is none of these, or ``x`` and ``mu`` do not fit.

    References
    ----------
    :cite:t:`lindeberg2022scale`.
    """
    _check("bandwidth", [bandwidth])
    count_terms(mu.dim, order)
    return by_rows(lambda x, mu: _operators(x, mu, bandwidth, order), x, against(x, mu))


def _operators(x: Tensor, mu: DiscreteMeasure, bandwidth: float, order: int) -> Tensor:
    terms, mu = count_terms(mu.dim, order), against(x, mu)
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    with without_autocast(x.device):
        matrices = _monomials(x, mu, bandwidth, order)
        recorded = torch.is_grad_enabled() and any(t.requires_grad for t in (x, mu.points, mu.weights))
        if recorded or under_transforms():
            return torch.stack([m.to(dtype) for m in matrices], -2)
        stored = x.new_empty(*x.shape[:-1], terms, mu.n, dtype=dtype)
        for place, matrix in zip(stored.unbind(-2), matrices, strict=True):
            place.copy_(matrix)
    return stored


def count_terms(dim: int, order: int) -> int:
    """Number of monomials in ``dim`` variables up to degree ``order``."""
    counts = {0: 1, 1: 1 + dim, 2: 1 + dim + dim * (dim + 1) // 2}
    if order not in counts:
        raise ValueError(f"order: expected 0, 1 or 2, got {order}")
    return counts[order]


def _monomials(x: Tensor, mu: DiscreteMeasure, bandwidth: float, order: int) -> Iterator[Tensor]:
    """The matrices ``(*batch, n, m)`` one by one, the plain averages first."""
    displacements = [
        (b.unsqueeze(-2) - a.unsqueeze(-1)) / bandwidth for a, b in zip(x.unbind(-1), mu.points.unbind(-1), strict=True)
    ]
    squares = displacements[0].square()
    for t in displacements[1:]:
        squares = torch.addcmul(squares, t, t)
    kernel = (-0.5 * squares).exp() * mu.weights.unsqueeze(-2)
    total = kernel.sum(-1, keepdim=True)
    empty = total <= _smallest(x.dtype) * mu.mass()[..., None, None]
    average = kernel / torch.where(empty, 1.0, total)
    yield average
    if order >= 1:
        firsts = [average * t for t in displacements]
        yield from firsts
    if order >= 2:
        for i, first in enumerate(firsts):
            for t in displacements[i:]:
                yield first * t


def _smallest(dtype: torch.dtype) -> float:
    """Share of the mass below which averages are set to zero: derivatives divide by its square, which must not underflow."""
    return float(torch.finfo(dtype).tiny ** 0.5)


def _check(name: str, bandwidths: Sequence[float]) -> None:
    if not bandwidths or not all(h > 0 for h in bandwidths):
        raise ValueError(f"{name}: expected positive numbers, got {list(bandwidths)}")
