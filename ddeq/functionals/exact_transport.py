"""Optimal transport between discrete measures as a linear program: plans, potentials, and how they change."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddeq.iteration import InnerProblemWarning
from ddeq.messages import warn

__all__ = ["Forest", "Plan", "nearest", "solve"]

Numbers = NDArray[np.float64]
Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Plan:
    """An optimal plan for the cost ``|x - y|^2 / 2``, between places: each the first of the live atoms that lie there."""

    rows: Indices
    columns: Indices
    masses: Numbers
    """Mass that goes from atom ``rows[k]`` to atom ``columns[k]``."""
    source_places: Indices
    target_places: Indices
    """Number of the place of each atom; an atom of mass zero has its own number."""
    source: Numbers
    target: Numbers
    """Potentials, each the c-transform of the other; right at places, zero at other atoms."""


def solve(x: Numbers, a: Numbers, y: Numbers, b: Numbers, max_steps: int) -> Plan:
    """Plan between probabilities ``a`` at ``x``, ``(n, d)``, and ``b`` at ``y``, ``(m, d)``, by POT's network simplex.

    Raises
    ------
    ImportError
        If POT is not installed.

    Warns
    -----
    InnerProblemWarning
        If the solver ends before it has reached the optimum.
    """
    for name in ("PYKEOPS_VERBOSE", "KEOPS_VERBOSE"):  # POT imports KeOps where it is installed, which prints
        os.environ.setdefault(name, "0")
    try:
        import ot
    except ModuleNotFoundError:
        raise ImportError("exact transport needs POT: pip install POT; or use SinkhornDivergence, SlicedWasserstein") from None
    from scipy.spatial.distance import cdist

    (i, p, source_places), (j, q, target_places) = _places(x, a), _places(y, b)
    cost = 0.5 * cdist(x[i], y[j], "sqeuclidean")
    scale = cost.max() or 1.0  # tolerances of the solver are absolute
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan, log = ot.emd(p, q, cost / scale, numItermax=max_steps, log=True)
    v = (cost - scale * log["u"][:, None]).min(0)
    u = (cost - v).min(1)
    if log["warning"] is not None:
        gap = 1.0 - (p @ u + q @ v) / (plan * cost).sum().clip(np.finfo(float).tiny)
        text = (
            "Wasserstein: a linear program was not solved within its steps, and not all mass is transported optimally "
            "(residual: the relative duality gap); take a larger max_steps"
        )
        warn(InnerProblemWarning(text, residual=abs(float(gap))))
    mean = p @ u
    source, target = np.zeros(len(x)), np.zeros(len(y))
    source[i], target[j] = u - mean, v + mean
    rows, columns = np.nonzero(plan)
    return Plan(i[rows], j[columns], plan[rows, columns], source_places, target_places, source, target)


def nearest(points: Numbers, x: Numbers, y: Numbers, potential: Numbers) -> tuple[Indices, Indices]:
    """For each point the one of ``x`` in the same place, else -1, and the one of ``y`` where its c-transform is attained.

    ``x`` and ``y`` are the places of a measure and of the other, which has the ``potential``.
    """
    from scipy.spatial.distance import cdist

    apart = cdist(points, x, "chebyshev")
    same = apart.argmin(1)
    same[apart[np.arange(len(points)), same] > 0] = -1
    return same, (0.5 * cdist(points, y, "sqeuclidean") - potential).argmin(1)


class Forest:
    """The graph of who sends mass to whom, as it is for a basic plan: potentials follow from costs, and masses from marginals.

    Along each arc the two potentials add up to the cost, and at each atom the masses add up to its own. Both are solved in
    the sense of least squares, with the potential of one atom of each tree held.
    """

    def __init__(self, rows: Indices, columns: Indices, n: int, m: int) -> None:
        from scipy.sparse import csr_matrix

        arcs = np.arange(len(rows))
        ends = np.concatenate([rows, n + columns])
        self.size = n + m, len(rows)
        self.incidence = csr_matrix((np.ones(len(ends)), (ends, np.concatenate([arcs, arcs]))), shape=self.size)

    @cached_property
    def _factors(self) -> Any:
        from scipy.sparse import diags
        from scipy.sparse.csgraph import connected_components
        from scipy.sparse.linalg import splu

        normal = self.incidence @ self.incidence.T
        _, tree = connected_components(normal, directed=False)
        held = np.zeros(self.size[0])
        held[np.unique(tree, return_index=True)[1]] = 1.0
        return splu((normal + diags(held)).tocsc())

    def potentials(self, costs: Numbers) -> Numbers:
        """Potentials of all atoms, those of the source first, for costs of the arcs."""
        if not costs.any():
            return np.zeros(self.size[0])
        potentials: Numbers = self._factors.solve(self.incidence @ costs)
        return potentials

    def masses(self, marginals: Numbers) -> Numbers:
        """Masses of the arcs for marginals of all atoms: the transpose of `potentials`."""
        if not marginals.any():
            return np.zeros(self.size[1])
        masses: Numbers = self.incidence.T @ self._factors.solve(marginals)
        return masses


def _places(x: Numbers, a: Numbers) -> tuple[Indices, Numbers, Indices]:
    """First atom of positive mass in each place, in an order that depends on places alone; the mass there; place of each atom."""
    live = np.flatnonzero(a > 0)
    _, first, place = np.unique(x[live], axis=0, return_index=True, return_inverse=True)
    place = place.ravel()
    of_each = np.arange(len(x))
    of_each[live] = live[first][place]
    return live[first], np.asarray(np.bincount(place, a[live]), dtype=np.float64), of_each
