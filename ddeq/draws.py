"""Random numbers: drawn where their generator lives, and moved to where they are wanted.

A generator belongs to a device, and so does a measure; the same generator gives the same numbers wherever the measure is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ddeq.ranks import placed_like

__all__ = ["Draws", "normal", "place_of", "uniform"]


def place_of(generator: torch.Generator | None) -> torch.device:
    """Where a generator draws; the CPU for PyTorch's own one, which is meant where none is given."""
    return torch.device("cpu") if generator is None else generator.device


def uniform(shape: Sequence[int], like: Tensor, generator: torch.Generator | None, dtype: torch.dtype | None = None) -> Tensor:
    """Independent uniform numbers in [0, 1), on the device of ``like``, and of its dtype unless another one is given."""
    return _placed(torch.rand(tuple(shape), generator=generator, dtype=dtype or like.dtype, device=place_of(generator)), like)


def normal(shape: Sequence[int], like: Tensor, generator: torch.Generator | None, dtype: torch.dtype | None = None) -> Tensor:
    """Independent standard normal numbers, likewise."""
    return _placed(torch.randn(tuple(shape), generator=generator, dtype=dtype or like.dtype, device=place_of(generator)), like)


def _placed(drawn: Tensor, like: Tensor) -> Tensor:
    """Where ``like`` is spread over ranks, each draws all numbers and keeps its own: they are those of a single process."""
    return placed_like(drawn.to(like.device), like, atoms=drawn.shape[:-1] == like.shape[:-1])


class Draws:
    """Random fields at the atoms, drawn for all samples of a batch, so that none depends on which others are left.

    Parameters
    ----------
    generator
        Where the randomness comes from.
    points
        The atoms of the whole batch, ``(*batch, n, d)``.
    left
        Entries of the first batch dimension that are wanted; None: all.
    """

    def __init__(self, generator: torch.Generator, points: Tensor, left: Tensor | None = None) -> None:
        self.generator, self._points, self._left = generator, points, left

    def normal(self) -> Tensor:
        """Standard normal vectors at all atoms, ``(*batch, n, d)``."""
        return self._drawn(normal, tuple(self._points.shape))

    def uniform(self) -> Tensor:
        """Two numbers in [0, 1) for each atom, ``(*batch, n, 2)``."""
        return self._drawn(uniform, (*self._points.shape[:-1], 2))

    def rows(self, keep: Tensor) -> Draws:
        """The draws of the entries ``keep`` of the first batch dimension."""
        return Draws(self.generator, self._points, keep if self._left is None else self._left[keep])

    def _drawn(self, draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        drawn = draw(shape, self._points, self.generator)
        return drawn if self._left is None else drawn[self._left]
