"""Encoders: from an input measure to the context of a cell, once per input."""

from __future__ import annotations

import torch
from torch import nn

from ddeq.measures import DiscreteMeasure
from ddeq.nn.attention import KeysAndValues
from ddeq.nn.context import Context
from ddeq.nn.layers import MLP, AttentionBlock, FourierEmbedding

__all__ = ["InducedSetEncoder"]


class InducedSetEncoder(nn.Module):
    """Encodes a measure through a few learned inducing points, at a cost linear in the number of its atoms.

    In each block the inducing points gather from the atoms, and the atoms from the inducing points. Keys and values for
    the cell's layers are projected at the end.

    Parameters
    ----------
    dim
        Dimension of the input's points, whose scale should be about one.
    width
        Features.
    heads
        Heads of the attentions.
    inducing
        Number of inducing points.
    blocks
        Number of blocks.
    layers
        Number of layers of the cell that will attend to the input.
    octaves
        Frequencies of the `FourierEmbedding` of positions.

    Raises
    ------
    ValueError
        If ``heads`` does not divide ``width``.

    References
    ----------
    :cite:t:`lee2019set`.
    """

    def __init__(
        self,
        dim: int,
        width: int,
        *,
        heads: int = 4,
        inducing: int = 16,
        blocks: int = 1,
        layers: int = 1,
        octaves: int = 3,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.embed = nn.Sequential(FourierEmbedding(dim, width, octaves), nn.GELU(), MLP(width, width))
        self.inducing = nn.Parameter(torch.randn(inducing, width) * width**-0.5)
        self.gather = nn.ModuleList(AttentionBlock(width, heads) for _ in range(blocks))
        self.spread = nn.ModuleList(AttentionBlock(width, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.project = nn.ModuleList(KeysAndValues(width, heads=heads) for _ in range(layers))

    def forward(self, rho: DiscreteMeasure) -> Context:
        """The context of each measure of the batch ``rho``.

        Raises
        ------
        ValueError
            If the points are not of dimension ``dim``.
        """
        if rho.dim != self.dim:
            raise ValueError(f"rho: expected points of dimension {self.dim}, got {rho.dim}")
        x = self.embed(rho.points)
        points = self.inducing.expand(*rho.batch_shape, *self.inducing.shape)
        equal = points.new_ones(points.shape[:-1])
        for gather, spread in zip(self.gather, self.spread, strict=True):
            points = gather(points, x, rho.weights)
            x = spread(x, points, equal)
        x = self.norm(x)
        pairs = [project(x) for project in self.project]
        return Context(tuple(k for k, _ in pairs), tuple(v for _, v in pairs), rho.weights, {})
