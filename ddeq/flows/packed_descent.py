"""The descent of one species in a flow of several, while the others are held fixed."""

from __future__ import annotations

import copy

from ddeq.flows.descent import FunctionalDescent
from ddeq.functionals.dynamics import Dynamics
from ddeq.iteration import InnerProduct
from ddeq.measures import DiscreteMeasure

__all__ = ["descent_of"]


def descent_of(equation: FunctionalDescent, mu: DiscreteMeasure, dynamics: Dynamics | None = None) -> FunctionalDescent:
    """The descent of the species ``mu``, which follows ``dynamics``, with the numbers for each sample of that of all."""
    own = copy.copy(equation)
    own.like, own.inner = mu, InnerProduct.of(mu.points, mu.weights)
    own.dynamics = equation.dynamics if dynamics is None else dynamics
    own.displacement = None
    for name in ("_open", "tensors", "_driving"):
        own.__dict__.pop(name, None)
    return own
