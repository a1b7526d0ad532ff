"""The backend of matrix products: sums of radial kernels in many dimensions, where products are the fastest way to distances."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.autodiff import under_transforms, without_autocast
from ddeq.kernels import Kernel
from ddeq.kernels.distances import product
from ddeq.kernels.products import Block, Products, by_products
from ddeq.reductions.dense import Dense
from ddeq.reductions.pairs import NEAR
from ddeq.reductions.settings import rows_per_block

__all__ = ["ByProducts"]


class ByProducts(Dense):
    """Sums of radial kernels over pairs by matrix products, as exact as from differences.

    The points are centred, and pairs that are close relative to their norms are computed from their differences (distances by
    matrix products, T18). Without a graph, blocks of pairs stay in the caches of a CPU.
    """

    name = "products"
    specialised = True

    def __init__(self) -> None:
        super().__init__(by_products)

    def obstacle(self, device: torch.device, kernel: Kernel | None) -> str | None:
        return None if kernel is None or kernel.is_radial else f"{type(kernel).__name__} depends on more than the distance"

    def sum_pairs(
        self,
        kernel: Kernel,
        x: Float[Tensor, "*batch n d"],
        y: Float[Tensor, "*batch m d"],
        b: Float[Tensor, "*batch m c"],
    ) -> Float[Tensor, "*batch n c"]:
        recorded = torch.is_grad_enabled() and any(t.requires_grad for t in (x, y, b))
        if not (recorded or under_transforms()) and _are_blocks(x, y):
            total = _sums(kernel, x, y, b)
            if total is not None:
                return total
        return super().sum_pairs(kernel, x, y, b)

    def _gradients(self, kernel: Kernel, x: Tensor, y: Tensor, b: Tensor) -> Tensor | None:
        if not _are_blocks(x, y):
            return super()._gradients(kernel, x, y, b)
        found = []
        with without_autocast(x.device):
            pairs = Products(x, y)
            for block in _blocks(pairs):
                _, slopes, factor = kernel.profile_and_derivative(block.squares)
                if slopes.requires_grad:
                    return None
                found.append(pairs.gradients(block, slopes, 2.0 * factor * b))
        return found[0] if len(found) == 1 else torch.cat(found, -2)


def _are_blocks(x: Tensor, y: Tensor) -> bool:
    return bool(x.numel() and y.numel()) and x.shape[:-2] == y.shape[:-2]


def _sums(kernel: Kernel, x: Tensor, y: Tensor, b: Tensor) -> Tensor | None:
    """``sum_j k(x_i, y_j) b_j``; None if the kernel holds a tensor that requires grad."""
    found = []
    with without_autocast(x.device):
        for block in _blocks(Products(x, y)):
            values = kernel.profile(block.squares)
            if values.requires_grad:
                return None
            found.append(product(values, b))
    return found[0] if len(found) == 1 else torch.cat(found, -2)


def _blocks(pairs: Products) -> Iterator[Block]:
    x, y = pairs.x, pairs.y
    size = rows_per_block(x, y, 1)
    if x.device.type == "cpu":
        size = min(size, max(1, NEAR * torch.get_num_threads() // (x.shape[:-2].numel() * y.shape[-2])))
    return (pairs.block(begin, min(begin + size, x.shape[-2])) for begin in range(0, x.shape[-2], size))
