"""What is known of a divergence that a kernel regularises at a measure: its solution and sums of its kernel, no derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ddeq.functionals.regularized_newton import Penalty, RegularizedTarget, solve_dual
from ddeq.kernels import Kernel
from ddeq.measures import DiscreteMeasure
from ddeq.memory import Cached
from ddeq.reductions import integrate, integrate_kernel, integrate_kernel_gradient
from ddeq.reductions.one_pass import in_one_pass
from ddeq.reductions.pairs import Slopes, sums_and_gradients

__all__ = ["Known"]


@dataclass(frozen=True)
class Known(Cached):
    """The solution at a measure, and what was computed on the way to it."""

    mu: DiscreteMeasure
    """The measure, detached."""
    u: Tensor
    """The solution, ``(*batch, m)``."""
    right: Tensor
    """The right-hand side of its equation, ``(*batch, m)``."""
    target: RegularizedTarget | None
    """What belongs to the target alone, where it stays as it is."""
    potential: Tensor | None
    """The kernel integrated against ``mu`` at its atoms, ``(*batch, n)``, where it was found with its gradient."""
    gradient: Tensor | None
    """That gradient, ``(*batch, n, d)``."""
    slopes: Slopes | None
    """The slopes of the kernel between the atoms of ``mu`` and of the target, likewise."""

    @classmethod
    def at(
        cls,
        mu: DiscreteMeasure,
        divergence: Penalty,
        kernel: Kernel,
        nu: DiscreteMeasure,
        regularization: Tensor,
        target: RegularizedTarget,
        starts: Sequence[Tensor],
        *,
        with_gradients: bool,
    ) -> Known:
        """By a solve from the best of ``starts``; under ``torch.no_grad``.

        ``with_gradients``: those of the sums will be wanted.
        """
        mu, weights = mu.detach(), mu.weights.detach()
        potential = gradient = slopes = None
        if with_gradients and in_one_pass(kernel, mu.points, mu) and in_one_pass(kernel, mu.points, nu):
            right, slopes = Slopes.of(kernel, mu.points, nu.points, weights)
            potential, gradient = sums_and_gradients(kernel, mu.points, mu.points, weights)
        else:
            right = integrate_kernel(kernel, nu.points, mu)
        u = solve_dual(divergence, target, nu.weights, right, regularization, starts)
        return cls(mu, u, right, target, potential, gradient, slopes)

    def is_at(self, mu: DiscreteMeasure) -> bool:
        """Whether the solution is that of ``mu``, whose batch shape is known to be the same."""
        return torch.equal(self.mu.points, mu.points) and torch.equal(self.mu.weights, mu.weights)

    def squared_norm(self, kernel: Kernel) -> Tensor:
        """The kernel integrated against ``mu`` twice, ``(*batch,)``."""
        potential = integrate_kernel(kernel, self.mu.points, self.mu) if self.potential is None else self.potential
        return integrate(potential, self.mu)

    def gradient_of_difference(self, kernel: Kernel, fitted: DiscreteMeasure) -> Tensor:
        """Gradient of the kernel integrated against ``mu`` minus ``fitted``, at the atoms of ``mu``; ``(*batch, n, d)``."""
        x = self.mu.points
        of_mu = integrate_kernel_gradient(kernel, x, self.mu) if self.gradient is None else self.gradient
        of_fitted = integrate_kernel_gradient(kernel, x, fitted) if self.slopes is None else self.slopes.gradients(fitted.weights)
        return of_mu - of_fitted

    def rows(self, keep: Tensor) -> Known:
        chosen = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in chosen.items():
            if isinstance(value, Tensor):
                chosen[name] = value[keep]
        for name, part in (("target", self.target), ("slopes", self.slopes)):
            chosen[name] = None if part is None else part.rows(keep)
        return Known(**chosen | {"mu": self.mu[keep]})
