"""Radial kernels: Gaussian, Laplace, Matérn, inverse multiquadric and Riesz."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ddeq.held import store
from ddeq.kernels.base import RadialKernel, as_double, positive, shown
from ddeq.kernels.matern import log_matern_profile, matern_profile
from ddeq.kernels.symbols import Symbolic, logaddexp, power, shaped_like

__all__ = ["IMQ", "Bandwidth", "Gaussian", "Laplace", "Matern", "Riesz"]

Bandwidth = float | Real | Tensor | Sequence[float | Tensor]


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
        given: Any = bandwidth
        several = [given] if isinstance(given, Real | Tensor) else list(given)
        if not several:
            raise ValueError("bandwidth: expected at least one, got an empty sequence")
        self._count = len(several)
        for i, h in enumerate(several):
            store(self, f"bandwidth_{i}", positive("bandwidth", h if isinstance(h, Tensor) else float(h)))

    @property
    def bandwidths(self) -> list[float | Tensor]:
        """The bandwidths over which the kernel is summed."""
        return [getattr(self, f"bandwidth_{i}") for i in range(self._count)]

    def profile(self, s: Symbolic) -> Symbolic:
        return functools.reduce(lambda a, b: a + b, (self.unit_profile(_scale(s, h)) for h in self.bandwidths))

    def log_profile(self, s: Symbolic) -> Symbolic:
        return functools.reduce(logaddexp, (self.unit_log_profile(_scale(s, h)) for h in self.bandwidths))

    def log_integral(self, dim: int) -> float | Tensor:
        logs = [dim * (h.log() if isinstance(h, Tensor) else math.log(h)) for h in self.bandwidths]
        unit = self.unit_log_integral(dim)
        if len(logs) == 1:
            return logs[0] + unit
        return functools.reduce(torch.logaddexp, map(as_double, logs)) + unit

    def unit_profile(self, s: Symbolic) -> Symbolic:
        """The profile at bandwidth one."""
        raise NotImplementedError(f"{type(self).__name__} must define `unit_profile`")

    def unit_log_profile(self, s: Symbolic) -> Symbolic:
        """The logarithm of the profile at bandwidth one."""
        return self.unit_profile(s).log()

    def unit_log_integral(self, dim: int) -> float:
        """The logarithm of the integral at bandwidth one."""
        raise NotImplementedError(f"{type(self).__name__} must define `unit_log_integral`")

    def extra_repr(self) -> str:
        values = [shown(h) for h in self.bandwidths]
        return f"bandwidth={values[0] if len(values) == 1 else '[' + ', '.join(values) + ']'}"


class Gaussian(_Bandwidths):
    r"""Gaussian kernel :math:`k(x, y) = \exp(-|x - y|^2 / (2 h^2))`.

    Parameters
    ----------
    bandwidth
        :math:`h > 0`: a number, a tensor of shape ``()`` or ``(*batch,)`` (an ``nn.Parameter`` trains), or a sequence of
        these, over which the kernel is the sum.

    Raises
    ------
    ValueError
        If a bandwidth is not positive and finite.

    References
    ----------
    :cite:t:`rasmussen2006gaussian`, section 4.2.

    Examples
    --------
    >>> Gaussian(1.0)(torch.zeros(1, 1), torch.ones(1, 1))
    tensor([[0.6065]])
    >>> Gaussian([0.5, 2.0]) + 0.5 * Laplace(1.0)
    Gaussian(bandwidth=[0.5, 2]) + 0.5 * Laplace(bandwidth=1)
    """

    def unit_profile(self, s: Symbolic) -> Symbolic:
        return (-0.5 * s).exp()

    def profile_and_derivative(self, s: Tensor) -> tuple[Tensor, Tensor, float]:
        rates = [-0.5 / (h * h) for h in (shaped_like(s, h) for h in self.bandwidths)]
        values = [(s * rate).exp_() for rate in rates]
        if len(values) == 1 and isinstance(rates[0], float):
            return values[0], values[0], rates[0]
        slopes = (k * rate for k, rate in zip(values, rates, strict=True))
        return functools.reduce(torch.add, values), functools.reduce(torch.add, slopes), 1.0

    def unit_log_profile(self, s: Symbolic) -> Symbolic:
        return -0.5 * s

    def unit_log_integral(self, dim: int) -> float:
        return 0.5 * dim * math.log(2 * math.pi)


class Laplace(_Bandwidths):
    r"""Laplace kernel :math:`k(x, y) = \exp(-|x - y| / h)`, with a kink at :math:`x = y`.

    Parameters
    ----------
    bandwidth
        :math:`h > 0`, as in `Gaussian`.

    Raises
    ------
    ValueError
        If a bandwidth is not positive and finite.

    References
    ----------
    :cite:t:`rasmussen2006gaussian`, section 4.2.
    """

    smooth_on_the_diagonal = False

    def profile_and_derivative(self, s: Tensor) -> tuple[Tensor, Tensor, float]:
        root = s.sqrt()
        inverse = root / s.clamp_min(torch.finfo(s.dtype).tiny)  # zero where the distance is
        rates = [-1.0 / h for h in (shaped_like(s, h) for h in self.bandwidths)]
        values = [(root * rate).exp() for rate in rates]
        slopes = functools.reduce(torch.add, (k * rate for k, rate in zip(values, rates, strict=True)))
        return functools.reduce(torch.add, values), slopes * inverse, 0.5

    def unit_profile(self, s: Symbolic) -> Symbolic:
        return (-power(s, 0.5)).exp()

    def unit_log_profile(self, s: Symbolic) -> Symbolic:
        return -power(s, 0.5)

    def unit_log_integral(self, dim: int) -> float:
        return _log_sphere(dim) + math.lgamma(dim)


class Matern(_Bandwidths):
    r"""Matérn kernel of half-integer smoothness :math:`\nu`, with :math:`t = \sqrt{2\nu}\,|x - y| / h`.

    .. math:: k_{1/2} = e^{-t}, \qquad k_{3/2} = (1 + t)\,e^{-t}, \qquad k_{5/2} = (1 + t + t^2/3)\,e^{-t} .

    ``Matern(0.5, h)`` is the Laplace kernel. For :math:`\nu \ge 3/2` the kernel is twice differentiable at :math:`x = y`
    (kernels, T18).

    Parameters
    ----------
    nu
        1/2, 3/2 or 5/2.
    bandwidth
        :math:`h > 0`, as in `Gaussian`.

    Raises
    ------
    ValueError
        If ``nu`` is none of the three, or a bandwidth is not positive and finite.

    References
    ----------
    :cite:t:`rasmussen2006gaussian`, section 4.2.
    """

    def __init__(self, nu: float, bandwidth: Bandwidth) -> None:
        super().__init__(bandwidth)
        if nu not in (0.5, 1.5, 2.5):
            raise ValueError(f"nu: expected 0.5, 1.5 or 2.5, got {nu}")
        self.nu = float(nu)
        self.smooth_on_the_diagonal = nu > 1
        self.runs_on_keops = nu < 1  # its derivative of the root is set to zero at zero, where this kernel has another

    def unit_profile(self, s: Symbolic) -> Symbolic:
        return matern_profile(2 * self.nu * s, int(self.nu))

    def unit_log_profile(self, s: Symbolic) -> Symbolic:
        return log_matern_profile(2 * self.nu * s, int(self.nu))

    def unit_log_integral(self, dim: int) -> float:
        # int_0^oo t^(d-1+k) e^-t dt = Gamma(d + k), for the coefficients of 1, t and t^2.
        terms = [1.0, 1.0, 1 / 3][: int(self.nu) + 1]
        radial = math.log(sum(c * math.exp(math.lgamma(dim + k) - math.lgamma(dim)) for k, c in enumerate(terms)))
        return _log_sphere(dim) + math.lgamma(dim) + radial - 0.5 * dim * math.log(2 * self.nu)

    def extra_repr(self) -> str:
        return f"nu={self.nu:g}, {super().extra_repr()}"


class IMQ(_Bandwidths):
    r"""Inverse multiquadric :math:`k(x, y) = (1 + |x - y|^2 / h^2)^{-\beta}` with ``exponent`` :math:`\beta > 0`.

    Parameters
    ----------
    bandwidth
        :math:`h > 0`, as in `Gaussian`.
    exponent
        :math:`\beta > 0`. The kernel is a density in dimension :math:`d` if :math:`2\beta > d`.

    Raises
    ------
    ValueError
        If ``bandwidth`` or ``exponent`` is not positive and finite.

    References
    ----------
    :cite:t:`micchelli1986interpolation`.
    """

    def __init__(self, bandwidth: Bandwidth, exponent: float = 0.5) -> None:
        super().__init__(bandwidth)
        self.exponent = float(positive("exponent", exponent))

    def profile_and_derivative(self, s: Tensor) -> tuple[Tensor, Tensor, float]:
        rates = [1.0 / (h * h) for h in (shaped_like(s, h) for h in self.bandwidths)]
        bases = [s * rate + 1.0 for rate in rates]
        values = [base.rsqrt() if self.exponent == 0.5 else base.pow(-self.exponent) for base in bases]
        slopes = (k / base * rate for k, base, rate in zip(values, bases, rates, strict=True))
        return functools.reduce(torch.add, values), functools.reduce(torch.add, slopes), -self.exponent

    def unit_profile(self, s: Symbolic) -> Symbolic:
        return self.unit_log_profile(s).exp()

    def unit_log_profile(self, s: Symbolic) -> Symbolic:
        return -self.exponent * (1.0 + s).log()

    def unit_log_integral(self, dim: int) -> float:
        if 2 * self.exponent <= dim:
            raise ValueError(
                f"kernel: {self!r} is not a density in dimension {dim}: its integral is infinite; expected exponent > {dim / 2:g}"
            )
        return 0.5 * dim * math.log(math.pi) + math.lgamma(self.exponent - dim / 2) - math.lgamma(self.exponent)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, exponent={self.exponent:g}"


class Riesz(RadialKernel):
    r"""Riesz kernel :math:`k(x, y) = -|x - y|^r`, :math:`0 < r < 2`: conditionally positive definite.

    ``Riesz(1.0)`` is the energy distance's kernel: characteristic, without a length scale, with a kink at :math:`x = y`
    (gradient 0 there, by convention). MMDs between measures of different mass are not meaningful with it.

    Parameters
    ----------
    r
        The exponent.

    Raises
    ------
    ValueError
        If ``r`` is not strictly between 0 and 2.

    References
    ----------
    :cite:t:`szekely2013energy`; :cite:t:`altekruger2023neural`.
    """

    smooth_on_the_diagonal = False
    positive_definite = False

    def __init__(self, r: float = 1.0) -> None:
        super().__init__()
        if not 0.0 < r < 2.0:
            raise ValueError(f"r: expected a number strictly between 0 and 2, got {r}")
        self.r = float(r)

    def profile(self, s: Symbolic) -> Symbolic:
        return -power(s, 0.5 * self.r)

    def profile_and_derivative(self, s: Tensor) -> tuple[Tensor, Tensor, float]:
        k = _half_power(s, self.r)
        slopes = k / s.clamp_min(torch.finfo(s.dtype).tiny)  # zero where the distance is
        return k.neg_(), slopes, -0.5 * self.r

    def extra_repr(self) -> str:
        return f"r={self.r}"


def _half_power(s: Tensor, r: float) -> Tensor:
    """``s ** (r / 2)``, by roots where that is possible: they are rounded alike everywhere, so that atoms at one place stay
    together, which PyTorch's vectorised powers are not."""
    if r not in (0.5, 1.0, 1.5):
        return s.pow(0.5 * r)
    root = s.sqrt()
    return root if r == 1.0 else root.sqrt() if r == 0.5 else root * root.sqrt()


def _scale(s: Symbolic, bandwidth: float | Tensor) -> Symbolic:
    h = shaped_like(s, bandwidth)
    return s / (h * h)


def _log_sphere(dim: int) -> float:
    """Logarithm of the area of the unit sphere of R^d."""
    return math.log(2.0) + 0.5 * dim * math.log(math.pi) - math.lgamma(dim / 2)
