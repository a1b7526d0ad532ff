"""Kernels on R^d, each one formula that runs on tensors, on KeOps' symbolic tensors and in compiled sums alike.

Radial kernels are profiles of the squared distance. A function of ``|x - y|`` that has a kink at ``x = y`` has gradient 0
there, by code, at every order that exists; a smooth one has its true derivatives.
"""

from ddeq.kernels.bandwidth import median_bandwidth
from ddeq.kernels.base import Kernel, RadialKernel, ScaledKernel, SumKernel
from ddeq.kernels.polynomial import Polynomial
from ddeq.kernels.radial import IMQ, Gaussian, Laplace, Matern, Riesz

__all__ = [
    "IMQ",
    "Gaussian",
    "Kernel",
    "Laplace",
    "Matern",
    "Polynomial",
    "RadialKernel",
    "Riesz",
    "ScaledKernel",
    "SumKernel",
    "median_bandwidth",
]
