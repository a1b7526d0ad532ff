"""Sums over pairs in plain PyTorch: stored where the pairs are few, in blocks of rows that are computed again where not."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ddeq.autodiff import gradient, recompute, under_transforms
from ddeq.kernels import Kernel
from ddeq.kernels.distances import FEW, Distances, by_cdist, squared_distances, sums_of_differences
from ddeq.reductions.backend import blocks_are_below, rows_per_block

__all__ = ["are_few", "max_pairs", "sum_function", "sum_gradients", "sum_pairs"]

Pairs = Callable[[Tensor, Tensor], Tensor]
"""``(*batch, n, d)`` and ``(*batch, m, d)`` to ``(*batch, n, m)``."""


def sum_pairs(kernel: Kernel, x: Tensor, y: Tensor, b: Tensor, by: Distances = by_cdist) -> Tensor:
    """``sum_j k(x_i, y_j) b_j``: ``(*batch, n, d)``, ``(*batch, m, d)``, ``(*batch, m, c)`` to ``(*batch, n, c)``.

    ``by``: what computes squared distances, of a radial kernel.
    """
    pairs: Pairs = kernel if by is by_cdist else lambda x, y: kernel.profile(squared_distances(x, y, by))
    return _in_blocks(pairs, x, y, b, kernel, rows_per_block(x, y, _width(kernel, x), cached=True))


def sum_gradients(kernel: Kernel, x: Tensor, y: Tensor, b: Tensor, by: Distances = by_cdist) -> Tensor:
    """``sum_j grad_x k(x_i, y_j) b_j``: ``(*batch, n, d)``, ``(*batch, m, d)``, ``(*batch, m)`` to ``(*batch, n, d)``."""
    if _recorded(kernel, x, y, b) or not kernel.is_radial or under_transforms() or torch.compiler.is_compiling():
        return gradient(lambda p: sum_pairs(kernel, p, y, b.unsqueeze(-1), by), x)
    size = rows_per_block(x, y, _width(kernel, x), cached=True)
    return torch.cat([_block_of_gradients(kernel, block, y, b, by) for block in x.split(size, -2)], -2)


def _recorded(kernel: Kernel, *tensors: Tensor) -> bool:
    """Whether a graph of the sum is wanted: something in it requires grad, or in the kernel, wherever the kernel holds it."""
    if not torch.is_grad_enabled():
        return False
    if any(t.requires_grad for t in tensors):
        return True
    first = tensors[0][..., :1, :].detach()
    recorded: bool = kernel(first, first).requires_grad
    return recorded


@torch.no_grad()
def _block_of_gradients(kernel: Kernel, x: Tensor, y: Tensor, b: Tensor, by: Distances) -> Tensor:
    """By the derivative of the profile: distances are computed once, and there is no pass back through them."""
    s = by(x, y)
    with torch.enable_grad():
        leaf = s.detach().requires_grad_()
        (slope,) = torch.autograd.grad(kernel.profile(leaf), leaf, b.unsqueeze(-2).expand(s.shape), materialize_grads=True)
    return 2.0 * sums_of_differences(slope, x, y, by, s)


@torch.no_grad()
def max_pairs(kernel: Kernel, x: Tensor, y: Tensor, alive: Tensor) -> Tensor:
    """``max_j log k(x_i, y_j)`` over the ``alive`` ``(*batch, m)``: ``(*batch, n)``, without derivatives."""
    size = rows_per_block(x, y, _width(kernel, x), cached=True)
    dead = ~alive.unsqueeze(-2)
    blocks = [kernel.log_matrix(block, y).masked_fill(dead, -torch.inf).amax(-1) for block in x.split(size, -2)]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, -1)


def sum_function(function: Pairs, x: Tensor, y: Tensor, b: Tensor, module: nn.Module | None = None) -> Tensor:
    """``sum_j function(x_i, y_j) b_j``; ``module``: what the function calls and whose tensors may require grad.

    Blocks are computed again in backward. If the function holds other tensors that require grad, they are kept.
    """
    return _in_blocks(function, x, y, b, module, rows_per_block(x, y, x.shape[-1]))


def are_few(x: Tensor, y: Tensor) -> bool:
    """Whether all differences fit into one block."""
    return rows_per_block(x, y, x.shape[-1]) >= x.shape[-2]


def _width(kernel: Kernel, x: Tensor) -> int:
    """How many numbers a pair takes: radial kernels need its distance only, unless blocks are so small that more is stored."""
    distance_only = kernel.is_radial and not under_transforms() and not blocks_are_below(FEW)
    return 1 if distance_only else x.shape[-1]


def _in_blocks(pairs: Pairs, x: Tensor, y: Tensor, b: Tensor, module: nn.Module | None, size: int) -> Tensor:
    def rows(x: Tensor, y: Tensor, b: Tensor) -> Tensor:
        return pairs(x, y) @ b

    if size >= x.shape[-2]:
        return rows(x, y, b)
    blocks = x.split(size, -2)
    if not torch.is_grad_enabled() and not under_transforms():
        return torch.cat([rows(block, y, b) for block in blocks], -2)
    call = _Call(rows, module)
    held = {name: t for name, t in [*call.named_parameters(), *call.named_buffers()] if t.requires_grad}

    def again(x: Tensor, y: Tensor, b: Tensor, *tensors: Tensor) -> tuple[Tensor]:
        return (torch.func.functional_call(call, dict(zip(held, tensors, strict=True)), (x, y, b)),)

    if under_transforms() or _captures(again, x, y, b, held):
        return torch.cat([rows(block, y, b) for block in blocks], -2)
    return torch.cat([recompute(again, block, y, b, *held.values())[0] for block in blocks], -2)


class _Call(nn.Module):
    """A function as a module that owns what the function calls, so that its tensors can be exchanged."""

    def __init__(self, function: Callable[..., Tensor], module: nn.Module | None) -> None:
        super().__init__()
        self.function, self.module = function, module

    def forward(self, *args: Tensor) -> Tensor:
        return self.function(*args)


def _captures(again: Callable[..., tuple[Tensor]], x: Tensor, y: Tensor, b: Tensor, held: dict[str, Tensor]) -> bool:
    """Whether the function requires grad when all of its arguments do not."""
    first = (t[..., :1, :].detach() for t in (x, y, b))
    with torch.enable_grad():
        return again(*first, *(t.detach() for t in held.values()))[0].requires_grad
