"""References: where the state of a DDEQ starts and which marks its atoms bear."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ddeq.draws import normal
from ddeq.integers import whole
from ddeq.measures import DiscreteMeasure, unchecked

__all__ = ["GaussianReference", "LearnedReference", "Reference"]


@runtime_checkable
class Reference(Protocol):
    """Gives the start of a solve; the equilibrium depends on its marks and weights, not on its points."""

    dim: int
    """Dimension of the points."""
    mark_dim: int
    """Dimension of the marks; 0 for none."""

    def __call__(
        self, batch_shape: tuple[int, ...], like: Tensor, n: int | None = None, generator: torch.Generator | None = None
    ) -> DiscreteMeasure:
        """A batch of measures with ``n`` atoms, in the dtype and on the device of ``like``."""
        ...


class LearnedReference(nn.Module):
    """``n`` atoms with learned marks (marks, T6): each atom learns what to look for.

    They start at standard Gaussian points that are drawn once and stay: not learned, since no equilibrium depends on them.

    Parameters
    ----------
    n
        Number of atoms.
    dim
        Dimension of the points.
    mark_dim
        Dimension of the marks; 0 for none, and then an equivariant contraction collapses to one point (collapse, T5).

    Raises
    ------
    ValueError
        If a number is less than one (``mark_dim``: less than zero).
    """

    points: Tensor

    def __init__(self, n: int, dim: int, mark_dim: int) -> None:
        super().__init__()
        self.n, self.dim, self.mark_dim = n, dim, mark_dim = whole("n", n), whole("dim", dim), whole("mark_dim", mark_dim, 0)
        self.marks = nn.Parameter(torch.randn(n, mark_dim)) if mark_dim else None
        self.register_buffer("points", torch.randn(n, dim))

    def forward(
        self, batch_shape: tuple[int, ...], like: Tensor, n: int | None = None, generator: torch.Generator | None = None
    ) -> DiscreteMeasure:
        """``n`` atoms for each entry of ``batch_shape``, in the dtype and on the device of ``like``.

        ``generator`` is not used, since nothing is drawn; another ``n`` than its own is a `ValueError`.
        """
        if n not in (None, self.n):
            raise ValueError(f"n: a LearnedReference has {self.n} marks, got {n}; use a GaussianReference for other numbers")
        points = self.points.to(like).expand(*batch_shape, self.n, self.dim)
        marks = None if self.marks is None else self.marks.to(like.dtype).expand(*batch_shape, *self.marks.shape)
        return unchecked(points, like.new_full(points.shape[:-1], 1.0 / self.n), marks)

    def extra_repr(self) -> str:
        return f"n={self.n}, dim={self.dim}, mark_dim={self.mark_dim}"


class GaussianReference(nn.Module):
    """Atoms at standard Gaussian points with independent standard Gaussian marks, any number of them (marks, T6).

    Without a generator they are drawn from ``seed`` each time, so that the same input gives the same result; all
    samples of a batch share them, so that none depends on its neighbours.

    Parameters
    ----------
    dim
        Dimension of the points.
    mark_dim
        Dimension of the marks, at least 1.
    n
        Number of atoms where the caller names none.
    seed
        Seed of points and marks where the caller gives no generator.

    Raises
    ------
    ValueError
        If a number is less than one.
    """

    def __init__(self, dim: int, mark_dim: int, n: int = 16, seed: int = 0) -> None:
        super().__init__()
        self.dim, self.mark_dim, self.n = whole("dim", dim), whole("mark_dim", mark_dim), whole("n", n)
        self.seed = whole("seed", seed, -(2**63))

    def forward(
        self, batch_shape: tuple[int, ...], like: Tensor, n: int | None = None, generator: torch.Generator | None = None
    ) -> DiscreteMeasure:
        """``n`` atoms, drawn with ``generator``, for all of ``batch_shape`` in the dtype and on the device of ``like``.

        Raises
        ------
        ValueError
            If ``n`` is less than one.
        """
        n = self.n if n is None else whole("n", n, what="number of atoms")
        generator = torch.Generator().manual_seed(self.seed) if generator is None else generator
        drawn = normal((n, self.dim + self.mark_dim), like, generator, torch.float32)  # the same ones in each precision
        points, marks = drawn.to(like).expand(*batch_shape, n, -1).split([self.dim, self.mark_dim], -1)
        return unchecked(points, like.new_full(points.shape[:-1], 1.0 / n), marks)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, mark_dim={self.mark_dim}, n={self.n}, seed={self.seed}"
