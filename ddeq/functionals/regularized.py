"""Divergences from a target that a kernel regularises: one convex problem, solved to rounding and differentiable again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.autodiff import under_transforms
from ddeq.functionals.base import Smoothness, places
from ddeq.functionals.discrepancy import Discrepancy
from ddeq.functionals.entropic import envelope
from ddeq.functionals.gram import Gram
from ddeq.functionals.regularized_known import Known
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
    exact_variation = True
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
        guesses: tuple[Tensor, ...]
        guesses, target = ((), None) if memory is None else memory
        if target is None and not self._is_differentiated(mu) and Gram.is_stored(self._target_for(mu).points):
            target = self._of_target(mu)
        found = self._solved(mu, target, guesses, with_gradients=True)
        further = 2.0 * found.u - guesses[0] if guesses else found.u  # where it leads if it goes on like that
        return self.with_memory(found), ((found.u, further), target)

    def forward(self, mu: DiscreteMeasure) -> Float[Tensor, "*batch"]:
        nu, regularization, known = self._target_for(mu), self._regularization_for(mu), self._known(mu)
        if known is None:
            # As a function of u the value is stationary at the solution: rounding in u enters squared.
            u = self._solution(mu)
            u = u if under_transforms() else envelope(u)
            fitted = nu.with_weights(nu.weights * self.density(u))
            with_itself = integrate(integrate_kernel(self.kernel, mu.points, mu), mu)
            with_fitted = integrate(integrate_kernel(self.kernel, mu.points, fitted), mu)
            of_fitted = integrate(integrate_kernel(self.kernel, fitted.points, fitted), fitted)
            distance = with_itself - 2 * with_fitted + of_fitted
            return self._scale(regularization) * (integrate(self.penalty(u), nu) + distance / (2 * regularization))
        # The equation says what the kernel integrates to against the fitted measure.
        u, multiple = known.u, 0.5 / regularization
        fitted_part = self.penalty(u) - (multiple.unsqueeze(-1) * known.right + 0.5 * u) * self.density(u)
        return self._scale(regularization) * (integrate(fitted_part, nu) + multiple * known.squared_norm(self.kernel))

    def first_variation(self, mu: DiscreteMeasure, x: Float[Tensor, "*points m d"] | None = None) -> Float[Tensor, "*batch m"]:
        x = places(mu, x)
        fitted, factor = self._fitted(mu, self._known(mu))
        return factor[..., None] * (integrate_kernel(self.kernel, x, mu) - integrate_kernel(self.kernel, x, fitted))

    def wasserstein_gradient(
        self, mu: DiscreteMeasure, x: Float[Tensor, "*points m d"] | None = None
    ) -> Float[Tensor, "*batch m d"]:
        known = self._known(mu, with_gradients=x is None)
        fitted, factor = self._fitted(mu, known)
        if known is not None and x is None:
            return factor[..., None, None] * known.gradient_of_difference(self.kernel, fitted)
        x = places(mu, x)
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

    def _fitted(self, mu: DiscreteMeasure, known: Known | None) -> tuple[DiscreteMeasure, Tensor]:
        r"""The measure :math:`\rho\nu`, and what multiplies the witness of ``mu`` and it in the first variation."""
        nu, regularization = self._target_for(mu), self._regularization_for(mu)
        u = self._solution(mu) if known is None else known.u
        return nu.with_weights(nu.weights * self.density(u)), self._scale(regularization) / regularization

    def _solution(self, mu: DiscreteMeasure) -> Tensor:
        """The values ``u`` at the atoms of the target, differentiable."""
        nu, regularization, prepared = self._target_for(mu), self._regularization_for(mu), self._prepared_for(mu)
        right = integrate_kernel(self.kernel, nu.points, mu)
        equation = DualEquation(self, self.kernel, nu, right, regularization.unsqueeze(-1))
        target: RegularizedTarget | None = None
        starts: tuple[Tensor, ...] = ()
        known: Tensor | None = None
        if prepared is not None and not under_transforms():
            target, starts = prepared.target, (prepared.u,)
            known = prepared.u if prepared.is_at(mu) else None
        u: Tensor = equation.solution(target, starts, known)
        return u

    def _known(self, mu: DiscreteMeasure, *, with_gradients: bool = False) -> Known | None:
        """What is known at ``mu``; None where derivatives may be wanted."""
        if under_transforms() or torch.compiler.is_compiling():
            return None
        prepared = self._prepared_for(mu)
        target = None if prepared is None else prepared.target
        if torch.is_grad_enabled() and (
            mu.points.requires_grad or mu.weights.requires_grad or (target is None and self._is_differentiated(mu))
        ):
            return None
        if prepared is not None and prepared.is_at(mu):
            return prepared
        return self._solved(mu, target, () if prepared is None else (prepared.u,), with_gradients=with_gradients)

    def _prepared_for(self, mu: DiscreteMeasure) -> Known | None:
        """What `prepare` has found for the step, if it is for measures of the batch shape of ``mu``."""
        prepared: Known | None = self.memory
        return prepared if prepared is not None and prepared.mu.batch_shape == mu.batch_shape else None

    @torch.no_grad()
    def _solved(
        self, mu: DiscreteMeasure, target: RegularizedTarget | None, starts: Sequence[Tensor], *, with_gradients: bool
    ) -> Known:
        """What is known at ``mu``, by a solve from the best of ``starts``, with what of the ``target`` is at hand."""
        nu, regularization = self._target_for(mu), self._regularization_for(mu).unsqueeze(-1)
        of_target = self._of_target(mu) if target is None else target
        found = Known.at(mu, self, self.kernel, nu, regularization, of_target, starts, with_gradients=with_gradients)
        return found if target is not None else replace(found, target=None)

    def _is_differentiated(self, mu: DiscreteMeasure) -> bool:
        """Whether a derivative in the target, the kernel or the regularization may be asked for."""
        if any(t.requires_grad for t in (*self.parameters(), *self.buffers())):
            return True
        with torch.enable_grad():  # what a kernel of one's own captures
            point = self._target_for(mu).points[..., :1, :]
            return bool(self.kernel(point, point).requires_grad)

    @torch.no_grad()
    def _of_target(self, mu: DiscreteMeasure) -> RegularizedTarget:
        """What all solves share; one for all measures where target, kernel and regularization are."""
        nu, regularization = self._target_for(mu), self._regularization_for(mu).unsqueeze(-1)
        held = (*self.kernel.parameters(), *self.kernel.buffers())
        if not (self.target.batch_shape or isinstance(self.regularization, Tensor) or any(t.ndim for t in held)):
            nu, regularization = self.target, regularization[(0,) * len(mu.batch_shape)]
        return RegularizedTarget.of(self, Gram.of(self.kernel, nu.points), nu.weights, regularization)
