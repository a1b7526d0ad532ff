"""Sums over pairs in plain PyTorch: broadcast where the pairs are few, in blocks of rows that are computed again where not."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ddeq.reductions.backend import rows_per_block
from ddeq.reductions.recompute import recompute

__all__ = ["sum_pairs"]


def sum_pairs(
    pair: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, b: Tensor, module: nn.Module | None = None
) -> Tensor:
    """``sum_j pair(x_i, y_j) b_j``: ``(*batch, n, d)``, ``(*batch, m, d)``, ``(*batch, m, c)`` to ``(*batch, n, c)``.

    ``pair`` maps ``(*batch, n, 1, d)`` and ``(*batch, 1, m, d)`` to ``(*batch, n, m)``. Blocks are computed again in backward,
    also where ``pair`` calls a ``module`` whose tensors require grad. If it holds other tensors that do, blocks are kept.
    """

    def rows(x: Tensor, y: Tensor, b: Tensor) -> Tensor:
        return pair(x.unsqueeze(-2), y.unsqueeze(-3)) @ b

    size = rows_per_block(x, y)
    if size >= x.shape[-2]:
        return rows(x, y, b)
    call = _Call(rows, module)
    held = {name: t for name, t in [*call.named_parameters(), *call.named_buffers()] if t.requires_grad}

    def again(x: Tensor, y: Tensor, b: Tensor, *tensors: Tensor) -> tuple[Tensor]:
        return (torch.func.functional_call(call, dict(zip(held, tensors, strict=True)), (x, y, b)),)

    if torch._C._are_functorch_transforms_active() or _captures(again, x, y, b, held):
        return torch.cat([rows(block, y, b) for block in x.split(size, -2)], -2)
    return torch.cat([recompute(again, block, y, b, *held.values())[0] for block in x.split(size, -2)], -2)


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
