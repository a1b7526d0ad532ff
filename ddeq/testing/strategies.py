"""Hypothesis strategies: measures with what goes wrong in practice, kernels, permutations. Needs hypothesis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import strategies as st

from ddeq import kernels as k
from ddeq.measures import DiscreteMeasure

__all__ = ["contractions", "kernels", "measures", "permutations"]

NICE_FLOATS = st.integers(-32, 32).map(lambda k: k / 16)
"""Coordinates on a grid: atoms coincide, or are well apart."""


@st.composite
def measures(
    draw: Any,
    *,
    dim: int = 2,
    min_atoms: int = 1,
    max_atoms: int = 5,
    batch_shapes: Sequence[tuple[int, ...]] = ((), (2,)),
    mark_dim: int = 0,
    dtype: torch.dtype = torch.float64,
    offsets: Sequence[float] = (0.0, 1e4),
    scales: Sequence[float] = (1.0, 1e-6),
    normalized: bool = True,
    dead_atoms: bool = True,
) -> DiscreteMeasure:
    """Measures with few atoms, some coincident or of mass zero, single atoms, far away and tiny measures.

    Parameters
    ----------
    dim, mark_dim, dtype
        What the points and marks are; 0 for no marks.
    min_atoms, max_atoms, batch_shapes
        Sizes.
    offsets, scales
        All points are multiplied by one of ``scales`` and moved by one of ``offsets``.
    normalized
        Whether the mass is one.
    dead_atoms
        Whether atoms of mass zero occur; each measure has an atom of positive mass.
    """
    n, batch = draw(st.integers(min_atoms, max_atoms)), draw(st.sampled_from(list(batch_shapes)))
    rows = int(torch.Size(batch).numel())

    def tensor(numbers: st.SearchStrategy[float], *shape: int) -> torch.Tensor:
        size = int(torch.Size(shape).numel())
        drawn = draw(st.lists(numbers, min_size=size, max_size=size))
        return torch.tensor(drawn, dtype=dtype).reshape(shape)

    points = tensor(NICE_FLOATS, rows, n, dim)
    if n > 1 and draw(st.booleans()):
        points[:, -1] = points[:, 0]
    weights = tensor(st.floats(0.125, 1.0, width=16), rows, n)
    if dead_atoms and n > 1 and draw(st.booleans()):
        weights[:, draw(st.integers(1, n - 1))] = 0.0
    if normalized:
        weights = weights / weights.sum(-1, keepdim=True)
    points = points * draw(st.sampled_from(list(scales))) + draw(st.sampled_from(list(offsets)))
    marks = tensor(NICE_FLOATS, *batch, n, mark_dim) if mark_dim else None
    return DiscreteMeasure(points.reshape(*batch, n, dim), weights.reshape(*batch, n), marks)


def kernels() -> st.SearchStrategy[k.Kernel]:
    """Kernels of every kind, at bandwidths of about one."""
    bandwidths = st.sampled_from([0.5, 1.0, 2.0])
    simple = st.one_of(
        st.builds(k.Gaussian, bandwidths),
        st.builds(k.Laplace, bandwidths),
        st.builds(k.IMQ, bandwidths),
        st.builds(k.Matern, st.sampled_from([1.5, 2.5]), bandwidths),
        st.builds(k.Riesz, st.sampled_from([0.5, 1.0, 1.5])),
        st.builds(lambda a, b: k.Gaussian([a, b]), bandwidths, bandwidths),
    )
    return st.one_of(simple, st.builds(lambda a, b: a + 0.5 * b, simple, simple))


def permutations(n: int) -> st.SearchStrategy[torch.Tensor]:
    """Orders of ``n`` atoms, as `DiscreteMeasure.permute_atoms` takes them."""
    return st.permutations(range(n)).map(torch.tensor)


@st.composite
def contractions(draw: Any, *, dim: int = 2, hidden: int = 3) -> Callable[..., DiscreteMeasure]:
    r"""Random smooth maps ``map(mu, matrix, shift)`` on measures that contract if ``matrix``, ``(dim, dim)``, has norm at
    most one: for problems with derivatives in everything that enters.

    Each is :math:`z_i \mapsto \tanh(a A z_i + B m + u_i + c) + D \int \tanh(C z)\,\mathrm d\mu` with the mean
    :math:`m`, marks :math:`u` (where there are any), :math:`A` and :math:`c` given, and :math:`a + |B| + |C||D| < 1`.
    """
    seed = draw(st.integers(0, 2**16))
    own, by_mean, by_features = draw(st.sampled_from([(0.5, 0.2, 0.2), (0.2, 0.1, 0.6), (0.8, 0.0, 0.1)]))
    g = torch.Generator().manual_seed(seed)

    def of_norm(norm: float, *shape: int) -> torch.Tensor:
        matrix = torch.randn(*shape, generator=g, dtype=torch.float64)
        scaled: torch.Tensor = norm * matrix / torch.linalg.matrix_norm(matrix, 2)
        return scaled

    b, c, d = of_norm(1.0, dim, dim), of_norm(1.0, dim, hidden), of_norm(by_features, hidden, dim)

    def contraction(mu: DiscreteMeasure, matrix: torch.Tensor, shift: torch.Tensor) -> DiscreteMeasure:
        masses = mu.normalized().weights.unsqueeze(-2)
        drive = shift if mu.marks is None else shift + mu.marks
        inner = own * (mu.points @ matrix.mT) + by_mean * (masses @ mu.points @ b.to(mu.points)) + drive
        return mu.with_points(inner.tanh() + masses @ (mu.points @ c.to(mu.points)).tanh() @ d.to(mu.points))

    return contraction
