"""Sums over pairs and their derivatives from single terms in double precision: what `check_backend` compares backends with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ddeq.kernels import Kernel

__all__ = ["ExactSum", "Pairs", "exact_derivatives", "exact_gradient", "exact_sum", "gradients", "leaves"]


@dataclass(frozen=True)
class Pairs:
    """Points and weights. Two points of ``y`` coincide with points of ``x``, one has weight zero, some weights are negative."""

    x: Tensor
    y: Tensor
    b: Tensor

    @staticmethod
    def draw(
        dim: int, device: torch.device, dtype: torch.dtype, batch: tuple[int, ...] = (), offset: float = 0.0, scale: float = 1.0
    ) -> Pairs:
        """The same random points at each call, moved and scaled."""
        g = torch.Generator().manual_seed(0)
        x, y, b = (torch.randn(*batch, n, k, generator=g, dtype=torch.float64) for n, k in ((5, dim), (4, dim), (6, 2)))
        y = torch.cat([x[..., :2, :], y], -2)
        b = b.masked_fill((torch.arange(6) == 1).unsqueeze(-1), 0.0)
        return Pairs(*(t.to(device, dtype) for t in (x * scale + offset, y * scale + offset, b)))


@dataclass(frozen=True)
class ExactSum:
    """A sum and the sum of the absolute values of its terms, in double precision."""

    value: Tensor
    size: Tensor


def exact_sum(kernel: Kernel, p: Pairs) -> ExactSum:
    """``sum_j k(x_i, y_j) b_j``."""
    k = kernel.pair(p.x.double().unsqueeze(-2), p.y.double().unsqueeze(-3)).detach()
    b = p.b.double()
    return ExactSum(k @ b, k.abs() @ b.abs())


def exact_gradient(kernel: Kernel, p: Pairs) -> ExactSum:
    """``sum_j grad_x k(x_i, y_j) b_j`` for the first of the weights."""
    x, y = leaves(*_of_every_pair(p))
    with torch.enable_grad():
        (terms,) = gradients(kernel.pair(x, y).sum(), [x])
    b = p.b[..., 0].double()[..., None, :, None]
    return ExactSum((terms * b).sum(-2), (terms.norm(dim=-1, keepdim=True) * b.abs()).sum(-2).expand(p.x.shape))


def exact_derivatives(
    kernel: Kernel, p: Pairs, cotangent: Tensor, directions: list[Tensor], distance: float
) -> tuple[list[ExactSum], list[ExactSum]]:
    """First derivatives of ``sum_ik c_ik sum_j k(x_i, y_j) b_jk`` and Hessian-vector products along ``directions``.

    In ``x``, ``y``, ``b`` and the parameters of the kernel. ``distance``: a typical distance of the points.
    """
    x, y, b = leaves(*_of_every_pair(p), p.b.double().unsqueeze(-3).expand(*p.x.shape[:-1], *p.b.shape[-2:]))
    inputs = [x, y, b, *(t for t in kernel.parameters() if t.requires_grad)]
    dx, dy, db, *rest = directions
    along = [dx.unsqueeze(-2), dy.unsqueeze(-3), db.unsqueeze(-3), *rest]
    with torch.enable_grad():
        terms = kernel.pair(x, y).unsqueeze(-1) * b * cotangent.unsqueeze(-2)
        first = gradients(terms.sum(), inputs, create_graph=True)
        second = gradients(sum((d * t).sum() for t, d in zip(first, along, strict=True)), inputs)
    whole = terms.detach().abs().sum()

    def added(found: Sequence[Tensor]) -> list[ExactSum]:
        sums = []
        for t, dimension in zip(found, (-2, -3, -3), strict=False):
            sums.append(ExactSum(t.detach().sum(dimension), t.detach().norm(dim=-1, keepdim=True).sum(dimension)))
        return sums + [ExactSum(t.detach(), torch.maximum(t.detach().abs(), whole)) for t in found[3:]]

    of_first, of_second = added(first), added(second)
    for i in (0, 1):  # the terms of a second derivative may cancel within one pair, as those of |x - y| in dimension one do
        size = torch.maximum(of_second[i].size, of_first[i].size / distance)
        of_second[i] = replace(of_second[i], size=size)
    return of_first, of_second


def leaves(*tensors: Tensor) -> list[Tensor]:
    """Copies without history that require grad."""
    return [t.detach().clone().requires_grad_() for t in tensors]


def gradients(value: Any, inputs: Sequence[Tensor], create_graph: bool = False) -> Sequence[Tensor]:
    """Gradients of a number, zero where it does not depend on an input."""
    if not value.requires_grad:
        return [torch.zeros_like(t) for t in inputs]
    return torch.autograd.grad(value, inputs, create_graph=create_graph, materialize_grads=True)


def _of_every_pair(p: Pairs) -> tuple[Tensor, Tensor]:
    """The points of every pair, ``(*batch, n, m, d)``."""
    shape = (*p.x.shape[:-1], *p.y.shape[-2:])
    return p.x.double().unsqueeze(-2).expand(shape), p.y.double().unsqueeze(-3).expand(shape)
