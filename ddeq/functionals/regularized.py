"""Divergences from a target that a kernel regularises: one convex problem, solved to rounding and differentiable again."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.autodiff import under_transforms
from ddeq.functionals.base import Smoothness, places
from ddeq.functionals.discrepancy import Discrepancy
from ddeq.functionals.entropic import envelope
from ddeq.functionals.gram import Gram
from ddeq.functionals.regularized_newton import RegularizedTarget
from ddeq.functionals.regularized_solver import DualEquation
from ddeq.held import store
from ddeq.kernels import Kernel
from ddeq.kernels.base import positive, shown
from ddeq.measures import DiscreteMeasure
from ddeq.reductions import integrate, integrate_kernel, integrate_kernel_gradient

__all__ = ["RegularizedDivergence"]


class RegularizedDivergence(Discrepancy):
    r"""A :math:`\varphi`-divergence from a target :math:`\nu`, regularised by a kernel.

    .. math:: F(\mu) = a (1 + \lambda) \min_\rho \Big\{ \int \varphi(\rho) \,\mathrm d\nu
              + \frac1{2\lambda} \mathrm{MMD}_k^2(\mu, \rho\nu) \Big\}, \qquad
              \frac{\delta F}{\delta\mu} = a (1 + \lambda) h, \quad
              h = \frac1\lambda \int k(\cdot, y) \,\mathrm d(\mu - \rho\nu)(y) .

    By duality the minimum is :math:`\max_h \int h \,\mathrm d\mu - \int \varphi^*(h) \,\mathrm d\nu - \tfrac\lambda2 |h|_H^2`,
    where :math:`\rho = (\varphi^*)'(h)`: the values :math:`u_j = h(y_j)` at the atoms of :math:`\nu`, of masses :math:`v_j`,
    solve

    .. math:: \lambda u_i + \sum_j k(y_i, y_j)\, v_j\, (\varphi^*)'(u_j) = \int k(y_i, x) \,\mathrm d\mu(x) .

    Newton's method solves it; the implicit-function rule (implicit differentiation, T7) differentiates it, at every order. A
    new divergence writes `density`, `slope` and `penalty`. `KALE` and `DrMMD` are two.

    Parameters
    ----------
    target
        Measure :math:`\nu`: one for all, or one for each measure of the batch.
    kernel
        Positive definite kernel :math:`k`.
    regularization
        :math:`\lambda > 0`: a number, or a tensor of shape ``()`` or ``(*batch,)``; an ``nn.Parameter`` trains.

    Raises
    ------
    ValueError
        If ``regularization`` is not positive and finite, or ``kernel`` not positive definite (with a conditionally positive
        definite one the problem has no bound).

    Warns
    -----
    InnerProblemWarning
        If the problem was not solved to rounding; the message gives the residual, and the best iterate is used.
    """

    factor: float = 1.0
    """The factor :math:`a`."""
    linear: bool = False
    """Whether `density` is affine, so that the equations are linear, and factorised once for all measures."""

    def __init__(self, target: DiscreteMeasure, kernel: Kernel, regularization: float | Tensor) -> None:
        super().__init__(target)
        if not isinstance(kernel, Kernel):
            raise ValueError(f"kernel: expected a kernel such as Gaussian(1.0), got {kernel!r}")
        if not kernel.positive_definite:
            raise ValueError(
                f"kernel: expected a positive definite one such as Gaussian(1.0), got {kernel!r}, with which "
                f"{type(self).__name__} is unbounded"
            )
        self.kernel = kernel
        self.regularization: float | Tensor
        store(self, "regularization", positive("regularization", regularization))
        self.smoothness = Smoothness.SMOOTH if kernel.smooth_on_the_diagonal else Smoothness.OFF_DIAGONAL

    def density(self, u: Float[Tensor, "*batch m"]) -> Float[Tensor, "*batch m"]:
        r"""The density :math:`(\varphi^*)'(u)`, finite for every ``u``."""
        raise NotImplementedError(f"{type(self).__name__} must define `density`")

    def slope(self, u: Float[Tensor, "*batch m"]) -> Float[Tensor, "*batch m"]:
        r"""The derivative :math:`(\varphi^*)''(u) \ge 0` of `density`."""
        raise NotImplementedError(f"{type(self).__name__} must define `slope`")

    def penalty(self, u: Float[Tensor, "*batch m"]) -> Float[Tensor, "*batch m"]:
        r"""The integrand :math:`\varphi` at the `density` that belongs to ``u``."""
        raise NotImplementedError(f"{type(self).__name__} must define `penalty`")

    def prepare(
        self, mu: DiscreteMeasure, memory: Any, step: int, generator: torch.Generator | None
    ) -> tuple[RegularizedDivergence, Any]:
        start, target = (None, None) if memory is None else memory
        nu, regularization = self._target_for(mu), self._regularization_for(mu)
        if target is None and not self._target_is_differentiated():
            target = self._of_target(nu, regularization)
        u = self._equation(nu, mu, regularization).solution(target, start)
        return self.with_memory(_Known(mu.points, mu.weights, u, target)), (u, target)

    def forward(self, mu: DiscreteMeasure) -> Float[Tensor, "*batch"]:
        nu, u, regularization = self._solved(mu)
        # As a function of u the value is stationary at the solution: rounding in u enters squared.
        u = u if under_transforms() else envelope(u)
        fitted = nu.with_weights(nu.weights * self.density(u))
        with_itself = integrate(integrate_kernel(self.kernel, mu.points, mu), mu)
        with_fitted = integrate(integrate_kernel(self.kernel, mu.points, fitted), mu)
        of_fitted = integrate(integrate_kernel(self.kernel, fitted.points, fitted), fitted)
        distance = with_itself - 2 * with_fitted + of_fitted
        return self._scale(regularization) * (integrate(self.penalty(u), nu) + distance / (2 * regularization))

    def first_variation(self, mu: DiscreteMeasure, x: Float[Tensor, "*points m d"] | None = None) -> Float[Tensor, "*batch m"]:
        x = places(mu, x)
        fitted, factor = self._fitted(mu)
        return factor[..., None] * (integrate_kernel(self.kernel, x, mu) - integrate_kernel(self.kernel, x, fitted))

    def wasserstein_gradient(
        self, mu: DiscreteMeasure, x: Float[Tensor, "*points m d"] | None = None
    ) -> Float[Tensor, "*batch m d"]:
        x = places(mu, x)
        fitted, factor = self._fitted(mu)
        by_mu, by_fitted = (integrate_kernel_gradient(self.kernel, x, m) for m in (mu, fitted))
        return factor[..., None, None] * (by_mu - by_fitted)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, regularization={shown(self.regularization)}"

    def _regularization_for(self, mu: DiscreteMeasure) -> Tensor:
        """The regularisation in the batch shape of ``mu``, once it is known to be positive."""
        value = torch.as_tensor(positive("regularization", self.regularization), dtype=mu.dtype, device=mu.device)
        if value.shape not in ((), mu.batch_shape):
            raise ValueError(
                f"regularization: expected a number or one for each measure, shape {mu.batch_shape}, got {tuple(value.shape)}"
            )
        return value.expand(mu.batch_shape)

    def _scale(self, regularization: Tensor) -> Tensor:
        return self.factor * (1 + regularization)

    def _fitted(self, mu: DiscreteMeasure) -> tuple[DiscreteMeasure, Tensor]:
        r"""The measure :math:`\rho\nu`, and what multiplies the witness of ``mu`` and it in the first variation."""
        nu, u, regularization = self._solved(mu)
        return nu.with_weights(nu.weights * self.density(u)), self._scale(regularization) / regularization

    def _solved(self, mu: DiscreteMeasure) -> tuple[DiscreteMeasure, Tensor, Tensor]:
        """The target, the values ``u`` at its atoms, differentiable, and the regularisation, in the batch shape of ``mu``."""
        nu, regularization = self._target_for(mu), self._regularization_for(mu)
        known: _Known | None = self.memory
        if known is None or known.points.shape[:-2] != mu.batch_shape or under_transforms():
            return nu, self._equation(nu, mu, regularization).solution(), regularization
        u = known.u if known.is_at(mu) else None
        differentiated = torch.is_grad_enabled() and (mu.points.requires_grad or mu.weights.requires_grad)
        if u is None or differentiated or known.target is None:
            u = self._equation(nu, mu, regularization).solution(known.target, known.u, u)
        return nu, u, regularization

    def _equation(self, nu: DiscreteMeasure, mu: DiscreteMeasure, regularization: Tensor) -> DualEquation:
        right = integrate_kernel(self.kernel, nu.points, mu)
        return DualEquation(self, self.kernel, nu, right, regularization.unsqueeze(-1))

    def _target_is_differentiated(self) -> bool:
        """Whether a derivative in the target, the kernel or the regularization may be asked for."""
        held = any(t.requires_grad for t in (*self.parameters(), *self.buffers()))
        with torch.enable_grad():  # what a kernel of one's own captures
            point = self.target.points[..., :1, :].detach()
            return held or self.kernel(point, point).requires_grad

    def _of_target(self, nu: DiscreteMeasure, regularization: Tensor) -> RegularizedTarget:
        """What all solves share; one for all measures where target and regularization are."""
        of_all = regularization.unsqueeze(-1)
        if not self.target.batch_shape and not isinstance(self.regularization, Tensor):
            nu, of_all = self.target, of_all[(0,) * len(regularization.shape)]
        return RegularizedTarget.of(self, Gram.of(self.kernel, nu.points), nu.weights, of_all)


class _Known(NamedTuple):
    """What `RegularizedDivergence.prepare` has found for a step."""

    points: Tensor
    weights: Tensor
    u: Tensor
    """The solution at these points and weights, ``(*batch, m)``."""
    target: RegularizedTarget | None
    """None where derivatives in the target may be wanted."""

    def is_at(self, mu: DiscreteMeasure) -> bool:
        """Whether the solution is that of ``mu``."""
        return torch.equal(self.points, mu.points) and torch.equal(self.weights, mu.weights)
