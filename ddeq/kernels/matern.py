r"""Profiles of Matérn kernels, whose derivatives are profiles of the next lower order.

With :math:`t = \sqrt u` the profiles :math:`g_0 = e^{-t}`, :math:`g_1 = (1 + t) e^{-t}`, :math:`g_2 = (1 + t + t^2/3) e^{-t}`
have :math:`g_1' = -g_0/2` and :math:`g_2' = -g_1/6` in :math:`u`. Differentiating the formulas as they stand would cancel for
small :math:`t` and give zero at :math:`t = 0`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddeq.autodiff import forward_levels
from ddeq.kernels.symbols import Symbolic, power

__all__ = ["log_matern_profile", "matern_profile"]

DERIVATIVE = (0.0, -1 / 2, -1 / 6)
ORDERS = 4
"""How many derivatives of ``g_0``, which are singular where atoms meet, the polynomial of `_change` has."""


def matern_profile(u: Symbolic, order: int) -> Symbolic:
    """``g_order(u)``."""
    if order and isinstance(u, Tensor):
        if forward_levels() > 1:
            return _value(u.detach(), order, log=False) * _change(u, order)
        return _Matern.apply(u, order, False)  # type: ignore[no-untyped-call]
    t = power(u, 0.5)
    return _polynomial(t, order) * (-t).exp() if order else (-t).exp()


def log_matern_profile(u: Symbolic, order: int) -> Symbolic:
    """``log g_order(u)``, finite where the profile itself underflows."""
    if order and isinstance(u, Tensor):
        if forward_levels() > 1:
            return _value(u.detach(), order, log=True) + _change(u, order).log()
        return _Matern.apply(u, order, True)  # type: ignore[no-untyped-call]
    t = power(u, 0.5)
    return _polynomial(t, order).log() - t if order else -t


def _polynomial(t: Symbolic, order: int) -> Symbolic:
    return 1.0 + t if order == 1 else 1.0 + t + t * t / 3.0 if order == 2 else torch.ones_like(t)


def _value(u: Tensor, order: int, log: bool) -> Tensor:
    t = u.sqrt()
    value: Tensor = _polynomial(t, order).log() - t if log else _polynomial(t, order) * (-t).exp()
    return value


def _change(u: Tensor, order: int) -> Tensor:
    """``g_order(u)`` in units of its value: one, with the derivatives of a Taylor polynomial around the numbers as they are.

    This takes the place of `_Matern` under forward mode within forward mode, where PyTorch does not differentiate its ``jvp``.
    """
    here = u.detach()
    t, step = power(here, 0.5), u - here
    total, term, known = torch.ones_like(here), torch.ones_like(here), _polynomial(t, order)
    factor, powers = 1.0, {0: 1.0}  # g_0 and its derivatives are e^-t times sums of powers of 1/t
    for k in range(1, order + ORDERS + 1):
        term = term * step / k
        if k <= order:
            factor *= DERIVATIVE[order - k + 1]
            derivative = factor * _polynomial(t, order - k)
        else:
            following: dict[int, float] = {}
            for m, c in powers.items():
                following[m + 1] = following.get(m + 1, 0.0) - c / 2
                following[m + 2] = following.get(m + 2, 0.0) - c * m / 2
            powers = following
            inverse = torch.where(t > 0, 1.0 / torch.where(t > 0, t, 1.0), 0.0)
            derivative = factor * sum((c * inverse**m for m, c in powers.items()), torch.zeros_like(t))
            derivative = torch.where(torch.isfinite(derivative), derivative, 0.0)
        total = total + derivative / known * term
    return total


class _Matern(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, order: int, log: bool) -> Tensor:
        return _value(u, order, log)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        u, ctx.order, ctx.log = inputs
        ctx.save_for_backward(u)
        ctx.save_for_forward(u)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        (u,) = ctx.saved_tensors
        return cotangent * _derivative(u, ctx.order, ctx.log), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        (u,) = ctx.saved_tensors
        return tangent * _derivative(u, ctx.order, ctx.log)


def _derivative(u: Tensor, order: int, log: bool) -> Tensor:
    if not log:
        derivative: Tensor = DERIVATIVE[order] * matern_profile(u, order - 1)
        return derivative
    t = power(u, 0.5)
    ratio: Tensor = _polynomial(t, order - 1) / _polynomial(t, order)
    return DERIVATIVE[order] * ratio
