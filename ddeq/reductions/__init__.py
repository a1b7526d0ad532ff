"""Sums over atoms: the only place of the library where work of order N x M happens.

`integrate` sums over the atoms of one measure; `integrate_kernel` and `integrate_pairs` integrate a function of pairs
against a measure without ever storing more of it than `block_size` allows, `integrate_kernel_gradient` and
`log_integrate_kernel` its gradient and its logarithm; `local_moments` and `local_operators` look at a measure around
a point, `nearest_squared_distance` for the atom that is nearest to it. Which code sums, `backend` decides: ``dense`` (PyTorch,
in blocks), ``compiled`` (loops fused by ``torch.compile``), ``keops`` (symbolic), ``sorted`` (on the line) or ``auto``. All give
the same numbers and the same derivatives of every order.

`shard` spreads the atoms of a measure over several processes, `join_shards` makes one measure of what each of them has, and
`gather` brings it together again; sums over such measures are ``sharded``, each process on its rows by one of these backends.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ddeq.reductions.backend import BackendWarning, Choice, backend, block_size, choose
from ddeq.reductions.integrals import (
    integrate,
    integrate_kernel,
    integrate_kernel_gradient,
    integrate_pairs,
    log_integrate_kernel,
)
from ddeq.reductions.local import local_moments, local_operators
from ddeq.reductions.nearest import nearest_squared_distance

if TYPE_CHECKING:
    from ddeq.reductions.sharded import gather as gather
    from ddeq.reductions.sharded import join_shards as join_shards
    from ddeq.reductions.sharded import shard as shard

__all__ = [
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
    "local_moments",
    "local_operators",
    "log_integrate_kernel",
    "nearest_squared_distance",
    "shard",
]


def __getattr__(name: str) -> Any:
    if name in ("gather", "join_shards", "shard"):  # PyTorch's distributed tensors take a second to import
        return getattr(importlib.import_module("ddeq.reductions.sharded"), name)
    raise AttributeError(f"module 'ddeq.reductions' has no attribute {name!r}")
