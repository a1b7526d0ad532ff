"""The backend of a sum, when the caller is compiled and when not."""

from __future__ import annotations

import torch
from torch import Tensor

from ddeq.kernels import Kernel
from ddeq.reductions.backends import Backend
from ddeq.reductions.builtin import DENSE
from ddeq.reductions.dense import are_few
from ddeq.reductions.placement import backend_at

__all__ = ["backend_for"]


def backend_for(kernel: Kernel, x: Tensor, y: Tensor, b: Tensor) -> Backend:
    """The backend that sums ``kernel`` over the pairs of ``x`` and ``y`` with the weights ``b``."""
    if not torch.compiler.is_compiling():
        return backend_at(kernel, x, y, b)
    if are_few(x, y):
        return DENSE  # the compiler that traces it fuses it
    from ddeq.reductions.untraced import UNTRACED

    return UNTRACED
