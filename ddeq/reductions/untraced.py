"""Sums that the caller's ``torch.compile`` does not trace. Imported only then: PyTorch's compiler takes a second to import."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ddeq.kernels import Kernel
from ddeq.reductions.backends import Backend
from ddeq.reductions.placement import backend_at
from ddeq.untraced import untraced

__all__ = ["UNTRACED"]


class Untraced(Backend):
    """The backend that is chosen when the code runs: a compiler can trace neither the choice nor compiled sums."""

    name = "untraced"

    def obstacle(self, device: torch.device, kernel: Kernel | None) -> str | None:
        return None

    @untraced
    def sum_pairs(
        self,
        kernel: Kernel,
        x: Float[Tensor, "*batch n d"],
        y: Float[Tensor, "*batch m d"],
        b: Float[Tensor, "*batch m c"],
    ) -> Float[Tensor, "*batch n c"]:
        return backend_at(kernel, x, y, b).sum_pairs(kernel, x, y, b)

    @untraced
    def sum_gradients(
        self,
        kernel: Kernel,
        x: Float[Tensor, "*batch n d"],
        y: Float[Tensor, "*batch m d"],
        b: Float[Tensor, "*batch m"],
    ) -> Float[Tensor, "*batch n d"]:
        return backend_at(kernel, x, y, b).sum_gradients(kernel, x, y, b)

    @untraced
    def max_pairs(
        self,
        kernel: Kernel,
        x: Float[Tensor, "*batch n d"],
        y: Float[Tensor, "*batch m d"],
        alive: Bool[Tensor, "*batch m"],
    ) -> Float[Tensor, "*batch n"]:
        return backend_at(kernel, x, y, alive).max_pairs(kernel, x, y, alive)


UNTRACED = Untraced()
