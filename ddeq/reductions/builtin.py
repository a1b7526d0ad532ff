"""The backends that ddeq brings. All but the dense one are imported at first use: their libraries are slow to import."""

from __future__ import annotations

from ddeq.reductions.backends import Backend, register, register_lazily
from ddeq.reductions.dense import Dense

__all__ = ["DENSE"]

DENSE = Dense()
"""The backend that can sum everything."""


def _compiled() -> Backend:
    from ddeq.reductions.compiled import Compiled

    return Compiled()


def _keops() -> Backend:
    from ddeq.reductions.keops import KeOps

    return KeOps()


def _sorted() -> Backend:
    from ddeq.reductions.sorted import Sorted

    return Sorted()


def _products() -> Backend:
    from ddeq.reductions.products import ByProducts

    return ByProducts()


register(DENSE)
register_lazily("keops", _keops)
register_lazily("compiled", _compiled)
register_lazily("sorted", _sorted)
register_lazily("products", _products)
