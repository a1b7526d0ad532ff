"""The equation behind divergences that a kernel regularises: Newton's method, and derivatives of every order."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ddeq.autodiff import under_transforms
from ddeq.functionals.gram import Gram, RegularizedSystem
from ddeq.iteration import ConvergenceWarning, Evaluation, Status, Stop, implicit_function, iterate
from ddeq.kernels import Kernel
from ddeq.measures import DiscreteMeasure, unchecked
from ddeq.reductions import integrate_kernel

__all__ = ["Equation", "Penalty"]

MOST_STEPS = 200
"""Newton steps. A handful is usual; more than a hundred occur where the regularisation is 1e-6 and the kernel wide."""
MOST_HALVINGS = 60
"""How often a Newton step is halved at most."""
LIFTS = 3
"""Newton steps that transforms of torch.func see: each doubles the order to which derivatives are right, 1, 3, 7."""


@runtime_checkable
class Penalty(Protocol):
    """What an equation asks of a divergence, as functions of the values ``u`` of the dual function, ``(*batch, m)``."""

    def density(self, u: Tensor) -> Tensor:
        """The density that belongs to ``u``."""
        ...

    def slope(self, u: Tensor) -> Tensor:
        """Its derivative, not negative."""
        ...

    def penalty(self, u: Tensor) -> Tensor:
        """What the density costs."""
        ...


@dataclass(frozen=True)
class Equation:
    """``regularization * u + int k(., y) density(u(y)) dnu(y) = right`` at the atoms of ``nu``."""

    divergence: Penalty
    kernel: Kernel
    nu: DiscreteMeasure
    right: Tensor
    regularization: Tensor

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # its steps depend on what they find
    def solution(self) -> Tensor:
        """``u``, as a differentiable function of all that enters."""
        nu, kernel, still = self.nu, self.kernel, (self.nu.weights, self.right, self.regularization)
        if under_transforms():
            matrix = kernel(nu.points, nu.points)
            u: Tensor = _Root.apply(self.divergence, matrix.detach(), *(t.detach() for t in still))  # type: ignore[no-untyped-call]
            return self._lifted(u, matrix)
        gram = Gram.of(kernel, nu.points)
        with torch.no_grad():
            u = _newton(_Newton(self.divergence, gram, *(t.detach() for t in still)))
        product = _Product(kernel)
        held = {name: t for name, t in [*product.named_parameters(), *product.named_buffers()] if t.requires_grad}
        tensors = (self.regularization, self.right, nu.weights, nu.points, *held.values())
        if not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
            return u
        _check_captures_nothing(product, held, nu)
        divergence = self.divergence

        def equation(u: Tensor, regularization: Tensor, right: Tensor, weights: Tensor, points: Tensor, *own: Tensor) -> Tensor:
            masses = weights * divergence.density(u)
            image: Tensor = torch.func.functional_call(product, dict(zip(held, own, strict=True)), (points, masses))
            return regularization * u + image - right

        system = RegularizedSystem(gram, nu.weights * divergence.slope(u), self.regularization)

        def solve(operator: object, b: Tensor, dual: bool) -> Tensor:
            return system.solve(-b, transposed=dual)

        return implicit_function(equation, solve, u, *tensors)

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


def _check_captures_nothing(product: _Product, held: dict[str, Tensor], nu: DiscreteMeasure) -> None:
    """The implicit rule sees what it is given: a tensor that enters otherwise would get a wrong gradient in silence."""
    with torch.enable_grad():
        still = {name: t.detach() for name, t in held.items()}
        first: Tensor = torch.func.functional_call(product, still, (nu.points[..., :1, :].detach(), nu.weights[..., :1].detach()))
    if first.requires_grad:
        raise ValueError("kernel: a tensor that requires grad enters it and is neither a parameter nor a buffer; register it")


@dataclass(frozen=True)
class _Newton:
    """Newton's method, damped so that the dual objective, a convex function of the density, falls."""

    divergence: Penalty
    gram: Gram
    weights: Tensor
    right: Tensor
    regularization: Tensor

    def evaluate(self, value: Tensor, memory: Any) -> tuple[Evaluation, Any]:
        masses = self.weights * self.divergence.density(value)
        image = self.gram.product(masses)
        defect = self.regularization * value + image - self.right
        # Of what is added up, the rounding of the value in the density included.
        uncertain = masses.abs() + (self.weights * self.divergence.slope(value) * value).abs()
        size = ((self.regularization * value).abs() + self.gram.product(uncertain) + self.right.abs()).amax(-1)
        noise = size * uncertain.sum(-1) / self.regularization.squeeze(-1)
        absolute = defect.abs().amax(-1)
        residual = absolute / torch.where(size > 0, size, 1.0)
        nothing = 0.0 * residual
        return Evaluation(residual, absolute, nothing, nothing, (defect, masses, image, noise)), memory

    def advance(self, value: Tensor, memory: Any, found: Any, step: int) -> tuple[Tensor, Any]:
        defect, masses, image, noise = found
        system = RegularizedSystem(self.gram, self.weights * self.divergence.slope(value), self.regularization)
        direction = -system.solve(defect)
        objective = self._objective(value, masses, image)
        slope = (system.density * defect * direction).sum(-1) / self.regularization.squeeze(-1)
        slack = 10 * torch.finfo(value.dtype).eps * (noise + objective.abs())
        length = torch.ones_like(objective)
        proposal = value + direction
        for _ in range(MOST_HALVINGS):
            masses = self.weights * self.divergence.density(proposal)
            reached = self._objective(proposal, masses, self.gram.product(masses))
            enough = reached <= objective + 1e-4 * length * slope + slack
            if bool(enough.all()):
                break
            length = torch.where(enough, length, 0.5 * length)
            proposal = value + length.unsqueeze(-1) * direction
        return proposal, memory

    def select(self, keep: Tensor) -> _Newton:
        tensors = (t[keep] for t in (self.weights, self.right, self.regularization))
        return _Newton(self.divergence, self.gram.select(keep), *tensors)

    def _objective(self, value: Tensor, masses: Tensor, image: Tensor) -> Tensor:
        """What the density of ``value`` costs, but for a constant."""
        distance = masses * (image / 2 - self.right) / self.regularization
        return (distance + self.weights * self.divergence.penalty(value)).sum(-1)


def _newton(problem: _Newton) -> Tensor:
    right = problem.right
    eps = torch.finfo(right.dtype).eps
    stop = Stop(rtol=eps * (8 + right.shape[-1] ** 0.5), max_steps=MOST_STEPS)
    removable = right.ndim > 1 and problem.gram.matrix is not None
    # While the density is far from its own the residual may rise for long: patience.
    outcome = iterate(
        problem, torch.zeros_like(right), (), stop=stop, batch_shape=right.shape[:-1], patient=True, removable=removable
    )
    failed = (outcome.status != Status.CONVERGED) & (outcome.residual > 1e4 * eps)
    if bool(failed.any()):
        warnings.warn(
            f"{type(problem.divergence).__name__}: {int(failed.sum())} of {failed.numel()} problems were not solved within "
            f"{MOST_STEPS} Newton steps (largest relative residual {float(outcome.residual[failed].max()):.1e}, wanted "
            f"{stop.rtol:.1e}); the best iterate is used. Take a larger regularization than "
            f"{float(problem.regularization.min()):.1e}, or a narrower kernel",
            ConvergenceWarning,
            stacklevel=2,
        )
    return outcome.value


class _Root(torch.autograd.Function):
    """The solution without derivatives, where transforms of torch.func are at work: one batch is solved, as ever."""

    @staticmethod
    def forward(divergence: Penalty, matrix: Tensor, weights: Tensor, right: Tensor, regularization: Tensor) -> Tensor:
        return _newton(_Newton(divergence, Gram.stored(matrix), weights, right, regularization))

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
