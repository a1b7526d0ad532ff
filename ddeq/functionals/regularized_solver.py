"""The equation behind divergences that a kernel regularises: Newton's method, and derivatives of every order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ddeq.autodiff import OpenModule, under_transforms
from ddeq.functionals.gram import Gram, RegularizedSystem
from ddeq.iteration import (
    Equation,
    Implicit,
    InnerProblemWarning,
    InnerProduct,
    Iterate,
    LinearAnswer,
    LinearSolver,
    Method,
    Outcome,
    Sizes,
    Status,
    Step,
    Stop,
    iterate,
)
from ddeq.kernels import Kernel
from ddeq.measures import DiscreteMeasure, unchecked
from ddeq.messages import warn
from ddeq.reductions import integrate_kernel

__all__ = ["DualEquation", "Penalty"]

MOST_STEPS = 200
"""Newton steps. A handful is usual; more than a hundred occur where the regularisation is 1e-6 and the kernel wide."""
STOP = Stop(max_steps=MOST_STEPS, atol=0.0)
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
        self.gram: Gram | None = None
        self._product = OpenModule(_Product(kernel))
        self.tensors = (regularization, right, nu.weights, nu.points, *self._product.tensors)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # its steps depend on what they find
    def solution(self) -> Tensor:
        """``u``, as a differentiable function of all that enters."""
        nu, still = self.nu, (self.nu.weights, self.right, self.regularization)
        if under_transforms():
            matrix = self.kernel(nu.points, nu.points)
            u: Tensor = _Root.apply(self.divergence, matrix.detach(), *(t.detach() for t in still))  # type: ignore[no-untyped-call]
            return self._lifted(u, matrix)
        self.gram = Gram.of(self.kernel, nu.points)
        if torch.is_grad_enabled() and any(t.requires_grad for t in self.tensors):
            _check_captures_nothing(self._product, nu)
        return Implicit().solve(self, self._run, STOP).value

    def _run(self, equation: Equation, stop: Stop, *, watch: bool = False) -> Outcome:
        assert self.gram is not None
        still = (t.detach() for t in (self.nu.weights, self.right, self.regularization))
        outcome = _solved(_DensityEquation(self.divergence, self.gram, *still))
        # What it did not reach it has said already.
        return replace(outcome, status=torch.full_like(outcome.status, Status.CONVERGED.value))

    def residual(self, z: Tensor, *tensors: Tensor) -> Tensor:
        regularization, right, weights, points, *own = tensors or self.tensors
        image: Tensor = self._product(own, points, weights * self.divergence.density(z))
        return right - regularization * z - image

    def linear_solver(self, z: Tensor, status: Tensor) -> LinearSolver:
        assert self.gram is not None
        weights = self.nu.weights.detach()
        return _Factorised(RegularizedSystem(self.gram, weights * self.divergence.slope(z), self.regularization))

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


class _DensityEquation(Equation):
    """The equation without derivatives, its kernel as a Gram matrix."""

    def __init__(self, divergence: Penalty, gram: Gram, weights: Tensor, right: Tensor, regularization: Tensor) -> None:
        self.divergence, self.gram, self.weights, self.right = divergence, gram, weights, right
        self.regularization = regularization
        self.inner = InnerProduct(weights, dims=1)
        self.removable = right.ndim > 1 and gram.matrix is not None

    def masses(self, z: Tensor) -> Tensor:
        """What the density of ``z`` makes of the weights."""
        return self.weights * self.divergence.density(z)

    def residual(self, z: Tensor, *tensors: Tensor) -> Tensor:
        return self.right - self.regularization * z - self.gram.product(self.masses(z))

    def uncertain(self, z: Tensor) -> Tensor:
        """Masses, the rounding of the value in the density included."""
        return self.masses(z).abs() + (self.weights * self.divergence.slope(z) * z).abs()

    def sizes(self, z: Tensor, residual: Tensor, previous: Iterate | None) -> Sizes:
        # Relative to what is added up in the residual.
        size = ((self.regularization * z).abs() + self.gram.product(self.uncertain(z)) + self.right.abs()).amax(-1)
        return Sizes(residual.abs().amax(-1), torch.where(size > 0, size, 1.0))

    def objective(self, z: Tensor) -> Tensor:
        """What the density of ``z`` costs, but for a constant."""
        masses = self.masses(z)
        distance = masses * (self.gram.product(masses) / 2 - self.right) / self.regularization
        return (distance + self.weights * self.divergence.penalty(z)).sum(-1)

    def rows(self, keep: Tensor) -> _DensityEquation:
        tensors = (t[keep] for t in (self.weights, self.right, self.regularization))
        return _DensityEquation(self.divergence, self.gram.select(keep), *tensors)


@dataclass(frozen=True)
class _Newton(Method[_DensityEquation]):
    """Newton's method, damped so that the dual objective, a convex function of the density, falls."""

    def init(self, equation: _DensityEquation, at: Iterate) -> None:
        return None

    def step(self, equation: _DensityEquation, at: Iterate, state: None) -> Step:
        z, regularization = at.z, equation.regularization
        system = RegularizedSystem(equation.gram, equation.weights * equation.divergence.slope(z), regularization)
        direction = system.solve(at.residual)
        objective = equation.objective(z)
        noise = at.size * equation.uncertain(z).sum(-1) / regularization.squeeze(-1)
        slope = -(system.density * at.residual * direction).sum(-1) / regularization.squeeze(-1)
        slack = 10 * torch.finfo(z.dtype).eps * (noise + objective.abs())
        length = torch.ones_like(objective)
        proposal = z + direction
        for _ in range(MOST_HALVINGS):
            enough = equation.objective(proposal) <= objective + 1e-4 * length * slope + slack
            if bool(enough.all()):
                break
            length = torch.where(enough, length, 0.5 * length)
            proposal = z + length.unsqueeze(-1) * direction
        return Step(proposal, None)


@torch.no_grad()
def _solved(equation: _DensityEquation) -> Outcome:
    right = equation.right
    eps = torch.finfo(right.dtype).eps
    stop = replace(STOP, rtol=eps * (8 + right.shape[-1] ** 0.5))
    # While the density is far from its own the residual may rise for long: patience.
    outcome = iterate(equation, stop, z=torch.zeros_like(right), method=_Newton(), patient=True)
    failed = (outcome.status != Status.CONVERGED.value) & (outcome.residual > 1e4 * eps)
    if bool(failed.any()):
        text = (
            f"{type(equation.divergence).__name__}: some problems were not solved within {MOST_STEPS} Newton steps; the best "
            "iterate is used. Take a larger regularization, or a narrower kernel"
        )
        warn(InnerProblemWarning(text, failed=failed, residual=outcome.residual, wanted=stop.rtol))
    return outcome


class _Root(torch.autograd.Function):
    """The solution without derivatives, where transforms of torch.func are at work: one batch is solved, as ever."""

    @staticmethod
    def forward(divergence: Penalty, matrix: Tensor, weights: Tensor, right: Tensor, regularization: Tensor) -> Tensor:
        return _solved(_DensityEquation(divergence, Gram.stored(matrix), weights, right, regularization)).value

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
