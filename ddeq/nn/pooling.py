"""From features of atoms to features of the measure."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ddeq.measures import DiscreteMeasure

__all__ = ["MaxPooling", "MeanPooling"]


class MeanPooling(nn.Module):
    r"""Mean of features under the measure, :math:`\int f \,\mathrm d\mu / \mu(\mathbb R^d)`.

    References
    ----------
    :cite:t:`zaheer2017deep`.
    """

    def forward(self, features: Float[Tensor, "*batch n c"], mu: DiscreteMeasure) -> Float[Tensor, "*batch c"]:
        """Mean of the ``features`` of the atoms of ``mu``; a `ValueError` where the mass is zero."""
        return (mu.normalized().weights.unsqueeze(-2) @ features).squeeze(-2)


class MaxPooling(nn.Module):
    """Supremum of features over the support. It has no derivative in the weights (first variations, T2).

    References
    ----------
    :cite:t:`qi2017pointnet`.
    """

    def forward(self, features: Float[Tensor, "*batch n c"], mu: DiscreteMeasure) -> Float[Tensor, "*batch c"]:
        """Supremum of the ``features`` of the atoms of ``mu``; minus infinity where the mass is zero."""
        return features.masked_fill(~mu.support().unsqueeze(-1), -torch.inf).amax(-2)
