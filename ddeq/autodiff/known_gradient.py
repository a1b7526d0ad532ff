"""Values whose first derivatives are known in closed form, while those of higher order come from how the value is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ddeq.autodiff.derivatives import alias, reusable_graphs

__all__ = ["with_gradient"]

Gradient = Callable[[Sequence[bool]], Sequence[Tensor | None] | None]


def with_gradient(value: Tensor, gradient: Gradient, written: Callable[..., Tensor], tensors: Sequence[Tensor]) -> Tensor:
    """``value``, ``(*batch,)``, as a differentiable function of ``tensors``, ``(*batch, ...)`` each.

    Parameters
    ----------
    value
        The value, without a graph.
    gradient
        Gives the gradients in those of the tensors that are wanted, None for the others; None: they are not known.
    written
        Computes the value from such tensors, so that autograd records it. What else it uses, as the solution of an inner problem
        in which the value is stationary, counts as still in the gradient, and moves in derivatives of the gradient.
    tensors
        All that the value depends on differentiably.
    """
    found: Tensor = _Known.apply(value, gradient, written, *tensors)  # type: ignore[no-untyped-call]
    return found


class _Known(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gradient: Gradient, written: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        ctx.gradient, ctx.written = gradient, written
        ctx.save_for_backward(*tensors)
        return value.view_as(value)

    @staticmethod
    @reusable_graphs()
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        wanted, tensors, record = ctx.needs_input_grad[3:], ctx.saved_tensors, torch.is_grad_enabled()
        known = None if record else ctx.gradient(wanted)
        if known is not None:
            scaled = (None if g is None else cotangent[(...,) + (None,) * (g.ndim - cotangent.ndim)] * g for g in known)
            return (None, None, None, *scaled)
        with torch.enable_grad():
            # On aliases: one of the tensors may be a function of another.
            inputs = [alias(t, record) if needed else t.detach() for t, needed in zip(tensors, wanted, strict=True)]
            value = ctx.written(*inputs)
        some = [t for t, needed in zip(inputs, wanted, strict=True) if needed]
        found = iter(torch.autograd.grad(value, some, cotangent, create_graph=record, materialize_grads=True))
        return (None, None, None, *(next(found) if needed else None for needed in wanted))
