"""Sums over atoms: the only part of the library that does work of order N x M.

`integrate` sums over the atoms of one measure. `integrate_kernel` and `integrate_pairs` integrate a function of pairs against a
measure in blocks of at most `block_size` numbers, `integrate_kernel_gradient` and `log_integrate_kernel` its gradient and its
logarithm; `kernel_average` averages values with a kernel as weights. `local_moments` and `local_operators` describe a measure
around a point, `nearest_squared_distance` is the distance to its support. A `Backend` computes the sums, and `backend` sets
which: ``dense`` (PyTorch, in blocks), ``compiled`` (loops fused by ``torch.compile``), ``keops`` (symbolic formulas), ``sorted``
(by sorting, on the line), ``products`` (matrix products, in many dimensions), ``auto``, or one of your own after `register`.
All give the same numbers and the same derivatives of every order.

`shard` spreads the atoms of a measure over several processes, `join_shards` makes one measure of the parts that they have, and
`gather` collects it again. In sums over such measures each process computes its rows with one of these backends.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ddeq.reductions.backends import Backend, register
from ddeq.reductions.choice import BackendWarning, Choice, choose
from ddeq.reductions.integrals import (
    integrate,
    integrate_kernel,
    integrate_kernel_gradient,
    integrate_pairs,
    kernel_average,
    log_integrate_kernel,
)
from ddeq.reductions.local import local_moments, local_operators
from ddeq.reductions.nearest import nearest_squared_distance
from ddeq.reductions.settings import backend, block_size

if TYPE_CHECKING:
    from ddeq.reductions.sharded import gather as gather
    from ddeq.reductions.sharded import join_shards as join_shards
    from ddeq.reductions.sharded import shard as shard

__all__ = [
    "Backend",
    "BackendWarning",
    "Choice",
    "backend",
    "block_size",
    "choose",
    "gather",
    "integrate",
    "integrate_kernel",
    "integrate_kernel_gradient",
    "integrate_pairs",
    "join_shards",
    "kernel_average",
    "local_moments",
    "local_operators",
    "log_integrate_kernel",
    "nearest_squared_distance",
    "register",
    "shard",
]


def __getattr__(name: str) -> Any:
    if name in ("gather", "join_shards", "shard"):  # PyTorch's distributed tensors take a second to import
        return getattr(importlib.import_module("ddeq.reductions.sharded"), name)
    raise AttributeError(f"module 'ddeq.reductions' has no attribute {name!r}")
