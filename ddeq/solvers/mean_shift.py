r"""The velocity of the particle flow: a mean shift towards the image of a measure minus one within the measure."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ddeq.functionals.mmd import MMD
from ddeq.kernels import Gaussian
from ddeq.measures import DiscreteMeasure, middle, unchecked
from ddeq.reductions import integrate, kernel_average, nearest_squared_distance

__all__ = ["Pair", "mark_numbers", "marks_are_distinct", "root"]


class Pair:
    r"""A measure :math:`\mu` and another one :math:`\nu`, on marks times points, with the kernel that compares them.

    The kernel is :math:`K((u, x), (v, y)) = k_U(u, v)\, e^{-|x - y|^2 / 2 h^2}`. Coordinates are taken in units of `extent`, from
    the mean of :math:`\nu`; atoms of mass zero are put there, wherever they are.

    Parameters
    ----------
    mu, nu
        The measures, in one batch; their marks are not read.
    marks
        Marks of both, ``(*batch, n, q)`` and ``(*batch, m, q)``, or None. With ``mark_bandwidth`` 0 their `mark_numbers`.
    mark_bandwidth
        Bandwidth of :math:`k_U`: 0, the indicator of equal marks; infinite, the constant one; else a Gaussian kernel.
    """

    def __init__(
        self, mu: DiscreteMeasure, nu: DiscreteMeasure, marks: tuple[Tensor, Tensor] | None, mark_bandwidth: float = 0.0
    ) -> None:
        self.whole, self.centre = (mu, nu), middle(nu)
        shifted = [torch.where(m.support().unsqueeze(-1), m.points - self.centre, 0.0) for m in (mu, nu)]
        largest = torch.maximum(*(p.detach().abs().amax((-2, -1), keepdim=True) for p in shifted))
        self.extent = torch.where(largest > 0, largest, 1.0)
        """Largest distance of a coordinate from the mean, ``(*batch, 1, 1)``; no derivatives."""
        self.shifted = shifted
        self.points = [p / self.extent for p in shifted]
        self.marks = None if math.isinf(mark_bandwidth) else marks
        self.mark_bandwidth = mark_bandwidth

    def separation(self) -> Tensor:
        r"""Distance of the two measures, ``(*batch,)``, that asks for no coupling; at most :math:`W_2(\mu, \nu)`.

        Root of the mean squared distance from the atoms of either to the nearest ones of the other, among those of equal marks.
        With a Gaussian :math:`k_U` distances of marks count too, times the root-mean-square of the points over its bandwidth.
        """
        mu, nu = self.whole
        moments = [integrate(p.detach().square().sum(-1), m) for p, m in zip(self.points, self.whole, strict=True)]
        spread = (0.5 * (moments[0] + moments[1]) / mu.mass()).sqrt()[..., None, None]
        apart = 8.0 * math.sqrt(self.points[0].shape[-1])  # more than twice the largest distance
        first, second = self._located(self.points, apart, spread)
        there = integrate(nearest_squared_distance(first, unchecked(second, nu.weights)), mu)
        back = integrate(nearest_squared_distance(second, unchecked(first, mu.weights)), nu)
        return self.extent[..., 0, 0] * root(0.5 * (there + back) / mu.mass())

    def velocity(self, bandwidth: Tensor) -> Tensor:
        r"""Velocity of the atoms of :math:`\mu` towards :math:`\nu`, ``(*batch, n, d)``; arbitrary at atoms of mass zero.

        .. math:: v_i = M_\nu(x_i) - x_i - \min\Big(1, \frac{p_\mu(x_i)}{p_\nu(x_i)}\Big) \big(M_\mu(x_i) - x_i\big)

        with the density :math:`p_\mu(x_i) = \int K((u_i, x_i), \cdot) \,\mathrm d\mu` and the mean :math:`M_\mu(x_i)` of
        :math:`y` under the probability :math:`\propto K((u_i, x_i), (v, y))\, \mathrm d\mu(v, y)` (particle flow, T21).

        Parameters
        ----------
        bandwidth
            :math:`h`, ``(*batch,)``.
        """
        (near_mu, near_nu), kernel = self._scaled(bandwidth), Gaussian(1.0)
        (mu, nu), (x, y) = self.whole, self.shifted
        log_nu, to_nu = kernel_average(kernel, near_mu, unchecked(near_nu, nu.weights), y)
        log_mu, to_mu = kernel_average(kernel, near_mu, unchecked(near_mu, mu.weights), x)
        ratio = (log_mu - log_nu).clamp_max(0.0).exp().unsqueeze(-1)
        return to_nu - x - ratio * (to_mu - x)

    def energy(self, bandwidth: Tensor) -> Tensor:
        r""":math:`\tfrac12 \mathrm{MMD}_K^2(\mu, \nu)`, ``(*batch,)``."""
        first, second = (unchecked(p, m.weights) for p, m in zip(self._scaled(bandwidth), self.whole, strict=True))
        return MMD(second, Gaussian(1.0))(first)

    def _scaled(self, bandwidth: Tensor) -> list[Tensor]:
        """Points and marks of both measures as points between which the kernel is a Gaussian one of bandwidth one."""
        h = bandwidth[..., None, None] / self.extent
        dim = self.points[0].shape[-1]
        apart = 100.0 * math.sqrt(dim) * (1.0 + 1.0 / h.detach())  # exp(-apart^2 / 2) is zero next to all other terms
        return self._located([p / h for p in self.points], apart, 1.0)

    def _located(self, points: list[Tensor], apart: float | Tensor, spread: float | Tensor) -> list[Tensor]:
        """The ``points`` with coordinates for the marks: different ones at a distance ``apart``, or as a Gaussian has it."""
        if self.marks is None:
            return points
        scale = apart if self.mark_bandwidth == 0.0 else spread / self.mark_bandwidth
        return [torch.cat([p, scale * u], -1) for p, u in zip(points, self.marks, strict=True)]


def mark_numbers(marks: Tensor) -> Tensor:
    """A number for each mark, ``(*batch, n, 1)``: equal marks of a measure have equal numbers."""
    marks = marks.detach()
    flat = marks.reshape(-1, *marks.shape[-2:])
    sample = torch.arange(len(flat), device=marks.device).to(marks.dtype)[:, None, None].expand(*flat.shape[:-1], 1)
    rows = torch.cat([sample, flat], -1).flatten(0, 1)
    numbers = torch.unique(rows, dim=0, return_inverse=True)[1].reshape(*marks.shape[:-1], 1)  # sorted by samples first
    return (numbers - numbers.amin(-2, keepdim=True)).to(marks.dtype) if numbers.numel() else torch.zeros_like(marks[..., :1])


def marks_are_distinct(numbers: Tensor, weights: Tensor) -> Tensor:
    """Whether no two atoms of positive mass have equal `mark_numbers`, ``(*batch,)``."""
    alone = torch.arange(1, numbers.shape[-2] + 1, device=numbers.device).to(numbers.dtype)
    ordered = torch.where(weights > 0, numbers.squeeze(-1), -alone).sort(-1).values
    return (ordered.diff(dim=-1) != 0).all(-1)


def root(square: Tensor) -> Tensor:
    """The square root, with derivative zero at zero."""
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1.0).sqrt(), 0.0)
