"""Dropout for equilibrium cells: one mask for all atoms and all evaluations of a solve."""

from __future__ import annotations

import uuid

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ddeq.draws import uniform
from ddeq.nn.context import Context

__all__ = ["Dropout", "draw_masks"]


class Dropout(nn.Module):
    """Dropout whose mask comes from the context: one for each sample and feature, the same for all atoms.

    A mask that changed between evaluations would leave no fixed point to find; one that differed between atoms would
    not be a function of the measure. `DDEQ` draws the masks once per forward pass, in training only.

    Parameters
    ----------
    features
        Size of the last dimension.
    p
        Probability of dropping a feature.

    Raises
    ------
    ValueError
        If ``p`` is not in [0, 1).

    References
    ----------
    :cite:t:`gal2016theoretically`, one mask for all steps of a recurrent network.
    """

    def __init__(self, features: int, p: float = 0.1) -> None:
        super().__init__()
        if not 0.0 <= p < 1.0:
            raise ValueError(f"p: expected 0 <= p < 1, got {p}")
        self.features, self.p, self.key = features, p, uuid.uuid4().hex

    def forward(self, x: Float[Tensor, "*batch n c"], context: Context) -> Float[Tensor, "*batch n c"]:
        """Features ``x`` as the mask in the ``context`` leaves them; a `RuntimeError` in training if none was drawn."""
        # The context decides, not the mode: a backward pass after .eval() sees the map that was solved.
        mask = getattr(context, "masks", {}).get(self.key)
        if mask is None:
            if not self.training or self.p == 0:
                return x
            raise RuntimeError(
                "no mask was drawn for this Dropout: it works in the cell of a DDEQ whose context is a ddeq.nn.Context; call the "
                "cell through the DDEQ, or .eval() it"
            )
        dropped: Tensor = x * mask.unsqueeze(-2)
        return dropped

    def extra_repr(self) -> str:
        return f"features={self.features}, p={self.p}"


def draw_masks(
    cell: nn.Module, batch_shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None
) -> dict[str, Tensor]:
    """A mask for each `Dropout` of a cell by its key, scaled so that its mean is one."""
    masks: dict[str, Tensor] = {}
    for layer in cell.modules():
        if isinstance(layer, Dropout) and layer.p > 0:
            if layer.key in masks:  # a copy of another layer
                layer.key = uuid.uuid4().hex
            keep = uniform((*batch_shape, layer.features), like, generator) >= layer.p
            masks[layer.key] = keep.to(like.dtype) / (1.0 - layer.p)
    return masks
