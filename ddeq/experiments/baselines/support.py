"""The atoms of positive mass of a batch, one after the other: what layers that must not see padding work on."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["Support"]


class Support:
    """Which atoms of a batch are in the support of their measure.

    Packed, they are the ``total`` rows of one table, measure after measure. Nothing is copied where all atoms bear mass.

    Parameters
    ----------
    inside
        ``(b, n)``, at least one atom in each row.
    """

    def __init__(self, inside: Bool[Tensor, "b n"]) -> None:
        self.inside = inside
        self.sizes = inside.sum(-1)
        place = inside.flatten().nonzero().squeeze(-1)
        self._place = None if len(place) == inside.numel() else place

    def pack(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "total c"]:
        """The rows of the support."""
        rows = x.flatten(0, 1)
        return rows if self._place is None else rows[self._place]

    def unpack(self, x: Float[Tensor, "total c"], fill: float = 0.0) -> Float[Tensor, "b n c"]:
        """The rows where they were, and ``fill`` outside of the support."""
        if self._place is None:
            return x.reshape(*self.inside.shape, -1)
        rows = x.new_full((self.inside.numel(), x.shape[-1]), fill)
        return rows.index_copy(0, self._place, x).reshape(*self.inside.shape, -1)

    def maximum(self, x: Float[Tensor, "total c"]) -> Float[Tensor, "b c"]:
        """Maximum over the support of each measure."""
        return self.unpack(x, -torch.inf).amax(1)

    def average(self, x: Float[Tensor, "total c"]) -> Float[Tensor, "b c"]:
        """Average over the support of each measure, in which all its atoms count the same."""
        return self.unpack(x).sum(1) / self.sizes.unsqueeze(-1)
