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
    shift: Tensor | None = None
    """What the input as a whole adds to the features of every mark, ``(*batch, width)``; None: nothing."""
    gain: Tensor | None = None
    """It multiplies them by one plus this, ``(*batch, width)``; None: by one."""

    def modulated(self, marks: Tensor) -> Tensor:
        """Features of ``marks``, ``(*batch, n, width)``, as the input as a whole changes them."""
        if self.gain is not None:
            marks = marks * (1.0 + self.gain.unsqueeze(-2))
        return marks if self.shift is None else marks + self.shift.unsqueeze(-2)
