"""Formulas that run on tensors and on KeOps' symbolic tensors: the few operations on which the two differ."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddeq.autodiff import under_transforms

__all__ = ["Symbolic", "at_most", "leading", "logaddexp", "power", "shaped_like", "trailing"]

Symbolic = Any
"""A tensor, a KeOps ``LazyTensor``, or the coordinates of a compiled sum: all have the arithmetic that a formula needs."""


def power(s: Symbolic, p: float) -> Symbolic:
    """``s ** p`` for ``s >= 0`` whose derivatives at ``s = 0`` are all zero instead of infinite or NaN."""
    if isinstance(s, Tensor):
        recorded = torch.is_grad_enabled() and s.requires_grad
        if p > 0 and not (recorded or under_transforms() or torch.compiler.is_compiling()):
            return s.sqrt() if p == 0.5 else s**p
        positive = s > 0
        powers = torch.where(positive, s, 1.0)
        return torch.where(positive, powers.sqrt() if p == 0.5 else powers**p, 0.0)
    if p == 0.5:
        return s.sqrt()  # KeOps differentiates it by Rsqrt, and Rsqrt(0) = 0
    zero = -s  # ifelse tests for >= 0, and s is never negative
    return zero.ifelse(0.0, (p * zero.ifelse(1.0, s).log()).exp())  # KeOps' own powers are in single precision


def logaddexp(a: Symbolic, b: Symbolic) -> Symbolic:
    """``log(exp(a) + exp(b))`` without overflow."""
    if isinstance(a, Tensor):
        return torch.logaddexp(a, b)
    larger = (a - b).ifelse(a, b)
    return larger + ((a - larger).exp() + (b - larger).exp()).log()


def at_most(s: Symbolic, largest: float) -> Symbolic:
    """The smaller of ``s`` and ``largest``."""
    return s.clamp_max(largest) if isinstance(s, Tensor) else largest - (largest - s).relu()


def leading(x: Symbolic, k: int) -> Symbolic:
    """The first ``k`` coordinates of points."""
    return x[..., :k] if isinstance(x, Tensor) else x[:k]


def trailing(x: Symbolic, k: int) -> Symbolic:
    """The coordinates of points from number ``k`` on."""
    return x[..., k:] if isinstance(x, Tensor) else x[k:]


def shaped_like(s: Symbolic, value: float | Tensor) -> Symbolic:
    """A number per measure of the batch in a shape that multiplies ``s``, the pairs of its atoms."""
    if not isinstance(value, Tensor):
        return value
    if isinstance(s, Tensor):
        # A compiled sum has given it one entry for each row of pairs already.
        return value if value.ndim == s.ndim else value.to(s)[..., None, None]
    from pykeops.torch import LazyTensor

    return LazyTensor(value[..., None, None, None].to(getattr(torch, s._dtype)))
