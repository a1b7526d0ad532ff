"""Set Transformer: attention through inducing points, and pooling by attention."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ddeq.experiments.baselines.base import Baseline
from ddeq.experiments.baselines.layers import Dropout
from ddeq.measures import DiscreteMeasure
from ddeq.nn import MLP, AttentionBlock

__all__ = ["SetTransformer"]


class SetTransformer(Baseline):
    """Blocks in which learned points gather from the atoms and the atoms from them, then one learned query, then logits.

    The attention blocks are those of our own networks: they weigh atoms by their mass, so that this is a function of the
    measure (measure consistency, T1) without ``use_weights``; for equal weights it is the paper's attention. Layer norms come
    before attention and MLP, not after them as in the paper, and the MLPs have a hidden layer.

    Parameters
    ----------
    dim, num_classes, use_weights
        As in `Baseline`.
    width, heads
        Features, and heads of all attentions.
    inducing, blocks
        Inducing points of each block, and number of blocks.
    dropout
        Probability of dropping a feature of the measure.

    Raises
    ------
    ValueError
        If a number is not positive, or ``heads`` does not divide ``width``.

    References
    ----------
    :cite:t:`lee2019set`.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_classes: int,
        use_weights: bool = False,
        width: int = 128,
        heads: int = 4,
        inducing: int = 16,
        blocks: int = 2,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(dim=dim, num_classes=num_classes, use_weights=use_weights)
        if min(width, inducing, blocks) < 1:
            raise ValueError(f"width, inducing, blocks: expected numbers >= 1, got {width}, {inducing}, {blocks}")
        self.embed = nn.Linear(self.in_features, width)
        self.inducing = nn.ParameterList(torch.randn(inducing, width) for _ in range(blocks))
        self.gather = nn.ModuleList(AttentionBlock(width, heads) for _ in range(blocks))
        self.spread = nn.ModuleList(AttentionBlock(width, heads) for _ in range(blocks))
        self.row = MLP(width, width, width)
        self.query = nn.Parameter(torch.randn(1, width))
        self.pool = AttentionBlock(width, heads)
        self.norm = nn.LayerNorm(width)
        self.dropout = Dropout(dropout)
        self.logits = nn.Linear(width, num_classes)

    def scores(self, rho: DiscreteMeasure, generator: torch.Generator | None) -> Float[Tensor, "b classes"]:
        x = self.embed(self.features(rho))
        for inducing, gather, spread in zip(self.inducing, self.gather, self.spread, strict=True):
            points = gather(inducing.expand(len(x), *inducing.shape), x, rho.weights)
            x = spread(x, points, rho.weights.new_ones(points.shape[:-1]))
        pooled = self.pool(self.query.expand(len(x), *self.query.shape), self.row(x), rho.weights).squeeze(-2)
        logits: Tensor = self.logits(self.dropout(self.norm(pooled), generator))
        return logits
