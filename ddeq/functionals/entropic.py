r"""Entropic transport: its potentials, solved to a tolerance and differentiable at every order.

With the cost :math:`c = |x - y|^2/2` a potential :math:`g` at the atoms of :math:`\nu` fixes :math:`f = T_\nu g`, where

.. math:: T_\nu g(x) = -\tau\varepsilon\log\int e^{(g(y) - c(x, y))/\varepsilon}\,\mathrm d\nu(y), \qquad
          \tau = \frac{\rho}{\rho + \varepsilon}

(:math:`\tau = 1` where marginals are held exactly), and is optimal if :math:`g = T_\mu T_\nu g`. Between a measure and itself
:math:`p = T_\mu p` is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddeq.kernels import Gaussian
from ddeq.measures import DiscreteMeasure
from ddeq.reductions import log_integrate_kernel

__all__ = ["EntropicTransport", "envelope"]


@dataclass(frozen=True)
class EntropicTransport:
    """Entropic transport with ``epsilon = blur**2``; ``reach`` None holds the marginals exactly."""

    blur: float
    reach: float | None

    @property
    def epsilon(self) -> float:
        """Strength of the entropy."""
        return self.blur**2

    @property
    def rho(self) -> float:
        """Strength with which the marginals are held."""
        return math.inf if self.reach is None else self.reach**2

    @property
    def unit(self) -> float:
        """Change of potentials that changes the plan or its marginals by a factor of e."""
        return self.tau * self.epsilon

    @property
    def tau(self) -> float:
        """Damping of potentials."""
        return 1.0 if self.reach is None else self.rho / (self.rho + self.epsilon)

    def transform(self, potential: Tensor, measure: DiscreteMeasure, x: Tensor) -> Tensor:
        """``T`` of a ``potential`` ``(*batch, m)`` at the atoms of ``measure``, evaluated at ``x``: ``(*batch, n)``."""
        eps = self.epsilon
        return -self.tau * eps * log_integrate_kernel(Gaussian(self.blur), x, measure, potential / eps)

    def decay(self, potential: Tensor) -> Tensor:
        r""":math:`-\rho(e^{-f/\rho} - 1)`, which is :math:`f` where marginals are held exactly."""
        return potential if self.reach is None else -self.rho * torch.expm1(-potential / self.rho)

    def marginal(self, potential: Tensor) -> Tensor:
        r"""Density :math:`e^{-f/\rho}` of a marginal of the optimal plan in its measure."""
        return torch.ones_like(potential) if self.reach is None else torch.exp(-potential / self.rho)

    def reduced(self, potential: Tensor) -> Tensor:
        r""":math:`-\rho(e^{-f/\rho} - 1) - \varepsilon e^{-f/\rho}`, the integrand of the dual in one potential."""
        return self.decay(potential) - self.epsilon * self.marginal(potential)

    def plan(self, f: Tensor, mu: DiscreteMeasure, g: Tensor, nu: DiscreteMeasure) -> Tensor:
        r"""The plan :math:`e^{(f \oplus g - c)/\varepsilon}\,\mu\otimes\nu` as a matrix ``(*batch, n, m)``."""
        exponents = Gaussian(self.blur).log_matrix(mu.points, nu.points)
        exponents = exponents + (f.unsqueeze(-1) + g.unsqueeze(-2)) / self.epsilon
        masses = mu.weights.unsqueeze(-1) * nu.weights.unsqueeze(-2)
        return masses * torch.where(masses > 0, exponents, 0.0).exp()


class _Envelope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, potential: Tensor) -> Tensor:
        return potential.view_as(potential)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor | None:
        return cotangent if torch.is_grad_enabled() else None


def envelope(potential: Tensor) -> Tensor:
    """``potential`` where a value is stationary in it: its cotangent is rounding, and is dropped unless a graph is wanted."""
    optimal: Tensor = _Envelope.apply(potential)  # type: ignore[no-untyped-call]
    return optimal
