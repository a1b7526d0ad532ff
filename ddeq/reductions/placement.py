"""Where the tensors of a sum are: in one process or spread over ranks. This is asked here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ddeq.kernels import Kernel
from ddeq.measures import DiscreteMeasure
from ddeq.ranks import is_sharded
from ddeq.reductions import dense
from ddeq.reductions.backends import Backend
from ddeq.reductions.choice import chosen

if TYPE_CHECKING:
    from ddeq.reductions.sharded import Sharded

__all__ = ["backend_at", "by_rows", "sum_function", "sum_over_items"]


def backend_at(kernel: Kernel, x: Tensor, y: Tensor, b: Tensor) -> Backend:
    """The backend that sums ``kernel`` over the pairs of ``x`` and ``y`` with the weights ``b``."""
    return _sharded(x, y, b) or chosen(kernel, x, y, b)


def sum_function(
    function: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, b: Tensor, module: nn.Module | None = None
) -> Tensor:
    """`dense.sum_function` of tensors that may be spread over ranks."""
    sharded = _sharded(x, y, b)
    run = dense.sum_function if sharded is None else sharded.sum_function
    return run(function, x, y, b, module)


def sum_over_items(function: Callable[..., Tensor], items: Tensor, *tensors: Tensor) -> Tensor:
    """``function(items, *tensors)``, a sum over ``items``; if ``tensors`` are sharded, each rank takes some of the items."""
    sharded = _sharded(*tensors)
    return function(items, *tensors) if sharded is None else sharded.sum_over_items(function, items, *tensors)


def by_rows(function: Callable[[Tensor, DiscreteMeasure], Tensor], x: Tensor, mu: DiscreteMeasure) -> Tensor:
    """``function(x, mu)``, with one row for each point of ``x``; if the points are sharded, each rank computes its own rows."""
    sharded = _sharded(x, mu.points, mu.weights)
    return function(x, mu) if sharded is None else sharded.by_rows(function, x, mu)


def _sharded(*tensors: Tensor) -> Sharded | None:
    """The backend of tensors that are spread over ranks; None if these are not."""
    if not is_sharded(*tensors):
        return None
    from ddeq.reductions.sharded import SHARDED  # PyTorch's distributed tensors take a second to import

    return SHARDED
