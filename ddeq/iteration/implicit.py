"""The implicit-function rule: a solution of an equation as a differentiable function of its tensors, at every order."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ddeq.autodiff import alias, reusable_graphs, without_autocast
from ddeq.iteration.adjoint import AttachedAdjoint
from ddeq.iteration.auto import Auto
from ddeq.iteration.declared import check_kinds
from ddeq.iteration.driver import iterate
from ddeq.iteration.equation import Equation, Linear, LinearAnswer, LinearSolver, Sizes
from ddeq.iteration.failures import AdjointWarning, ConvergenceError, ConvergenceWarning, SingularAdjointWarning
from ddeq.iteration.inner import InnerProduct
from ddeq.iteration.iterate import Iterate
from ddeq.iteration.method import Solver
from ddeq.iteration.status import Status, Stop
from ddeq.messages import warn

__all__ = ["AdjointReport", "Implicit", "LinearEquation"]

log = logging.getLogger("ddeq")


@dataclass(frozen=True, eq=False)
class AdjointReport:
    """How the solve of an adjoint equation went, for each sample ``(*batch,)``."""

    residual: Tensor
    """Relative to the gradient that came in."""
    steps: Tensor
    """Steps of the solver."""
    status: Tensor
    """`ddeq.iteration.Status` as whole numbers."""
    growth: Tensor
    """Norm of the solution relative to the gradient that came in; where it is large, the equation is nearly singular."""
    products: int
    """Products with the transposed Jacobian, on the batch."""


@dataclass(frozen=True)
class Implicit(AttachedAdjoint):
    r"""Exact derivatives of every order by the implicit-function rule (implicit differentiation, T7), at constant memory.

    .. math:: \bar\theta = (\partial_\theta g)^\top u, \qquad J^\top u + \bar z = 0, \quad J = \partial_z g(z^*, \theta).

    The adjoint equation is an equation of its own, with :math:`u` in the place of :math:`z`: where a graph of the derivative is
    wanted, the rule applies to it again, so that derivatives of every order are right. Samples that did not converge are
    differentiated at their best iterate, with a `ConvergenceWarning`; those that diverged get zero, with another.

    A gradient that is not right says so. When the adjoint equation has been solved as well as it goes, its residual
    :math:`|J^\top u + \bar z| / |\bar z|` is compared with the tolerance. It is relative to :math:`\bar z` because
    the iterates of a singular equation grow without limit, next to which any residual is small. An equation also fails whose
    solution is more than ``1 / rtol`` times :math:`\bar z` (or where rounding leaves less than half of the digits): there
    :math:`J` is singular as far as the tolerance can tell, as where fixed points are not isolated. (If
    :math:`J` is singular but :math:`\bar z` is orthogonal to its kernel, the loss does not see the direction in which
    the solution is undetermined. Such an equation has a solution, and there is nothing to report.)

    Parameters
    ----------
    solver
        Solver of the adjoint equation, one that does not need measures; default ``Auto(contraction=0.0)``:
        Anderson's steps, and Newton's (which here is GMRES) where their residual stops falling. An equation that knows a solver
        for its own linear equations uses that one.
    on_failure
        Whether an adjoint equation that was not solved warns, or raises a `ConvergenceError`.
    stop
        Its tolerance and steps; default: those of the forward solve.
    report
        Called in backward with an `AdjointReport`, once for each adjoint equation (again for those of second derivatives).

    Raises
    ------
    ValueError
        If an option is not what it should be.

    References
    ----------
    :cite:t:`christianson1994reverse`; :cite:t:`bai2019deep`; :cite:t:`blondel2022efficient`.
    """

    solver: Solver | None = None
    on_failure: Literal["warn", "raise"] = "warn"
    stop: Stop | None = field(default=None, kw_only=True)
    report: Callable[[AdjointReport], object] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.on_failure not in ("warn", "raise"):
            raise ValueError(f"on_failure: expected 'warn' or 'raise', got {self.on_failure!r}")
        check_kinds(
            ("solver", self.solver, Solver | None, "a ddeq.solvers.Solver such as Anderson(), or None"),
            ("stop", self.stop, Stop | None, "a Stop such as Stop(rtol=1e-6), or None"),
        )
        if self.solver is not None and self.solver.needs_measures:
            raise ValueError(f"solver: {type(self.solver).__name__} solves equations on measures, which an adjoint one is not")

    def attach(self, equation: Equation, z: Tensor, status: Tensor, stop: Stop) -> Tensor:
        linear = equation.linear_solver(z, status)
        if linear is None:
            linear = _ByMethod(self, equation.inner, status, replace(self.stop or stop, metric=None))
        options = equation, linear, self.on_failure, True
        tied: Tensor = _Implicit.apply(*options, z.detach(), *equation.tensors)  # type: ignore[no-untyped-call]
        return tied


class _Implicit(torch.autograd.Function):
    """``z``, a solution of ``equation``, as a function of the tensors; ``dual``: whether adjoint solutions are cotangents."""

    @staticmethod
    def forward(
        ctx: Any,
        equation: Equation,
        linear: LinearSolver,
        on_failure: Literal["warn", "raise"],
        dual: bool,
        z: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        solution = z.clone()
        ctx.options = equation, linear, on_failure, dual
        ctx.save_for_backward(solution, *tensors)
        ctx.set_materialize_grads(False)
        return solution

    @staticmethod
    @reusable_graphs()
    def backward(ctx: Any, cotangent: Tensor | None) -> Any:
        equation, linear, on_failure, dual = ctx.options
        solution, *tensors = ctx.saved_tensors
        if cotangent is None:  # nothing depends on the solution to first order
            return (None,) * (5 + len(tensors))
        record = torch.is_grad_enabled()
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[5:]) if needed]
        with torch.enable_grad(), without_autocast(solution.device):
            # On aliases: derivatives in the solution itself would lead back here without end.
            z = alias(solution, record)
            inputs = [alias(t, record) if i in wanted else t.detach() for i, t in enumerate(tensors)]
            value = equation.residual(z, *inputs)

        def transposed(u: Tensor) -> Tensor:
            (product,) = torch.autograd.grad(value, z, u, retain_graph=True, materialize_grads=True)
            return product

        with torch.no_grad():
            answer = linear.solve(transposed, cotangent.detach(), dual)
        for failure in answer.failures:
            if on_failure == "raise":
                raise ConvergenceError(f"{failure} ({failure.details()}). on_failure='warn' goes on with a warning")
            warn(failure)
        for notice in answer.notices:
            warn(notice)
        adjoint = answer.x
        if record:
            adjoint = _Implicit.apply(  # type: ignore[no-untyped-call]
                _AdjointEquation(equation), linear, on_failure, not dual, adjoint, cotangent, solution, *tensors
            )
        grads = dict(
            zip(
                wanted,
                torch.autograd.grad(value, [inputs[i] for i in wanted], adjoint, create_graph=record, materialize_grads=True),
                strict=True,
            )
        )
        return (None,) * 5 + tuple(grads.get(i) for i in range(len(tensors)))


class _AdjointEquation(Equation):
    r""":math:`J(z, \theta)^\top u + \bar z = 0` in :math:`u`; its tensors are :math:`\bar z`, :math:`z` and those of ``of``."""

    def __init__(self, of: Equation) -> None:
        self._of = of

    def residual(self, z: Tensor, *tensors: Tensor) -> Tensor:
        cotangent, point, *rest = tensors
        with torch.enable_grad():
            point = alias(point, True)
            value = self._of.residual(point, *rest)
            (product,) = torch.autograd.grad(value, point, z, create_graph=True, materialize_grads=True)
        return product + cotangent


class LinearEquation(Equation):
    """``A x + b = 0``, residuals relative to ``b``.

    Parameters
    ----------
    operator
        Products with ``A``.
    b
        ``(*batch, ...)``.
    inner
        Inner product of what ``A`` gives.
    """

    name = "linear equations"

    def __init__(self, operator: Callable[[Tensor], Tensor], b: Tensor, inner: InnerProduct) -> None:
        self.operator, self.b, self.inner = operator, b, inner
        norm = inner.norm(b)
        self._size = torch.where(norm > 0, norm, 1.0)

    def residual(self, z: Tensor, *tensors: Tensor) -> Tensor:
        return self.operator(z) + self.b

    def sizes(self, z: Tensor, residual: Tensor, previous: Iterate | None) -> Sizes:
        # Next to an iterate that grows without limit every residual would be small.
        norm, image, start = self.inner.norms(residual, z + residual, z)
        return Sizes(norm, self._size, start + image)

    def linearize(self, z: Tensor, *, forward_mode: bool = True) -> Linear:
        return _Products(self.operator, z)


class _Products(Linear):
    """Products of a linear operator, which are the same everywhere."""

    def __init__(self, operator: Callable[[Tensor], Tensor], z: Tensor) -> None:
        super().__init__(operator, z)
        self._operator = operator

    def product(self, v: Tensor) -> Tensor:
        self.evaluations += 1
        return self._operator(v)


class _ByMethod(LinearSolver):
    """Solves adjoint equations by a general method, for each sample in units of its right-hand side."""

    def __init__(self, options: Implicit, inner: InnerProduct, status: Tensor, stop: Stop) -> None:
        self._options, self._status = options, status
        self._solver = options.solver or Auto(contraction=0.0)
        self._stop = replace(stop, atol=0.0)
        self._of_cotangents = inner.dual
        self._of_fields = self._of_cotangents.dual

    def solve(self, operator: Callable[[Tensor], Tensor], b: Tensor, dual: bool) -> LinearAnswer:
        inner = self._of_cotangents if dual else self._of_fields
        over = tuple(range(-inner.dims, 0))
        size = b.abs().amax(over, keepdim=True)  # squares of small numbers would be zero
        size = torch.where(size > 0, size, 1.0)
        norm = inner.norm(b / size).reshape(size.shape)
        size = size * torch.where(norm > 0, norm, 1.0)
        equation = LinearEquation(operator, b / size, inner)
        outcome = iterate(equation, self._stop, z=b / size, method=self._solver)
        growth = inner.norm(outcome.value)
        report = AdjointReport(outcome.residual, outcome.steps, outcome.status, growth, outcome.evaluations)
        return LinearAnswer(outcome.value * size, failures=self._judged(report))

    def _judged(self, report: AdjointReport) -> tuple[ConvergenceWarning, ...]:
        if log.isEnabledFor(logging.DEBUG):
            log.debug("adjoint: largest residual %.1e, %d products", float(report.residual.max()), report.products)
        if self._options.report is not None:
            self._options.report(report)
        rtol = self._stop.rtol
        largest = min(1.0 / rtol, torch.finfo(report.growth.dtype).eps ** -0.5)
        considered = self._status != Status.DIVERGED.value
        failed = considered & (report.status != Status.CONVERGED.value)
        singular = considered & ~failed & (report.growth > largest)
        found: list[ConvergenceWarning] = []
        if bool(failed.any()):
            text = (
                "some adjoint equations were not solved: gradients are inexact, or the system is singular (the fixed point is "
                "not isolated). Give the adjoint more steps or another solver, Implicit(solver, stop=Stop(...)), or make the map "
                "contract more"
            )
            found.append(AdjointWarning(text, failed=failed, residual=report.residual, wanted=rtol))
        if bool(singular.any()):
            text = (
                "some adjoint equations are singular to the tolerance: their solutions are many times larger than the gradient "
                "that came in. The fixed point is not isolated, or ill-conditioned: its derivatives are unreliable. Make the map "
                "contract more, or lower the rtol"
            )
            found.append(SingularAdjointWarning(text, failed=singular, residual=report.growth, wanted=largest))
        return tuple(found)
