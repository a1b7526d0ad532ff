"""Which form of the pairs of atoms of two measures entropic transport is solved with."""

from __future__ import annotations

from ddeq.functionals.block_plans import BlockPairs
from ddeq.functionals.plans import Pairs, StoredPairs, SummedPairs
from ddeq.measures import DiscreteMeasure
from ddeq.ranks import is_sharded
from ddeq.reductions.settings import numbers_per_block

__all__ = ["pairs_of", "stores_all"]

STORED_UP_TO = 2**24
"""Matrices of up to so many numbers, the batch included, are stored."""
BLOCKS_FROM = 2**20
"""From so many pairs on it is worth while to look for those that do not count."""


def pairs_of(mu: DiscreteMeasure, nu: DiscreteMeasure) -> Pairs:
    """The pairs of atoms: stored where memory and `ddeq.reductions.block_size` allow it; all, or those that count."""
    if is_sharded(mu.points) or is_sharded(nu.points):
        return SummedPairs(mu, nu)
    whole = StoredPairs(mu, nu) if stores_all(mu, nu) else SummedPairs(mu, nu)
    if mu.batch_shape or mu.n * nu.n < BLOCKS_FROM:
        return whole
    return BlockPairs(mu, nu, whole, _most())


def stores_all(mu: DiscreteMeasure, nu: DiscreteMeasure) -> bool:
    """Whether all pairs of both measures may be stored."""
    return mu.weights[..., 0].numel() * mu.n * nu.n <= _most()


def _most() -> int:
    return min(STORED_UP_TO, numbers_per_block())
