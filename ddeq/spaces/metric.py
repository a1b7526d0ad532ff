"""Linear maps of vectors at each atom as matrices, and their square roots."""

from __future__ import annotations

import torch
from torch import Tensor

from ddeq.spaces.space import Field

__all__ = ["matrix_of", "root_of"]


def matrix_of(map: Field, x: Tensor) -> Tensor:
    """The matrices ``(*batch, n, d, d)`` of a linear map of fields that acts at each point of ``x`` by itself."""
    basis = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    return torch.stack([map(e.expand_as(x)) for e in basis], -1)


def root_of(map: Field, x: Tensor) -> Field:
    """The positive semidefinite root of such a map that is symmetric and positive semidefinite."""
    matrix = matrix_of(map, x)
    values, vectors = torch.linalg.eigh(0.5 * (matrix + matrix.mT))
    root = (vectors * values.clamp_min(0.0).sqrt().unsqueeze(-2)) @ vectors.mT
    return lambda b: (root @ b.unsqueeze(-1)).squeeze(-1)
