"""The equilibrium cell: the map on measures whose fixed point a DDEQ computes."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ddeq.measures import DiscreteMeasure
from ddeq.nn.attention import KeysAndValues, MeasureAttention
from ddeq.nn.context import Context
from ddeq.nn.dropout import Dropout
from ddeq.nn.layers import MLP

__all__ = ["EquilibriumCell"]


class EquilibriumCell(nn.Module):
    r"""A map on marked measures, given the context of an input.

    An atom with mark :math:`u` at :math:`z` goes to :math:`\mathrm{LN}(h)`, where :math:`h` starts as
    :math:`\alpha z + (1 + g) \odot U u + s`, with the gain :math:`g` and the shift :math:`s` that a context may have, and
    passes through layers of attention to the input, attention to the measure itself, and an `MLP`, all residual. The last
    layer norm bounds the image, so that a fixed point exists; :math:`\alpha` starts at one half, so that the map contracts
    before training. `ddeq.nn.jacobian_penalty` keeps it so.

    Parameters
    ----------
    width
        Dimension of the points.
    mark_dim
        Dimension of the marks; 0 for none.
    heads
        Heads of the attentions; divides ``width``.
    layers
        Number of layers, as many as the encoder prepares for.
    hidden
        Width of the MLPs; default twice ``width``.
    dropout
        Probability of `Dropout` in front of each MLP.

    Raises
    ------
    ValueError
        If ``heads`` does not divide ``width``.

    References
    ----------
    :cite:t:`geuter2025ddeqs`; :cite:t:`vaswani2017attention`.
    """

    def __init__(
        self,
        width: int,
        mark_dim: int,
        *,
        heads: int = 4,
        layers: int = 1,
        hidden: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.width, self.mark_dim = width, mark_dim
        self.gain = nn.Parameter(torch.tensor(0.5))
        self.mark = nn.Linear(mark_dim, width) if mark_dim else None
        self.layers = nn.ModuleList(CellLayer(width, heads, hidden or 2 * width, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, mu: DiscreteMeasure, context: Context) -> DiscreteMeasure:
        """The image of ``mu``, given the ``context`` of an input.

        Raises
        ------
        ValueError
            If points or marks of ``mu`` have another dimension than the cell.
        """
        h = self.embed(mu, context)
        for layer, key, value in zip(self.layers, context.keys, context.values, strict=True):
            h = layer(h, mu, key, value, context)
        return mu.with_points(self.norm(h))

    def embed(self, mu: DiscreteMeasure, context: Context) -> Float[Tensor, "*batch n width"]:
        """The features of the atoms of ``mu`` with which the layers start, given the ``context``.

        Raises
        ------
        ValueError
            If points or marks of ``mu`` have another dimension than the cell.
        """
        marks = 0 if mu.marks is None else mu.marks.shape[-1]
        if (mu.dim, marks) != (self.width, self.mark_dim):
            raise ValueError(
                f"mu: expected points of dimension {self.width} and marks of dimension {self.mark_dim}, got {mu.dim} and {marks}"
            )
        h = self.gain * mu.points
        return h + context.modulated(torch.zeros_like(h) if self.mark is None else self.mark(mu.marks))

    def attention_shares(self, mu: DiscreteMeasure, context: Context) -> Float[Tensor, "*batch heads n m"]:
        """How much each atom of ``mu`` attends to each atom of the input of ``context``, in each head of the first layer."""
        layer = self.layers[0]
        assert isinstance(layer, CellLayer)
        return layer.cross.shares(layer.norm_cross(self.embed(mu, context)), context.keys[0], context.weights)


class CellLayer(nn.Module):
    """Attention to the input, attention to the measure itself, and an MLP, all residual."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm_cross, self.norm_self, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.cross, self.own = MeasureAttention(width, heads), MeasureAttention(width, heads)
        self.memory = KeysAndValues(width, heads=heads)
        self.dropout = Dropout(width, dropout)
        self.mlp = MLP(width, hidden, width)

    def forward(self, h: Tensor, mu: DiscreteMeasure, key: Tensor, value: Tensor, context: Context) -> Tensor:
        h = h + self.cross(self.norm_cross(h), key, value, context.weights)
        seen = self.norm_self(h)
        h = h + self.own(seen, *self.memory(seen), mu.weights)
        out: Tensor = h + self.mlp(self.dropout(self.norm_mlp(h), context))
        return out
