"""Kernels on R^d, each one formula that runs on tensors and on KeOps' symbolic tensors alike.

Radial kernels are profiles of the squared distance. A function of ``|x - y|`` has gradient 0 at ``x = y``, by code, at
every order that exists: the distance is taken by `_power`, whose derivative at zero is set to zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ddeq.held import store
from ddeq.measures import DiscreteMeasure, values_are_known

__all__ = [
    "IMQ",
    "Gaussian",
    "Kernel",
    "Laplace",
    "RadialKernel",
    "Riesz",
    "ScaledKernel",
    "SumKernel",
    "median_bandwidth",
]

Bandwidth = float | Tensor | Sequence[float | Tensor]
Symbolic = Any
"""A tensor or a KeOps ``LazyTensor``: both have the arithmetic, ``exp`` and ``sum`` that a formula needs."""


class Kernel(nn.Module):
    r"""A positive definite, or conditionally positive definite, kernel :math:`k(x, y)`.

    A new kernel writes `pair`. Kernels add and scale: ``Gaussian(1.0) + 0.5 * Laplace(0.1)``.
    """

    smooth_on_the_diagonal: bool = True

    def pair(self, x: Symbolic, y: Symbolic) -> Symbolic:
        """``k(x, y)`` along the last dimension: ``(*batch, n, 1, d)`` and ``(*batch, 1, m, d)`` to ``(*batch, n, m)``."""
        raise NotImplementedError(f"{type(self).__name__} must define `pair`")

    def forward(self, x: Float[Tensor, "*batch n d"], y: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch n m"]:
        """Kernel matrix ``k(x_i, y_j)``. For sums against measures use `ddeq.reductions`, which never stores it."""
        matrix: Tensor = self.pair(x.unsqueeze(-2), y.unsqueeze(-3))
        return matrix

    def __add__(self, other: Kernel) -> SumKernel:
        return SumKernel(self, other) if isinstance(other, Kernel) else NotImplemented

    def __mul__(self, factor: float | Tensor) -> ScaledKernel:
        return ScaledKernel(self, factor) if isinstance(factor, int | float | Tensor) else NotImplemented

    __rmul__ = __mul__


class RadialKernel(Kernel):
    """A kernel that depends on the squared distance only. A new one writes `profile`."""

    def profile(self, s: Symbolic) -> Symbolic:
        r"""The kernel as a function of the squared distance :math:`s = |x - y|^2`."""
        raise NotImplementedError(f"{type(self).__name__} must define `profile`")

    def pair(self, x: Symbolic, y: Symbolic) -> Symbolic:
        return self.profile(((x - y) ** 2).sum(-1))


class _Bandwidths(RadialKernel):
    """A radial kernel of the distance in units of a bandwidth, summed over several bandwidths where they are given.

    Parameters
    ----------
    bandwidth
        A positive number; a tensor, of shape ``()`` or with one number for each measure of the batch (an
        ``nn.Parameter`` trains); or a sequence of these, over which the kernel is the sum.

    Raises
    ------
    ValueError
        If a bandwidth is not positive and finite.
    """

    def __init__(self, bandwidth: Bandwidth) -> None:
        super().__init__()
        several = [bandwidth] if isinstance(bandwidth, int | float | Tensor) else list(bandwidth)
        if not several:
            raise ValueError("bandwidth: expected at least one, got an empty sequence")
        self._count = len(several)
        for i, h in enumerate(several):
            store(self, f"bandwidth_{i}", _positive("bandwidth", h))

    @property
    def bandwidths(self) -> list[float | Tensor]:
        """The bandwidths over which the kernel is summed."""
        return [getattr(self, f"bandwidth_{i}") for i in range(self._count)]

    def profile(self, s: Symbolic) -> Symbolic:
        return sum(self.unit_profile(_scale(s, h)) for h in self.bandwidths)

    def unit_profile(self, s: Symbolic) -> Symbolic:
        """The profile at bandwidth one."""
        raise NotImplementedError(f"{type(self).__name__} must define `unit_profile`")

    def extra_repr(self) -> str:
        shown = [h if isinstance(h, float) else f"tensor{tuple(h.shape)}" for h in self.bandwidths]
        return f"bandwidth={shown[0] if len(shown) == 1 else shown}"


class Gaussian(_Bandwidths):
    r"""Gaussian kernel :math:`k(x, y) = \exp(-|x - y|^2 / (2 h^2))`; see `_Bandwidths` for ``bandwidth`` :math:`h`."""

    def unit_profile(self, s: Symbolic) -> Symbolic:
        return (-0.5 * s).exp()


class Laplace(_Bandwidths):
    r"""Laplace kernel :math:`k(x, y) = \exp(-|x - y| / h)`, with a kink at :math:`x = y`."""

    smooth_on_the_diagonal = False

    def unit_profile(self, s: Symbolic) -> Symbolic:
        return (-_power(s, 0.5)).exp()


class IMQ(_Bandwidths):
    r"""Inverse multiquadric :math:`k(x, y) = (1 + |x - y|^2 / h^2)^{-\beta}` with ``exponent`` :math:`\beta > 0`.

    Raises
    ------
    ValueError
        If ``bandwidth`` or ``exponent`` is not positive and finite.
    """

    def __init__(self, bandwidth: Bandwidth, exponent: float = 0.5) -> None:
        super().__init__(bandwidth)
        self.exponent = float(_positive("exponent", exponent))

    def unit_profile(self, s: Symbolic) -> Symbolic:
        return (-self.exponent * (1.0 + s).log()).exp()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, exponent={self.exponent}"


class Riesz(RadialKernel):
    r"""Riesz kernel :math:`k(x, y) = -|x - y|^r`, :math:`0 < r < 2`: conditionally positive definite.

    ``Riesz(1.0)`` is the energy distance's kernel: characteristic, without a length scale, with a kink at :math:`x = y`
    (gradient 0 there, by convention). MMDs between measures of different mass are not meaningful with it.

    Raises
    ------
    ValueError
        If ``r`` is not strictly between 0 and 2.

    References
    ----------
    Székely and Rizzo (2013), Energy statistics. Altekrüger, Hertrich and Steidl (2023), Neural Wasserstein gradient
    flows for maximum mean discrepancies with Riesz kernels.
    """

    smooth_on_the_diagonal = False

    def __init__(self, r: float = 1.0) -> None:
        super().__init__()
        if not 0.0 < r < 2.0:
            raise ValueError(f"r: expected a number strictly between 0 and 2, got {r}")
        self.r = float(r)

    def profile(self, s: Symbolic) -> Symbolic:
        return -_power(s, 0.5 * self.r)

    def extra_repr(self) -> str:
        return f"r={self.r}"


class SumKernel(Kernel):
    """Sum of two kernels, as ``k + l`` makes it."""

    def __init__(self, first: Kernel, second: Kernel) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.smooth_on_the_diagonal = first.smooth_on_the_diagonal and second.smooth_on_the_diagonal

    def pair(self, x: Symbolic, y: Symbolic) -> Symbolic:
        return self.first.pair(x, y) + self.second.pair(x, y)


class ScaledKernel(Kernel):
    """Positive multiple of a kernel, as ``2.0 * k`` makes it; the factor may be a tensor or an ``nn.Parameter``."""

    def __init__(self, kernel: Kernel, factor: float | Tensor) -> None:
        super().__init__()
        self.factor: float | Tensor
        self.kernel = kernel
        self.smooth_on_the_diagonal = kernel.smooth_on_the_diagonal
        store(self, "factor", _positive("factor", factor))

    def pair(self, x: Symbolic, y: Symbolic) -> Symbolic:
        k = self.kernel.pair(x, y)
        return k * _like(k, self.factor)


def median_bandwidth(mu: DiscreteMeasure, nu: DiscreteMeasure | None = None) -> Float[Tensor, "*batch"]:
    r"""Median heuristic: the median of :math:`|x - y|` for :math:`x \sim \mu` and :math:`y \sim \nu` (default :math:`\mu`).

    A weighted median over pairs with :math:`x \ne y`, so that it depends on the measures alone. Not differentiated.

    Raises
    ------
    ValueError
        If all atoms of positive mass coincide.
    """
    nu = mu if nu is None else nu
    distance = torch.cdist(mu.points.detach(), nu.points.detach(), compute_mode="donot_use_mm_for_euclid_dist").flatten(-2)
    weight = (mu.weights.detach().unsqueeze(-1) * nu.weights.detach().unsqueeze(-2)).flatten(-2) * (distance > 0)
    distance, order = distance.sort(-1)
    cumulative = weight.gather(-1, order).cumsum(-1)
    if not bool((cumulative[..., -1] > 0).all()):
        raise ValueError("mu, nu: expected at least two different atoms of positive mass in each pair of measures")
    middle = torch.searchsorted(cumulative, 0.5 * cumulative[..., -1:].contiguous())
    return distance.gather(-1, middle.clamp_max(distance.shape[-1] - 1)).squeeze(-1)


def _power(s: Symbolic, p: float) -> Symbolic:
    """``s ** p`` for ``s >= 0`` whose derivatives at ``s = 0`` are all zero instead of infinite or NaN."""
    if isinstance(s, Tensor):
        positive = s > 0
        powers = torch.where(positive, s, 1.0)
        return torch.where(positive, powers.sqrt() if p == 0.5 else powers**p, 0.0)
    if p == 0.5:
        return s.sqrt()  # KeOps differentiates it by Rsqrt, and Rsqrt(0) = 0
    zero = -s  # ifelse tests for >= 0, and s is never negative
    return zero.ifelse(0.0, (p * zero.ifelse(1.0, s).log()).exp())  # KeOps' own powers are in single precision


def _scale(s: Symbolic, bandwidth: float | Tensor) -> Symbolic:
    h = _like(s, bandwidth)
    return s / (h * h)


def _like(s: Symbolic, value: float | Tensor) -> Symbolic:
    """A number per measure of the batch in a shape that multiplies the pairs of its atoms."""
    if not isinstance(value, Tensor):
        return value
    if isinstance(s, Tensor):
        return value.to(s)[..., None, None]
    from pykeops.torch import LazyTensor

    return LazyTensor(value[..., None, None, None].to(getattr(torch, s._dtype)))


def _positive(name: str, value: float | Tensor) -> float | Tensor:
    if isinstance(value, Tensor):
        if values_are_known(value) and not bool(((value > 0) & torch.isfinite(value)).all()):
            raise ValueError(f"{name}: expected positive finite values, got {value.detach().min().item()}")
        return value
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name}: expected a positive finite number, got {value}")
    return float(value)
