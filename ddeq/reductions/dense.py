"""The dense backend: sums over pairs in plain PyTorch, in blocks of rows where the pairs are many."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ddeq.autodiff import check_recordable, gradient, graph_leaves, recompute, under_transforms, without_autocast
from ddeq.kernels import Kernel
from ddeq.kernels.distances import (
    FEW,
    Distances,
    by_cdist,
    product,
    squared_distances,
    sums_of_differences,
)
from ddeq.reductions.backends import Backend
from ddeq.reductions.pairs import are_summed_by_coordinates, gradient_sums
from ddeq.reductions.settings import blocks_are_below, numbers_per_block, rows_per_block

__all__ = ["Dense", "are_few", "sum_function"]

Pairs = Callable[[Tensor, Tensor], Tensor]
"""``(*batch, n, d)`` and ``(*batch, m, d)`` to ``(*batch, n, m)``."""


class Dense(Backend):
    """Sums over pairs in plain PyTorch.

    A kernel matrix is stored if it fits into one block of `block_size` numbers. If not, blocks of its rows are computed one
    after another, and again in the backward pass.

    Parameters
    ----------
    distances
        Function that computes the squared distances of a radial kernel.
    """

    name = "dense"
    transforms = True

    def __init__(self, distances: Distances = by_cdist) -> None:
        self.distances = distances

    def obstacle(self, device: torch.device, kernel: Kernel | None) -> str | None:
        return None

    def sum_pairs(
        self,
        kernel: Kernel,
        x: Float[Tensor, "*batch n d"],
        y: Float[Tensor, "*batch m d"],
        b: Float[Tensor, "*batch m c"],
    ) -> Float[Tensor, "*batch n c"]:
        by = self.distances
        pairs: Pairs = kernel
        if kernel.is_radial and by is not by_cdist:
            pairs = lambda x, y: kernel.profile(squared_distances(x, y, by))  # noqa: E731
        return _in_blocks(pairs, x, y, b, kernel, rows_per_block(x, y, _width(kernel, x), cached=True))

    def sum_gradients(
        self,
        kernel: Kernel,
        x: Float[Tensor, "*batch n d"],
        y: Float[Tensor, "*batch m d"],
        b: Float[Tensor, "*batch m"],
    ) -> Float[Tensor, "*batch n d"]:
        if kernel.is_radial and not under_transforms() and not torch.compiler.is_compiling():
            check_recordable("the gradient of a sum by the dense backend")
            if not (torch.is_grad_enabled() and any(t.requires_grad for t in (x, y, b))):
                total = self._gradients(kernel, x, y, b)
                if total is not None:
                    return total
        with without_autocast(x.device):  # its backward pass runs in here
            return gradient(lambda p: self.sum_pairs(kernel, p, y, b.unsqueeze(-1)), x)

    def _gradients(self, kernel: Kernel, x: Tensor, y: Tensor, b: Tensor) -> Tensor | None:
        """`sum_gradients` without a graph; None if the kernel holds a tensor that requires grad, in whatever way."""
        width = x.shape[-1]
        if self.distances is by_cdist and are_summed_by_coordinates(kernel, x):
            return gradient_sums(kernel, x, y, b)
        if self.distances is by_cdist and x.shape[:-1].numel() * y.shape[-2] * width <= min(FEW, numbers_per_block()):
            return _few_gradients(kernel, x, y, b)
        if torch.is_grad_enabled():
            first = x[..., :1, :].detach()
            if kernel(first, first).requires_grad:
                return None
        size = rows_per_block(x, y, _width(kernel, x), cached=True)
        if size >= x.shape[-2]:
            return _block_of_gradients(kernel, x, y, b, self.distances)
        return torch.cat([_block_of_gradients(kernel, block, y, b, self.distances) for block in x.split(size, -2)], -2)

    @torch.no_grad()
    def max_pairs(
        self,
        kernel: Kernel,
        x: Float[Tensor, "*batch n d"],
        y: Float[Tensor, "*batch m d"],
        alive: Bool[Tensor, "*batch m"],
    ) -> Float[Tensor, "*batch n"]:
        size = rows_per_block(x, y, _width(kernel, x), cached=True)
        dead = ~alive.unsqueeze(-2)
        blocks = [kernel.log_matrix(block, y).masked_fill(dead, -torch.inf).amax(-1) for block in x.split(size, -2)]
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks, -1)


def sum_function(function: Pairs, x: Tensor, y: Tensor, b: Tensor, module: nn.Module | None = None) -> Tensor:
    """``sum_j function(x_i, y_j) b_j``. ``module``: a module that the function calls, whose tensors may require grad.

    Blocks are computed again in the backward pass. They are stored if the function holds other tensors that require grad.
    """
    return _in_blocks(function, x, y, b, module, rows_per_block(x, y, x.shape[-1]))


def are_few(x: Tensor, y: Tensor) -> bool:
    """Whether the differences of all pairs fit into one block."""
    return rows_per_block(x, y, x.shape[-1]) >= x.shape[-2]


def _few_gradients(kernel: Kernel, x: Tensor, y: Tensor, b: Tensor) -> Tensor | None:
    """From stored differences, which takes fewer calls. None if the kernel holds a tensor that requires grad."""
    recorded = torch.is_grad_enabled()
    with torch.no_grad():
        differences = x.unsqueeze(-2) - y.unsqueeze(-3)
        s = differences.square().sum(-1)
    with torch.enable_grad():
        k = kernel.profile(s.requires_grad_())
        if recorded and graph_leaves(k) != {s}:
            return None
        (slope,) = torch.autograd.grad(k, s, b.unsqueeze(-2).expand(s.shape), materialize_grads=True)
    return differences.mul_(slope.unsqueeze(-1)).sum(-2).mul_(2.0)


@torch.no_grad()
def _block_of_gradients(kernel: Kernel, x: Tensor, y: Tensor, b: Tensor, by: Distances) -> Tensor:
    """By the derivative of the profile: distances are computed once, and nothing is differentiated through them."""
    s = by(x, y)
    with torch.enable_grad():
        leaf = s.detach().requires_grad_()
        (slope,) = torch.autograd.grad(kernel.profile(leaf), leaf, b.unsqueeze(-2).expand(s.shape), materialize_grads=True)
    return 2.0 * sums_of_differences(slope, x, y, by, s)


def _width(kernel: Kernel, x: Tensor) -> int:
    """Numbers that are stored for a pair: the distance for a radial kernel, else, and in very small blocks, the difference."""
    distance_only = kernel.is_radial and not under_transforms() and not blocks_are_below(FEW)
    return 1 if distance_only else x.shape[-1]


def _in_blocks(pairs: Pairs, x: Tensor, y: Tensor, b: Tensor, module: nn.Module | None, size: int) -> Tensor:
    """``pairs(x, y) @ b`` in blocks of ``size`` rows. Backward has the blocks of forward: it reads no settings."""
    if size >= x.shape[-2]:
        return product(pairs(x, y), b)

    def rows(x: Tensor, y: Tensor, b: Tensor) -> Tensor:
        return product(pairs(x, y), b)

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
    """A function as a module that owns the module which the function calls, so that its tensors can be exchanged."""

    def __init__(self, function: Callable[..., Tensor], module: nn.Module | None) -> None:
        super().__init__()
        self.function, self.module = function, module

    def forward(self, *args: Tensor) -> Tensor:
        return self.function(*args)


def _captures(again: Callable[..., tuple[Tensor]], x: Tensor, y: Tensor, b: Tensor, held: dict[str, Tensor]) -> bool:
    """Whether the function requires grad although none of its arguments does."""
    first = (t[..., :1, :].detach() for t in (x, y, b))
    with torch.enable_grad():
        return again(*first, *(t.detach() for t in held.values()))[0].requires_grad
