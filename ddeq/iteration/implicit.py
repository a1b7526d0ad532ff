"""The implicit-function rule: solutions of an equation as differentiable functions of what enters it, at every order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ddeq.autodiff import alias, autocast_now, reusable_graphs

__all__ = ["Equation", "LinearSolve", "implicit_function"]

Equation = Callable[..., Tensor]
"""``g(z, *tensors)``, a tensor of the shape of ``z``, which depends on nothing else that requires grad."""
LinearSolve = Callable[[Callable[[Tensor], Tensor], Tensor, bool], Tensor]
"""``solve(A, b, dual)``: an ``x`` with ``A(x) + b = 0``. ``dual`` says whether ``x`` is a cotangent or, as ``z``, a field."""


def implicit_function(equation: Equation, solve: LinearSolve, z: Tensor, *tensors: Tensor, dual: bool = True) -> Tensor:
    r"""The solution ``z`` of ``g(z, *tensors) = 0`` as a differentiable function of ``tensors`` (T7, T16).

    .. math:: \bar\theta = (\partial_\theta g)^\top u, \qquad (\partial_z g)^\top u + \bar z = 0 .

    The adjoint equation is of the same kind, with :math:`u` in the place of :math:`z`: where a graph of the derivative is
    wanted, the rule applies to it again, so that derivatives of every order are right.

    Parameters
    ----------
    equation
        The function :math:`g`. It is evaluated again in backward, on the tensors that are given here.
    solve
        Solver of the linear equations.
    z
        A solution. Where it is inexact, so are the derivatives.
    tensors
        All tensors that derivatives are wanted in.
    dual
        Passed to ``solve`` for the adjoint equation, and negated from order to order.

    References
    ----------
    :cite:t:`christianson1994reverse`; :cite:t:`blondel2022efficient`.
    """
    solution: Tensor = _Implicit.apply(equation, solve, dual, z.detach(), *tensors)  # type: ignore[no-untyped-call]
    return solution


class _Implicit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, equation: Equation, solve: LinearSolve, dual: bool, z: Tensor, *tensors: Tensor) -> Tensor:
        solution = z.clone()
        ctx.equation, ctx.solve, ctx.dual, ctx.autocast = equation, solve, dual, autocast_now(z.device)
        ctx.save_for_backward(solution, *tensors)
        return solution

    @staticmethod
    @reusable_graphs()
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        solution, *tensors = ctx.saved_tensors
        record = torch.is_grad_enabled()
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[4:]) if needed]
        with torch.enable_grad(), ctx.autocast():
            # On aliases: derivatives in the solution itself would lead back here, for ever.
            z = alias(solution, record)
            inputs = [alias(t, record) if i in wanted else t.detach() for i, t in enumerate(tensors)]
            value = ctx.equation(z, *inputs)

        def transposed(u: Tensor) -> Tensor:
            (product,) = torch.autograd.grad(value, z, u, retain_graph=True, materialize_grads=True)
            return product

        with torch.no_grad():
            adjoint = ctx.solve(transposed, cotangent.detach(), ctx.dual)
        if record:
            adjoint = implicit_function(
                _adjoint_equation(ctx.equation), ctx.solve, adjoint, cotangent, solution, *tensors, dual=not ctx.dual
            )
        grads = dict(
            zip(
                wanted,
                torch.autograd.grad(value, [inputs[i] for i in wanted], adjoint, create_graph=record, materialize_grads=True),
                strict=True,
            )
        )
        return None, None, None, None, *(grads.get(i) for i in range(len(tensors)))


def _adjoint_equation(equation: Equation) -> Equation:
    def adjoint_equation(u: Tensor, cotangent: Tensor, z: Tensor, *tensors: Tensor) -> Tensor:
        with torch.enable_grad():
            z = alias(z, True)
            (product,) = torch.autograd.grad(equation(z, *tensors), z, u, create_graph=True, materialize_grads=True)
        return product + cotangent

    return adjoint_equation
