"""The backend of matrix products: sums of radial kernels in many dimensions, where products are the fastest way to distances."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.autodiff import under_transforms, without_autocast
from ddeq.kernels import Kernel
from ddeq.kernels.distances import product
from ddeq.kernels.products import Block, Differences, Products, add_sums, by_products
from ddeq.reductions.dense import Dense
from ddeq.reductions.pairs import NEAR
from ddeq.reductions.settings import numbers_per_block

__all__ = ["ByProducts"]

FEWEST = 64
"""Rows of a block that are not given up for the caches: products of a few rows read all points for little."""


class ByProducts(Dense):
    """Sums of radial kernels over pairs by matrix products, as exact as from differences.

    The points are centred, and pairs that are close relative to their norms are computed from their differences (distances by
    matrix products, T18). Without a graph, blocks of pairs stay in the caches of a CPU, and pairs of points of one set are
    computed once.
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
        if not (recorded or under_transforms()) and _are_pairs(x, y):
            total = _sums(kernel, x, y, b)
            if total is not None:
                return total
        return super().sum_pairs(kernel, x, y, b)

    def _gradients(self, kernel: Kernel, x: Tensor, y: Tensor, b: Tensor) -> Tensor | None:
        if not _are_pairs(x, y):
            return super()._gradients(kernel, x, y, b)
        pairs = Products(x, y)
        with without_autocast(x.device):
            factor, sums = 1.0, Differences(pairs, b)
            for block in _blocks(pairs):
                _, slopes, factor = kernel.profile_and_derivative(block.squares)
                if slopes.requires_grad:
                    return None
                sums.add(block, slopes)
            return sums.total.mul_(2.0 * factor)


def _are_pairs(x: Tensor, y: Tensor) -> bool:
    return bool(x.numel() and y.numel()) and x.shape[:-2] == y.shape[:-2]


def _sums(kernel: Kernel, x: Tensor, y: Tensor, b: Tensor) -> Tensor | None:
    """``sum_j k(x_i, y_j) b_j``; None if the kernel holds a tensor that requires grad."""
    pairs, total = Products(x, y), None
    with without_autocast(x.device):
        for block in _blocks(pairs):
            values = kernel.profile(block.squares)
            if values.requires_grad:
                return None
            if values.shape[-2:] == (x.shape[-2], y.shape[-2]):
                return product(values, b)
            total = b.new_zeros(*x.shape[:-1], b.shape[-1]) if total is None else total
            add_sums(total, pairs, block, values, b)
    return total


def _blocks(pairs: Products) -> Iterator[Block]:
    """All pairs, those of points of one set once."""
    x, y = pairs.x, pairs.y
    begin, n, m, batch = 0, x.shape[-2], y.shape[-2], x.shape[:-2].numel()
    numbers, near = numbers_per_block(), NEAR * torch.get_num_threads()
    while begin < n:
        first = begin if pairs.same else 0
        row = batch * (m - first)
        size = max(1, numbers // row)
        if x.device.type == "cpu":
            size = min(size, max(FEWEST, near // row))
        yield pairs.block(begin, begin + size, first)
        begin += size
