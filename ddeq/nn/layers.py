"""Layers that act on each atom by itself, and the block of attention that lets atoms see a measure."""

from __future__ import annotations

import itertools
import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ddeq.nn.attention import KeysAndValues, MeasureAttention

__all__ = ["MLP", "AttentionBlock", "FourierEmbedding"]


class MLP(nn.Sequential):
    """Linear layers of the given ``widths``, input and output included, with GELU between them, on each atom by itself."""

    def __init__(self, *widths: int) -> None:
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            layers += [nn.Linear(a, b), nn.GELU()]
        super().__init__(*layers[:-1])


class FourierEmbedding(nn.Module):
    r"""Positions as features: the coordinates and :math:`\sin, \cos(2^k \pi x)` for ``octaves`` :math:`k`, then linear.

    Parameters
    ----------
    dim
        Dimension of the points; their scale should be about one.
    width
        Features.
    octaves
        Number of frequencies for each coordinate.

    References
    ----------
    :cite:t:`mildenhall2020nerf`.
    """

    frequencies: Tensor

    def __init__(self, dim: int, width: int, octaves: int = 3) -> None:
        super().__init__()
        self.register_buffer("frequencies", math.pi * 2.0 ** torch.arange(octaves), persistent=False)
        self.linear = nn.Linear(dim * (1 + 2 * octaves), width)

    def forward(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n width"]:
        """Features of the points ``x``."""
        angles = (x.unsqueeze(-1) * self.frequencies).flatten(-2)
        features: Tensor = self.linear(torch.cat([x, angles.sin(), angles.cos()], -1))
        return features


class AttentionBlock(nn.Module):
    """A residual block: attention to a measure, then an `MLP`, each behind a layer norm over features.

    Parameters
    ----------
    width
        Features of those who ask and of the atoms of the measure.
    heads
        Heads of the attention; divides ``width``.
    hidden
        Width of the MLP; default twice ``width``.

    Raises
    ------
    ValueError
        If ``heads`` does not divide ``width``.

    References
    ----------
    :cite:t:`vaswani2017attention`; :cite:t:`lee2019set`, on sets.
    """

    def __init__(self, width: int, heads: int = 4, hidden: int | None = None) -> None:
        super().__init__()
        self.norm, self.norm_memory, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.memory = KeysAndValues(width, heads=heads)
        self.attention = MeasureAttention(width, heads)
        self.mlp = MLP(width, hidden or 2 * width, width)

    def forward(
        self, x: Float[Tensor, "*batch n c"], memory: Float[Tensor, "*batch m c"], weights: Float[Tensor, "*batch m"]
    ) -> Float[Tensor, "*batch n c"]:
        """``x`` after it has looked at the atoms ``memory`` of masses ``weights``."""
        x = x + self.attention(self.norm(x), *self.memory(self.norm_memory(memory)), weights)
        out: Tensor = x + self.mlp(self.norm_mlp(x))
        return out
