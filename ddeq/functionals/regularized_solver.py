"""The equation behind divergences that a kernel regularises, with derivatives of every order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ddeq.autodiff import OpenModule, under_transforms, without_autocast
from ddeq.functionals.gram import Gram, RegularizedSystem
from ddeq.functionals.regularized_newton import STOP, Penalty, RegularizedTarget, solve_dual
from ddeq.iteration import Equation, Implicit, InnerProduct, LinearAnswer, LinearSolver, Status
from ddeq.kernels import Kernel
from ddeq.measures import DiscreteMeasure, unchecked
from ddeq.reductions import integrate_kernel
from ddeq.untraced import untraced

__all__ = ["DualEquation"]

LIFTS = 3
"""Newton steps that transforms of torch.func see: each doubles the order to which derivatives are right, 1, 3, 7."""


class DualEquation(Equation):
    """``right - regularization * u - int k(., y) density(u(y)) dnu(y) = 0`` at the atoms of ``nu``.

    Parameters
    ----------
    divergence
        What the density costs.
    kernel, nu
        The kernel, and the measure at whose atoms ``u`` is sought.
    right
        The right-hand side, ``(*batch, m)``.
    regularization
        ``(*batch, 1)``.
    """

    name = "dual problems"

    def __init__(self, divergence: Penalty, kernel: Kernel, nu: DiscreteMeasure, right: Tensor, regularization: Tensor) -> None:
        self.divergence, self.kernel, self.nu, self.right, self.regularization = divergence, kernel, nu, right, regularization
        self.inner = InnerProduct(nu.weights.detach(), dims=1)
        self.target: RegularizedTarget | None = None
        self._product = OpenModule(_Product(kernel))
        self.tensors = (regularization, right, nu.weights, nu.points, *self._product.tensors)

    @untraced  # its steps depend on what they find
    def solution(
        self, target: RegularizedTarget | None = None, starts: Sequence[Tensor] = (), known: Tensor | None = None
    ) -> Tensor:
        """``u``, as a differentiable function of all that enters.

        Parameters
        ----------
        target
            What belongs to the target alone, if it is at hand.
        starts
            Guesses of the solution, ``(*batch, m)``.
        known
            The solution, if it is at hand.
        """
        nu, still = self.nu, (self.nu.weights, self.right, self.regularization)
        if under_transforms():
            matrix = self.kernel(nu.points, nu.points)
            lifted: Tensor = _Root.apply(self.divergence, matrix.detach(), *(t.detach() for t in still))  # type: ignore[no-untyped-call]
            return self._lifted(lifted, matrix)
        weights, right, regularization = (t.detach() for t in still)
        if target is None:
            target = RegularizedTarget.of(self.divergence, Gram.of(self.kernel, nu.points), weights, regularization)
        self.target = target
        if known is None:
            with torch.no_grad():
                known = solve_dual(self.divergence, target, weights, right, regularization, starts)
        u = known
        if not (torch.is_grad_enabled() and any(t.requires_grad for t in self.tensors)):
            return u
        _check_captures_nothing(self._product, nu)
        # What was not reached has been said already.
        solved = torch.full(u.shape[:-1], Status.CONVERGED.value, dtype=torch.long, device=u.device)
        with without_autocast(u.device):
            return Implicit().attach(self, u, solved, STOP)

    def residual(self, z: Tensor, *tensors: Tensor) -> Tensor:
        regularization, right, weights, points, *own = tensors or self.tensors
        image: Tensor = self._product(own, points, weights * self.divergence.density(z))
        return right - regularization * z - image

    def linear_solver(self, z: Tensor, status: Tensor) -> LinearSolver:
        target = self.target
        assert target is not None
        if target.system is not None:
            return _Factorised(target.system)
        weights = self.nu.weights.detach()
        return _Factorised(RegularizedSystem(target.gram, weights * self.divergence.slope(z), self.regularization))

    def _lifted(self, u: Tensor, matrix: Tensor) -> Tensor:
        """Newton steps from a solution: they change no value and give it its derivatives."""
        weights, divergence = self.nu.weights, self.divergence
        identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        for _ in range(LIFTS):
            defect = self.regularization * u + _times(matrix, weights * divergence.density(u)) - self.right
            scaled = matrix * (weights * divergence.slope(u)).unsqueeze(-2)
            u = u - torch.linalg.solve(self.regularization.unsqueeze(-1) * identity + scaled, defect)
        return u


class _Product(nn.Module):
    """``sum_j k(y_i, y_j) b_j`` as a module, so that the tensors of the kernel can be exchanged."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, points: Tensor, masses: Tensor) -> Tensor:
        return integrate_kernel(self.kernel, points, unchecked(points, masses))


def _check_captures_nothing(product: OpenModule, nu: DiscreteMeasure) -> None:
    """A `ValueError` if a tensor that requires grad enters the kernel and is neither a parameter nor a buffer of it."""
    with torch.enable_grad():
        still = [t.detach() for t in product.tensors]
        first: Tensor = product(still, nu.points[..., :1, :].detach(), nu.weights[..., :1].detach())
    if first.requires_grad:
        raise ValueError("kernel: a tensor that requires grad enters it and is neither a parameter nor a buffer; register it")


class _Factorised(LinearSolver):
    """The linear equations of derivatives, by the factorisation of the regularised system."""

    def __init__(self, system: RegularizedSystem) -> None:
        self._system = system

    def solve(self, operator: Callable[[Tensor], Tensor], b: Tensor, dual: bool) -> LinearAnswer:
        return LinearAnswer(self._system.solve(b, transposed=dual))


class _Root(torch.autograd.Function):
    """The solution without derivatives, where transforms of torch.func are at work: one batch is solved, as ever."""

    @staticmethod
    def forward(divergence: Penalty, matrix: Tensor, weights: Tensor, right: Tensor, regularization: Tensor) -> Tensor:
        target = RegularizedTarget.of(divergence, Gram.stored(matrix), weights, regularization)
        return solve_dual(divergence, target, weights, right, regularization)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        return (None,) * 5

    @staticmethod
    def vmap(info: Any, in_dims: Any, divergence: Penalty, *tensors: Tensor) -> tuple[Tensor, int]:
        moved = (
            t.expand(info.batch_size, *t.shape) if d is None else t.movedim(d, 0)
            for t, d in zip(tensors, in_dims[1:], strict=True)
        )
        return _Root.apply(divergence, *moved), 0  # type: ignore[no-untyped-call]


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)
