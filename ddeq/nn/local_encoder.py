"""`LocalEncoder`: an encoder that sees the geometry of its input around each atom, at several scales."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ddeq.measures import DiscreteMeasure
from ddeq.nn.attention import KeysAndValues
from ddeq.nn.coarsening import coarsen
from ddeq.nn.context import Context
from ddeq.nn.layers import MLP, FourierEmbedding
from ddeq.nn.local import LocalBlock, LocalConvolution
from ddeq.nn.pooling import MaxPooling, MeanPooling
from ddeq.reductions import local_moments, local_operators
from ddeq.reductions.local import count_terms

__all__ = ["LocalEncoder"]


class LocalEncoder(nn.Module):
    r"""Encodes a measure by what it looks like around each atom, without lists of neighbours.

    1. Each atom gets features from its place and from `ddeq.reductions.local_moments` at the bandwidths ``moments``.
    2. A `LocalBlock` for each bandwidth in ``fine`` lets them see their surroundings.
    3. Where ``centres`` is a number, a `LocalConvolution` for each bandwidth in ``pooling`` gathers them at that many centres
       (`coarsen`), and a `LocalBlock` for each bandwidth in ``coarse`` acts there.
    4. The keys and values of the cell are projected from what is there at the end. Its supremum over the support and its mean
       say what the input is as a whole: the shift, normalised, and the gain of the `Context`.

    All of it are functions of the measure (measure consistency, T1), equivariant under translations but for the features of
    places (local geometry, T19).

    Parameters
    ----------
    dim
        Dimension of the input's points, whose scale should be about one.
    width
        Width of the cell, and of the features at the centres.
    features
        Features of each atom.
    inner
        Features inside the convolutions.
    moments, fine, pooling, coarse
        Bandwidths, as said above.
    centres
        Number of centres; None to stay at the atoms, and then ``coarse`` must be empty.
    heads
        Heads of the cell's attention.
    layers
        Number of layers of the cell that will attend to the input.
    pooled
        Number of features of which the supremum and the mean are taken.
    octaves
        Frequencies of the `FourierEmbedding` of positions.

    Raises
    ------
    ValueError
        If there are bandwidths for centres and no centres, no ``moments``, or bandwidths or ``centres`` that are not positive; or
        if ``heads`` does not divide ``width``.

    References
    ----------
    :cite:t:`qi2017pointnetpp`, who gather features at centres; :cite:t:`lindeberg2022scale`, on derivatives of Gaussians as
    layers.
    """

    def __init__(
        self,
        dim: int,
        width: int,
        *,
        features: int = 64,
        inner: int = 64,
        moments: Sequence[float] = (0.1, 0.2, 0.4),
        fine: Sequence[float] = (),
        centres: int | None = 96,
        pooling: Sequence[float] = (0.15, 0.3),
        coarse: Sequence[float] = (0.3, 0.6),
        heads: int = 4,
        layers: int = 1,
        pooled: int = 256,
        octaves: int = 3,
    ) -> None:
        super().__init__()
        if centres is None and coarse:
            raise ValueError(f"coarse: expected no bandwidths without centres, got {list(coarse)}")
        if centres is not None and not pooling:
            raise ValueError("pooling: expected a bandwidth at least, by which the centres see the atoms; got none")
        for name, bandwidths in (("moments", moments), ("fine", fine), ("pooling", pooling), ("coarse", coarse)):
            if not all(h > 0 for h in bandwidths) or (name == "moments" and not bandwidths):
                raise ValueError(f"{name}: expected positive bandwidths, got {list(bandwidths)}")
        if centres is not None and centres < 1:
            raise ValueError(f"centres: expected a positive number or None, got {centres}")
        self.dim, self.centres = dim, centres
        self.moments, self.fine, self.pooling, self.coarse = tuple(moments), tuple(fine), tuple(pooling), tuple(coarse)
        terms = count_terms(dim, 2)
        self.place = FourierEmbedding(dim, features, octaves)
        self.shape = MLP(len(self.moments) * terms, features, features, features)
        self.fine_blocks = nn.ModuleList(LocalBlock(features, terms, inner=inner) for _ in self.fine)
        if centres is not None:
            self.norm = nn.LayerNorm(features)
            self.gather = nn.ModuleList(LocalConvolution(features, inner, terms) for _ in self.pooling)
            self.gathered = nn.Linear(inner * len(self.pooling), width)
            self.own = nn.Linear(features, width)
            self.centre_place = FourierEmbedding(dim, width, octaves)
            self.coarse_blocks = nn.ModuleList(LocalBlock(width, terms, inner=inner) for _ in self.coarse)
            features = width
        self.norm_tokens = nn.LayerNorm(features)
        self.project = nn.ModuleList(KeysAndValues(features, width, heads) for _ in range(layers))
        self.before_pooling = nn.Linear(features, pooled)
        self.supremum, self.mean = MaxPooling(), MeanPooling()
        self.norm_shift = nn.LayerNorm(width, elementwise_affine=False)
        self.whole = nn.Sequential(nn.GELU(), nn.Linear(2 * pooled, 2 * width))

    def forward(self, rho: DiscreteMeasure) -> Context:
        """The context of each measure of the batch ``rho``, in the precision of its points.

        Raises
        ------
        ValueError
            If the points are not of dimension ``dim``.
        """
        if rho.dim != self.dim:
            raise ValueError(f"rho: expected points of dimension {self.dim}, got {rho.dim}")
        rho = rho.normalized()
        f = self.place(rho.points) + self.shape(local_moments(rho.points, rho, self.moments))
        f = _convolve(f, rho, self.fine_blocks, self.fine)
        if self.centres is not None:
            f, rho = self._coarsen(f, rho, self.centres)
            f = _convolve(f, rho, self.coarse_blocks, self.coarse)
        tokens = self.norm_tokens(f)
        pairs = [project(tokens) for project in self.project]
        kept = self.before_pooling(tokens)
        whole = self.whole(torch.cat([self.supremum(kept, rho), self.mean(kept.to(rho.dtype), rho).to(kept.dtype)], -1))
        shift, gain = whole.chunk(2, -1)
        shift = self.norm_shift(shift)  # of the size of the state, which a larger one would drown: nothing were left to solve
        return Context(tuple(k for k, _ in pairs), tuple(v for _, v in pairs), rho.weights, {}, shift, gain)

    def _coarsen(self, f: Tensor, rho: DiscreteMeasure, centres: int) -> tuple[Tensor, DiscreteMeasure]:
        """Features ``(*batch, centres, width)`` of the centres, and the measure that they form."""
        coarse, index = coarsen(rho, centres, min(self.pooling))
        f = self.norm(f)
        seen = [
            gather(f, local_operators(coarse.points, rho, bandwidth))
            for gather, bandwidth in zip(self.gather, self.pooling, strict=True)
        ]
        own = f.gather(-2, index.unsqueeze(-1).expand(*index.shape, f.shape[-1]))
        gathered = self.gathered(nn.functional.gelu(torch.cat(seen, -1)))
        return gathered + self.own(own) + self.centre_place(coarse.points), coarse


def _convolve(f: Tensor, mu: DiscreteMeasure, blocks: nn.ModuleList, bandwidths: Sequence[float]) -> Tensor:
    operators = {bandwidth: local_operators(mu.points, mu, bandwidth) for bandwidth in set(bandwidths)}
    for block, bandwidth in zip(blocks, bandwidths, strict=True):
        f = block(f, operators[bandwidth])
    return f
