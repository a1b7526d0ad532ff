"""Random numbers: drawn where their generator lives, and moved to where they are wanted.

A generator belongs to a device, and so does a measure; the same generator gives the same numbers wherever the measure is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ddeq.ranks import beside

__all__ = ["normal", "place_of", "uniform"]


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
    return beside(drawn.to(like.device), like, atoms=drawn.shape[:-1] == like.shape[:-1])
