"""What the cell knows of the input: computed once, kept through the solve."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Context"]


class Context(NamedTuple):
    """Keys, values and masses of the encoded input, and the random draws of this forward pass; every tensor batch-first."""

    keys: tuple[Tensor, ...]
    """For each layer of the cell, ``(*batch, heads, m, width / heads)``."""
    values: tuple[Tensor, ...]
    """The same."""
    weights: Tensor
    """Masses of the input's atoms, ``(*batch, m)``."""
    masks: dict[str, Tensor]
    """Masks of the cell's `Dropout` layers by their keys, ``(*batch, features)``; empty in evaluation."""
