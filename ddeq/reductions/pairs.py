"""Sums of a radial kernel over pairs in few dimensions on CPU: one coordinate at a time, in blocks that stay in its caches.

Points and weights require no grad, and nothing here is differentiable. Distances are computed from differences of points.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ddeq.kernels import Kernel
from ddeq.kernels.distances import FEW_COORDINATES, differences
from ddeq.reductions.settings import rows_per_block

__all__ = ["Slopes", "are_summed_by_coordinates", "gradient_sums", "sums_and_gradients"]

NEAR = 2**17
"""Pairs in a block, for each thread."""


def are_summed_by_coordinates(kernel: Kernel, x: Tensor) -> bool:
    """Whether these sums are for the ``kernel`` and points ``x``."""
    return kernel.is_radial and 0 < x.shape[-1] <= FEW_COORDINATES and x.device.type == "cpu"


def gradient_sums(kernel: Kernel, x: Tensor, y: Tensor, b: Tensor) -> Tensor | None:
    """``sum_j b_j grad k(x_i - y_j)``, ``(*batch, n, d)``; None if the kernel holds a tensor that requires grad."""
    found = []
    for block in _blocks(kernel, x, y):
        if block.slopes.requires_grad:
            return None
        found.append(_gradients(block.differences, block.slopes, (2.0 * block.factor) * b))
    return _joined(found, -2)


def sums_and_gradients(kernel: Kernel, x: Tensor, y: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """``sum_j b_j k(x_i - y_j)``, ``(*batch, n)``, and its gradients in ``x``, ``(*batch, n, d)``, in one pass."""
    sums, gradients = [], []
    for block in _blocks(kernel, x, y):
        sums.append(_times(block.values, b))
        gradients.append(_gradients(block.differences, block.slopes, 2.0 * block.factor * b))
    return _joined(sums, -1), _joined(gradients, -2)


@dataclass(frozen=True)
class Slopes:
    """The derivatives of a kernel at all pairs of two sets of points, stored: gradients of further sums cost little."""

    x: Tensor
    """``(*batch, n, d)``"""
    y: Tensor
    """``(*batch, m, d)``"""
    blocks: tuple[Tensor, ...]
    """The derivatives in the squared distance divided by `factor`, ``(*batch, rows, m)`` each."""
    factor: float

    @classmethod
    def of(cls, kernel: Kernel, x: Tensor, y: Tensor, a: Tensor) -> tuple[Tensor, Slopes]:
        """The sums ``sum_i a_i k(x_i - y_j)``, ``(*batch, m)``, and the derivatives, which are found on the way."""
        sums: list[Tensor] = []
        blocks, begin, factor = [], 0, 1.0
        for block in _blocks(kernel, x, y):
            rows = a[..., begin : begin + block.slopes.shape[-2]]
            sums.append((rows.unsqueeze(-2) @ block.values).squeeze(-2))
            blocks.append(block.slopes)
            begin, factor = begin + rows.shape[-1], block.factor
        return sums[0] if len(sums) == 1 else torch.stack(sums).sum(0), cls(x, y, tuple(blocks), factor)

    def gradients(self, b: Tensor) -> Tensor:
        """``sum_j b_j grad k(x_i - y_j)``, ``(*batch, n, d)``."""
        rows, b = self.x.split([block.shape[-2] for block in self.blocks], -2), 2.0 * self.factor * b
        return _joined([_gradients(differences(x, self.y), slopes, b) for x, slopes in zip(rows, self.blocks, strict=True)], -2)

    def rows(self, keep: Tensor) -> Slopes:
        """The pairs of the entries ``keep`` of the first batch dimension."""
        return Slopes(self.x[keep], self.y[keep], tuple(block[keep] for block in self.blocks), self.factor)


class _Block(NamedTuple):
    differences: tuple[Tensor, ...]
    """One coordinate after the other."""
    values: Tensor
    """``(*batch, rows, m)``: the kernel."""
    slopes: Tensor
    """Its derivative in the squared distance divided by `factor`."""
    factor: float


def _blocks(kernel: Kernel, x: Tensor, y: Tensor) -> Iterator[_Block]:
    pairs_of_row = x.shape[:-2].numel() * y.shape[-2]
    size = min(rows_per_block(x, y, x.shape[-1]), NEAR * torch.get_num_threads() // max(1, pairs_of_row))
    for rows in (x,) if size >= x.shape[-2] else x.split(max(1, size), -2):
        first, *others = coordinates = tuple(differences(rows, y))
        s = first.square()
        for difference in others:
            s = s.addcmul_(difference, difference)
        yield _Block(coordinates, *kernel.profile_and_derivative(s))


def _gradients(coordinates: Iterator[Tensor] | tuple[Tensor, ...], slopes: Tensor, b: Tensor) -> Tensor:
    """From differences that are not needed any more."""
    return torch.stack([_times(difference.mul_(slopes), b) for difference in coordinates], -1)


def _times(matrix: Tensor, b: Tensor) -> Tensor:
    return (matrix @ b.unsqueeze(-1)).squeeze(-1)


def _joined(parts: list[Tensor] | tuple[Tensor, ...], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts), dim)
