"""Squared distances from differences, whose derivatives are matrix products instead of sums over an N x M x d array."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.autodiff import under_transforms, without_autocast

__all__ = [
    "FEW_COORDINATES",
    "Distances",
    "by_cdist",
    "differences",
    "product",
    "products_are_reduced",
    "squared_distances",
    "sums_of_differences",
]

FEW = 2**15
"""Differences of so few numbers are simply stored: the calls cost more than the memory."""
FEW_COORDINATES = 3
"""Dimension up to which sums over pairs on CPU are fastest one coordinate at a time."""
MANY_PAIRS = 2**20
"""So many pairs are too many for that: they leave the caches."""
SAFE = 64.0
"""Matrix products serve while centred points are at most so many times larger than the differences that count."""


Distances = Callable[[Tensor, Tensor], Tensor]
"""``(*batch, n, d)`` and ``(*batch, m, d)`` to squared distances ``(*batch, n, m)``, without derivatives."""


def by_cdist(x: Tensor, y: Tensor) -> Tensor:
    """Squared distances as PyTorch has them; of not too many points in few dimensions from differences, which is faster."""
    if 0 < x.shape[-1] <= FEW_COORDINATES and x.device.type == "cpu" and x.shape[-2] * y.shape[-2] <= MANY_PAIRS:
        first, *others = differences(x, y)
        s = first.square_()
        for difference in others:
            s = s.addcmul_(difference, difference)
        return s
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square_()


def squared_distances(
    x: Float[Tensor, "*batch n d"], y: Float[Tensor, "*batch m d"], by: Distances = by_cdist
) -> Float[Tensor, "*batch n m"]:
    """``|x_i - y_j|^2``, never as ``|x|^2 - 2 x y + |y|^2``; differentiable at every order. ``by``: what computes them."""
    few = x.shape[:-2].numel() * x.shape[-2] * y.shape[-2] * x.shape[-1] <= FEW
    if few or under_transforms() or torch.compiler.is_compiling() or x.shape[:-2] != y.shape[:-2]:
        return (x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1)
    distances: Tensor = _SquaredDistances.apply(x, y, by)  # type: ignore[no-untyped-call]
    return distances


class _SquaredDistances(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, by: Distances) -> Tensor:
        ctx.by = by
        ctx.save_for_backward(x, y)
        return by(x, y)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        x, y = ctx.saved_tensors
        of_x = 2.0 * sums_of_differences(cotangent, x, y, ctx.by) if ctx.needs_input_grad[0] else None
        of_y = 2.0 * sums_of_differences(cotangent.mT, y, x, ctx.by) if ctx.needs_input_grad[1] else None
        return of_x, of_y, None


def sums_of_differences(c: Tensor, x: Tensor, y: Tensor, by: Distances = by_cdist, known: Tensor | None = None) -> Tensor:
    """``sum_j c_ij (x_i - y_j)``, ``(*batch, n, d)``, as exact as from the differences; differentiable at every order.

    ``known``: the squared distances, where they are at hand.
    """
    if torch.is_grad_enabled() and any(t.requires_grad for t in (c, x, y)):
        sums: Tensor = _Sums.apply(c, x, y, by)  # type: ignore[no-untyped-call]
        return sums
    return _sums(c, x, y, by, known)


def _sums(c: Tensor, x: Tensor, y: Tensor, by: Distances = by_cdist, known: Tensor | None = None) -> Tensor:
    """By matrix products of centred points, where no difference that counts is much smaller than these."""
    if not c.numel():
        return torch.zeros_like(x)
    centre = y.mean(-2, keepdim=True)
    near, far = x - centre, y - centre
    size = torch.maximum(near.norm(dim=-1).amax(), far.norm(dim=-1).amax())
    s = by(x, y) if known is None else known
    c = torch.where(s > 0, c, 0.0)  # a point and itself add nothing, but for what a product would round
    weight = c.abs()
    if bool((weight.sum(-1) * size <= SAFE * (weight * s.sqrt()).sum(-1)).all()):
        return near * c.sum(-1, keepdim=True) - product(c, far)
    return torch.stack([(c * difference).sum(-1) for difference in differences(x, y)], -1)


def differences(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """The differences of all pairs, one coordinate at a time."""
    return (a.unsqueeze(-1) - b.unsqueeze(-2) for a, b in zip(x.unbind(-1), y.unbind(-1), strict=True))


class _Sums(torch.autograd.Function):
    """``sum_j c_ij (x_i - y_j)``; its derivative in ``c`` is `_Products`, and the other way round."""

    @staticmethod
    def forward(ctx: Any, c: Tensor, x: Tensor, y: Tensor, by: Distances) -> Tensor:
        ctx.by = by
        ctx.save_for_backward(c, x, y)
        return _sums(c, x, y, by)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        c, x, y = ctx.saved_tensors
        of_c = _Products.apply(g, x, y, ctx.by) if ctx.needs_input_grad[0] else None  # type: ignore[no-untyped-call]
        return of_c, g * c.sum(-1, keepdim=True), -product(c.mT, g), None


class _Products(torch.autograd.Function):
    """``g_i . (x_i - y_j)``, ``(*batch, n, m)``."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, y: Tensor, by: Distances) -> Tensor:
        ctx.by = by
        ctx.save_for_backward(g, x, y)
        total = torch.zeros_like(x[..., :1] + y[..., :1].mT)
        for a, difference in zip(g.unbind(-1), differences(x, y), strict=True):
            total.addcmul_(a.unsqueeze(-1).expand_as(difference), difference)
        return total

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> Any:
        g, x, y = ctx.saved_tensors
        of_g = _Sums.apply(c, x, y, ctx.by) if ctx.needs_input_grad[0] else None  # type: ignore[no-untyped-call]
        return of_g, g * c.sum(-1, keepdim=True), -product(c.mT, g), None


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` in the precision of the two, whatever autocast and PyTorch's settings of matrix products are."""
    if torch.compiler.is_compiling():
        return a @ b
    with without_autocast(a.device):
        return (a.double() @ b.double()).to(a.dtype) if products_are_reduced(a) else a @ b


def products_are_reduced(t: Tensor) -> bool:
    """Whether PyTorch's settings allow matrix products of such tensors with fewer digits than their precision has."""
    if t.dtype != torch.float32:
        return False
    try:
        return torch.get_float32_matmul_precision() != "highest" or (t.is_cuda and torch.backends.cuda.matmul.allow_tf32)
    except RuntimeError:  # set by PyTorch's newer interface, to what this one cannot express
        return True
